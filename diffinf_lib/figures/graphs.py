"""Graphs: what waits for what, as boxes and lines."""

from collections.abc import Mapping, Sequence

from diffinf_lib.errors import first_few, require
from diffinf_lib.figures.style import BLUE, INK, BookFigure, subplots

COLUMN, LETTER, MARGIN = 1.85, 0.058, 0.1
"""Inches of a column, of a letter of a name, and of a box beyond its name."""


def job_graph(after: Mapping[str, Sequence[str]]) -> BookFigure:
    """Jobs from left to right, each beyond all that it waits for, with a line from each of these.

    Args:
        after: for each job, by name, the jobs that must be done before; these stand before it.

    Raises:
        ConfigurationError: there is no job, or one waits for what does not stand before it.
    """
    require(bool(after), "after: give at least one job")
    columns: dict[str, int] = {}
    for job, before in after.items():
        unknown = [name for name in before if name not in columns]
        require(not unknown, f"{job}: waits for {first_few(unknown)}, which is not among the jobs before it")
        columns[job] = max((columns[name] + 1 for name in before), default=0)
    places = _places(columns)
    tallest = max(row for _, row in places.values()) + 1
    alt = "Jobs in the order of their waiting: " + "; then ".join(
        ", ".join(job for job in columns if columns[job] == column) for column in sorted(set(columns.values()))
    )
    figure, axes = subplots(figsize=(COLUMN * (max(columns.values()) + 1), 0.42 * tallest + 0.3), alt=alt)
    for job, before in after.items():
        for name in before:
            (x0, y0), (x1, y1) = places[name], places[job]
            ends = [x0 + _half_width(name), x1 - _half_width(job)]
            axes.plot(ends, [-y0, -y1], color=INK, linewidth=0.7, alpha=0.5)
    for job, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.35", "facecolor": "none", "edgecolor": BLUE}
        axes.text(x, -y, job, ha="center", va="center", fontsize=8, bbox=box)
    axes.set(xlim=(-0.5, max(columns.values()) + 0.5), ylim=(-tallest + 0.4, 0.6))
    axes.axis("off")
    return figure


def _places(columns: Mapping[str, int]) -> dict[str, tuple[float, float]]:
    """Column and row of each job; a column is centred on the tallest one."""
    sizes = {column: sum(other == column for other in columns.values()) for column in columns.values()}
    tallest, met = max(sizes.values()), dict.fromkeys(sizes, 0)
    places = {}
    for job, column in columns.items():
        places[job] = (float(column), met[column] + (tallest - sizes[column]) / 2)
        met[column] += 1
    return places


def _half_width(name: str) -> float:
    """Of a job's box, in columns."""
    return (LETTER * len(name) / 2 + MARGIN) / COLUMN
