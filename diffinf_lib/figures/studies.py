"""Studies: figures of methods compared, options swept, images removed and timesteps held against each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, BookFigure, subplots

CYCLE = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, GREY)


def intervals(
    groups: Mapping[str, Mapping[str, tuple[float, Sequence[float]]]],
    *,
    label: str = "LDS (%)",
    ceilings: Mapping[str, float] | None = None,
    scale: float = 100.0,
) -> BookFigure:
    """Values with their intervals, one row a name, one colour a group (such as a set of queries).

    Args:
        groups: by group, by name: (value, (low, high)). Rows come in the order of the first group.
        ceilings: a dashed line for each group.
        scale: values are multiplied by it.
    """
    require(bool(groups) and all(groups.values()), "groups: give at least one group with one row")
    names = list(dict.fromkeys(name for rows in groups.values() for name in rows))
    apart = min(0.22, 0.7 / len(groups))  # rows stay apart from each other
    figure, axes = subplots(figsize=(7, 0.24 * len(names) * max(1, len(groups) / 3) + 1.1))
    for index, (group, rows) in enumerate(groups.items()):
        places = [names.index(name) + apart * (index - (len(groups) - 1) / 2) for name in rows]
        values = np.array([scale * value for value, _ in rows.values()])
        ends = np.array([[scale * low, scale * high] for _, (low, high) in rows.values()])
        errors = np.abs(np.stack([values - ends[:, 0], ends[:, 1] - values]))
        axes.errorbar(values, places, xerr=errors, fmt="o", color=CYCLE[index], markersize=4, capsize=2, label=group)
        if ceilings and group in ceilings:
            axes.axvline(scale * ceilings[group], color=CYCLE[index], linestyle="--", linewidth=0.9)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"{label}; dashed: one exact retraining" if ceilings else label)
    if len(groups) > 1:
        figure.legend(fontsize=8, loc="outside upper center", ncols=min(2, len(groups)))  # above, where it hides no row
    figure.alt = f"{label}: " + ". ".join(
        f"{group}: " + ", ".join(f"{name} {scale * value:.1f}" for name, (value, _) in rows.items())
        for group, rows in groups.items()
    )
    return figure


def option_curves(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    option: str = "damping λ",
    label: str = "LDS (%)",
    ceilings: Mapping[str, float] | None = None,
    logarithmic: bool = True,
) -> BookFigure:
    """A value against an option, a panel for each set of queries, a line for each method.

    Args:
        panels: by panel, by line: (options, values); values in percent.
        logarithmic: the axis of the options.
    """
    require(bool(panels), "panels: give at least one")
    figure, axes = subplots(1, len(panels), figsize=(3.6 * len(panels) + 1.4, 2.9), sharey=True, squeeze=False)
    for axis, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        for index, (name, (options, values)) in enumerate(lines.items()):
            style = ("-", "--", ":")[index // len(CYCLE) % 3]
            axis.plot(
                options, values, color=CYCLE[index % len(CYCLE)], linestyle=style, marker="o", markersize=3, label=name
            )
        if ceilings and panel in ceilings:
            axis.axhline(100 * ceilings[panel], color=GREY, linestyle="--", linewidth=0.9)
        axis.set(xscale="log" if logarithmic else "linear", xlabel=option, title=panel)
    axes[0, 0].set_ylabel(label)
    handles, names = axes[0, -1].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, loc="outside right upper")  # beside the panels, where it hides no curve
    figure.alt = f"{label} against {option}. " + " ".join(
        f"{panel}: "
        + "; ".join(f"{name} {values[0]:.0f} to {values[-1]:.0f}" for name, (_, values) in lines.items())
        + "."
        for panel, lines in panels.items()
    )
    return figure


def heat_map(
    panels: Mapping[str, Any],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    row: str,
    column: str,
    framed: bool = True,
    decimals: int = 0,
    beside: bool = False,
) -> BookFigure:
    """Matrices of values as colours with the numbers in them.

    Args:
        panels: by title: `[rows, columns]`. All share one scale of colours.
        row, column: what the axes are.
        framed: frame the largest of each column.
        decimals: of the numbers.
        beside: panels side by side, not below each other.
    """
    require(bool(panels), "panels: give at least one")
    values = {title: np.asarray(matrix, dtype=float) for title, matrix in panels.items()}
    for title, matrix in values.items():
        require(matrix.shape == (len(rows), len(columns)), f"{title}: {matrix.shape}; give {len(rows)} rows and "
                f"{len(columns)} columns")  # fmt: skip
    across, down = (len(panels), 1) if beside else (1, len(panels))
    size = ((0.55 * len(columns) + 1 + (0 if beside else 1)) * across, (0.33 * len(rows) + 1.1) * down)
    figure, axes = subplots(down, across, figsize=size, squeeze=False, sharey=beside)
    limits = (min(map(np.nanmin, values.values())), max(map(np.nanmax, values.values())))
    for axis, (title, matrix) in zip(axes.flat, values.items(), strict=True):
        _matrix(axis, matrix, limits, decimals, framed)
        axis.set_xticks(range(len(columns)), columns, fontsize=7, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        axis.set(title=title, xlabel=column, ylabel=row if axis in axes[:, 0] else "")
        i, j = (int(place) for place in np.unravel_index(np.nanargmax(matrix), matrix.shape))
        largest = f"largest {matrix[i, j]:.{decimals}f}, at {rows[i]}, {columns[j]}"
        figure.alt += f"{title}: {row or 'rows'} by {column or 'columns'}; {largest}. "
    return figure


def _matrix(axis: Any, values: np.ndarray, limits: tuple[float, float], decimals: int, framed: bool) -> None:
    """One matrix as colours, with its numbers: dark ones where it is bright."""
    axis.imshow(values, cmap="cividis", aspect="auto", vmin=limits[0], vmax=limits[1])
    for i, j in np.argwhere(np.isfinite(values)):
        bright, best = values[i, j] > sum(limits) / 2, framed and values[i, j] == np.nanmax(values[:, j])
        text = f"{round(values[i, j], decimals) + 0.0:.{decimals}f}".replace("-", "−")  # never −0
        axis.text(j, i, text, ha="center", va="center", fontsize=7,
                  color="#111111" if bright else "#ffffff", fontweight="bold" if best else "normal")  # fmt: skip
        if best:
            axis.add_patch(_frame(int(i), int(j)))


def _frame(i: int, j: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, edgecolor=VERMILION, linewidth=1.5)


def against(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    horizontal: str,
    vertical: str,
    logarithmic: bool = False,
    lines: bool = False,
    diagonal: bool = False,
) -> BookFigure:
    """One quantity against another, a colour for each series.

    Args:
        series: by name: (horizontal values, vertical values).
        lines: join the points of a series.
        diagonal: draw where both are equal.
    """
    require(bool(series), "series: give at least one")
    figure, axes = subplots(figsize=(5.6, 3.2))
    for index, (name, (x, y)) in enumerate(series.items()):
        colour = CYCLE[index % len(CYCLE)]
        axes.plot(x, y, "o-" if lines else "o", color=colour, markersize=3.5, alpha=1.0 if lines else 0.7, label=name)
    if diagonal:
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color=GREY, linewidth=0.8, linestyle="--")
    axes.set(xlabel=horizontal, ylabel=vertical, xscale="log" if logarithmic else "linear")
    if len(series) > 1:
        axes.legend(fontsize=7)
    figure.alt = f"{vertical} against {horizontal}" + (f": {', '.join(series)}" if len(series) > 1 else "")
    return figure
