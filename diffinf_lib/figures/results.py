"""Results: figures of how well scores predict retraining, and of what they cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, LDSResult, predicted_changes, spearman
from diffinf_lib.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, BookFigure, subplots
from diffinf_lib.shapes import Scores


def lds_bars(results: Mapping[str, LDSResult], *, ceiling: float | None = None) -> BookFigure:
    """LDS of each method with its bootstrap interval, and what one exact retraining reaches.

    Args:
        results: by the method's name, drawn from top to bottom.
        ceiling: default: that of the first result.
    """
    require(bool(results), "results: give at least one method")
    names, values = list(results), list(results.values())
    ceiling = values[0].ceiling if ceiling is None else ceiling
    alt = "LDS in percent: " + "; ".join(f"{name} {100 * result.mean:.1f}" for name, result in results.items())
    figure, axes = subplots(figsize=(6.5, 0.45 * len(names) + 0.9), alt=alt)
    places = np.arange(len(names))[::-1]
    means = np.array([100 * result.mean for result in values])
    errors = np.array([[100 * (r.mean - r.interval[0]), 100 * (r.interval[1] - r.mean)] for r in values]).T
    axes.barh(places, means, xerr=errors, color=[BLUE, *[GREY] * (len(names) - 1)], height=0.6, capsize=3, ecolor=INK)
    for place, mean in zip(places, means, strict=True):
        axes.text(1.01, place, f"{mean:.1f}", va="center", transform=axes.get_yaxis_transform())
    if np.isfinite(ceiling):
        axes.axvline(100 * ceiling, color=VERMILION, linestyle="--", label=f"one exact retraining: {100 * ceiling:.1f}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_xlabel("LDS (%)")
    return figure


def predicted_against_measured(scores: Scores, truth: GroundTruth, *, query: int) -> BookFigure:
    """For one query, the change that the scores predict for each subset against what retraining measured."""
    require(0 <= query < len(truth.query_ids), f"query={query}: give 0 to {len(truth.query_ids) - 1}")
    predicted = predicted_changes(scores, truth)[query]
    measured = truth.measurements[:, :, query].mean(1).numpy()
    figure, axes = subplots(figsize=(4.6, 3.2))
    axes.scatter(predicted, measured, color=BLUE, s=18, alpha=0.8)
    correlation = float(spearman(predicted[None], measured[None])[0])
    figure.alt = f"Predicted against measured change, {len(predicted)} subsets: rank correlation {correlation:.2f}"
    axes.set(
        xlabel="predicted change: sum of the scores left out",
        ylabel="loss after retraining",
        title=f"query {query}: rank correlation {correlation:.2f}, {len(predicted)} halves",
    )
    return figure


def draws_curves(lds: Any, counts: Sequence[int], rules: Sequence[str], *, ceiling: float | None = None) -> BookFigure:
    """LDS against the number of draws of a training gradient, a curve for each rule of drawing, a dot for each seed.

    Args:
        lds: `[rules, counts, seeds, Q]`, NaN where a seed was not run; bundle `digits-draws` holds it.
        ceiling: what one exact retraining reaches.
    """
    means = 100 * np.asarray(lds, dtype=np.float64).mean(-1)
    require(
        means.shape[:2] == (len(rules), len(counts)), f"lds of shape {np.shape(lds)}: give [rules, counts, seeds, Q]"
    )
    figure, axes = subplots(figsize=(6.5, 3.8))
    styles = zip((GREY, SKY, BLUE, ORANGE, GREEN, VERMILION, PURPLE), "osD^vPX", strict=True)
    for rule, values, (colour, marker) in zip(rules, means, styles, strict=False):
        places = np.repeat(np.asarray(counts)[:, None], values.shape[1], axis=1)
        axes.plot(places.ravel(), values.ravel(), ".", color=colour, markersize=3, alpha=0.6)
        axes.plot(counts, np.nanmean(values, axis=1), color=colour, marker=marker, markersize=4, label=rule)
    if ceiling is not None:
        axes.axhline(100 * ceiling, color=GREY, linestyle="--", linewidth=1)
        axes.text(counts[0], 100 * ceiling + 0.4, "one exact retraining", color=GREY, fontsize=8)
    axes.set(xscale="log", xlabel="draws of a training gradient", ylabel="LDS, %")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.legend(fontsize=8)
    ends = {rule: [np.nanmean(row[0]), np.nanmean(row[-1])] for rule, row in zip(rules, means, strict=True)}
    figure.alt = f"LDS in percent with {counts[0]} and with {counts[-1]} draws: " + "; ".join(
        f"{rule} {first:.0f} and {last:.0f}" for rule, (first, last) in ends.items()
    )
    return figure


GROWTH_LABELS = {"images": "training images N", "queries": "queries Q", "draws": "draws S", "width": "channels"}


def growth_curves(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> BookFigure:
    """Seconds (above) and peak memory (below) of each part of an attribution as one size grows.

    Args:
        results: of `benchmarks.growth`: by axis, a record for each size with its `measured` parts.
    """
    alt = (
        f"Seconds and peak memory as {', '.join(GROWTH_LABELS.get(axis, axis) for axis in results)} grow, one at a time"
    )
    figure, axes = subplots(2, len(results), figsize=(2.1 * len(results), 4.2), squeeze=False, alt=alt)
    for column, (axis, records) in enumerate(results.items()):
        sizes = [record["size"][axis] for record in records]
        for part, colour, marker in (("fit", ORANGE, "s"), ("gradients and scores", BLUE, "o")):
            taken = [record["measured"].get(part) for record in records]
            if taken[0] is None:
                continue
            axes[0][column].loglog(
                sizes, [entry["seconds"] for entry in taken], color=colour, marker=marker, label=part
            )
            memory = [entry["peak_bytes"] / 2**20 for entry in taken]
            axes[1][column].plot(sizes, memory, color=colour, marker=marker)
        axes[1][column].set(xscale="log", xlabel=GROWTH_LABELS.get(axis, axis))
        axes[1][column].set_ylim(bottom=0)  # after all curves, or the first one would cut off the others
        for row in (0, 1):
            axes[row][column].set_xticks([sizes[0], sizes[-1]], [str(sizes[0]), str(sizes[-1])])
            axes[row][column].minorticks_off()
    axes[0][0].set_ylabel("seconds")
    axes[1][0].set_ylabel("peak memory, MiB")
    axes[0][0].legend(fontsize=7)
    return figure
