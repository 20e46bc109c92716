"""Tables: scores and findings by file name, for spreadsheets and for programs."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffinf_lib.artifacts import atomic_write, write_arrays
from diffinf_lib.report.result import Report
from diffinf_lib.report.text import cell

MOST_ROWS = 1_000_000
"""Rows of `scores.csv`; where there are more pairs, both ends of each query's order are written."""


def write_tables(report: Report, folder: Path) -> dict[str, Any]:
    """Write `scores.csv`, `findings.csv` and `scores.npz`; say how many rows of each query there are."""
    each = min(len(report.train), max(2, MOST_ROWS // len(report.queries)))
    _write_csv(folder / "scores.csv", SCORE_COLUMNS, _score_rows(report, each))
    _write_csv(folder / "findings.csv", FINDING_COLUMNS, _finding_rows(report))
    write_arrays(folder / "scores.npz", **_arrays(report))
    return {"rows_of_each_query": each}


SCORE_COLUMNS = ("query", "rank", "image", "class", "score", "rank_by_pixels", "pixel_distance")
FINDING_COLUMNS = ("kind", "group", "image", "class", "suggested_class", "value", "meaning_of_value", "flagged")


def _write_csv(path: Path, columns: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _class(report: Report, n: int) -> str:
    return cell(report.train.class_of(n) or "")


def _score_rows(report: Report, each: int) -> Iterator[Sequence[Any]]:
    """Every pair, from the most supporting image of each query to the most opposing one."""
    count = len(report.train)
    for q, query in enumerate(report.queries.names):
        order, by_pixels = report.order(q), report.pixel_distances[q].argsort(stable=True).argsort() + 1
        for place, n in enumerate(order.tolist(), start=1):
            if place <= (each + 1) // 2 or place > count - each // 2:
                yield (
                    cell(query), place, cell(report.train.names[n]), _class(report, n), f"{float(report.scores[0, q, n]):.6g}",
                    int(by_pixels[n]), f"{float(report.pixel_distances[q, n]):.4f}",
                )  # fmt: skip


def _finding_rows(report: Report) -> Iterator[Sequence[Any]]:
    found = report.findings

    def row(
        kind: str, n: int, value: str, meaning: str, *, group: object = "", suggested: str = "", flagged: bool = True
    ) -> Any:
        name, flag = cell(report.train.names[n]), "yes" if flagged else "no"
        return kind, group, name, _class(report, n), suggested, value, meaning, flag

    for number, copies in enumerate(found.copies, start=1):
        kind = "copy" if copies.by == "pixels" else "near-copy"
        for n in copies.members:
            yield row(kind, n, f"{copies.value:.4f}", f"least likeness in the group, by {copies.by}", group=number)
    for unusual in found.unusual:
        ratio = f"{unusual.ratio:.4g}"
        yield row("unusual", unusual.image, ratio, "self-influence over the median", flagged=unusual.flagged)
    for doubt in found.label_doubts:
        suggested = cell(report.train.class_names[doubt.suggested])
        yield row("label", doubt.image, f"{doubt.lead:.3g}", "lead in the votes of its nearest", suggested=suggested)


def _arrays(report: Report) -> dict[str, np.ndarray]:
    return {
        "scores": report.scores.numpy(),
        "dampings": np.array(report.dampings),
        "queries": np.array(report.queries.names),
        "images": np.array(report.train.names),
        "query_ids": report.queries.images.ids.numpy(),
        "image_ids": report.train.images.ids.numpy(),
        "labels": report.train.images.labels.numpy(),
        "class_names": np.array(report.train.class_names, dtype=np.str_),
        "measurement": np.array(report.measurement.label),
        "direction": np.array(report.measurement.direction),
        "self_influence": report.self_influence.numpy(),
        "pixel_distances": report.pixel_distances.numpy().astype(np.float32),
        "nearest_images": report.likeness.nearest.numpy(),
        "nearest_cosines": report.likeness.cosines.numpy(),
    }
