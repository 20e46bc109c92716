"""Evaluation: figures of what retraining did to each query, beside what scores said of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.evaluation import Constancy, SignStudy
from diffinf_lib.figures.studies import CYCLE
from diffinf_lib.figures.style import BLUE, GREY, INK, ORANGE, PURPLE, SKY, BookFigure, subplots


def sign_scatter(studies: Mapping[str, SignStudy], *, label: str = "loss") -> BookFigure:
    """Real against predicted changes, a panel for each set of queries, with the lines where nothing changes (Observation 2).

    Args:
        studies: by the panel's name.
        label: the measurement that changes.
    """
    require(bool(studies), "studies: give at least one")
    figure, axes = subplots(1, len(studies), figsize=(3.6 * len(studies), 3.0), squeeze=False)
    for axis, (name, study) in zip(axes[0], studies.items(), strict=True):
        changes = (study.predicted_changes.ravel(), study.real_changes.ravel())
        axis.plot(*changes, ".", color=BLUE, markersize=2, alpha=0.4, rasterized=True)  # thousands: an image, not paths
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.axvline(0, color=GREY, linewidth=0.8)
        rises = f"rises: predicted {100 * study.predicted.value:.0f} %, real {100 * study.real.value:.0f} %"
        axis.set(title=f"{name}\n{rises}", xlabel=f"predicted change of the {label}")
        figure.alt += f"{name}: real against predicted change of the {label}, {rises}. "
    axes[0, 0].set_ylabel("real change")
    return figure


def constancy_spread(studies: Mapping[str, Constancy], *, label: str) -> BookFigure:
    """The mean of each query over all retrained models, in ascending order, and how far halves and seeds move it.

    Args:
        studies: by the panel's name, a set of queries or a measurement.
        label: the measurement, with its unit.
    """
    require(bool(studies), "studies: give at least one")
    figure, axes = subplots(1, len(studies), figsize=(3.6 * len(studies), 2.8), squeeze=False)
    for axis, (name, study) in zip(axes[0], studies.items(), strict=True):
        order = np.argsort(study.query_means, kind="stable")
        bars = (("seeds", study.seed_spread, ORANGE, 3), ("subsets", study.subset_spread, BLUE, 1.5))
        for kind, spread, colour, width in bars:
            if np.isfinite(spread).all():
                axis.errorbar(range(len(order)), study.query_means[order], yerr=spread[order], fmt="none", ecolor=colour,
                              elinewidth=width, label=f"± s.d. between {kind}")  # fmt: skip
        axis.plot(range(len(order)), study.query_means[order], ".", color=INK, markersize=3, label="mean")
        axis.set(title=name, xlabel="query, in order of its mean")
        low, high = study.query_means[order[[0, -1]]]
        figure.alt += f"{name}: {label} of {len(order)} queries in ascending order, from {low:.3g} to {high:.3g}. "
    axes[0, 0].set_ylabel(label)
    axes[0, -1].legend(fontsize=7)
    return figure


def nested_dots(panels: Mapping[str, Any], *, query: int = 0) -> BookFigure:
    """What moves a measurement, from the outside in: queries, then for one query the subsets, the seeds, and what is left.

    Above, all queries, the one that is looked into marked; below, that one alone, on a scale of its own.

    Args:
        panels: by the panel's name: measurements `[M, K, Q]`.
        query: the one that is looked into, by its place among the queries in ascending order of their means.
    """
    require(bool(panels), "panels: give at least one")
    size = (3.7 * len(panels), 3.4)
    figure, axes = subplots(2, len(panels), figsize=size, squeeze=False, sharey="row", height_ratios=[1, 2.6])
    for (above, below), (name, values) in zip(axes.T, panels.items(), strict=True):
        (all_queries, dots), *inner = _layers(np.asarray(values, dtype=np.float64), query).items()
        _dot_rows(above, {all_queries: dots}, (GREY,))
        _dot_rows(below, dict(inner), (BLUE, ORANGE, PURPLE))
        above.axvspan(*below.get_xlim(), color=SKY, alpha=0.35, linewidth=0)
        above.set_title(name)
        below.set_xlabel(f"the shaded part of it: one query's {name}", fontsize=8)
        figure.alt += f"{name}: standard deviation " + ", ".join(
            f"of {kind} {found.std(ddof=1):.2g}" for kind, found in [(all_queries, dots), *inner]) + ". "  # fmt: skip
    return figure


def _dot_rows(axis: Any, rows: Mapping[str, np.ndarray], colours: Sequence[str]) -> None:
    """A row of dots for each name, with a standard deviation to each side below it."""
    for place, (dots, colour) in enumerate(zip(rows.values(), colours, strict=True)):
        axis.plot(dots, np.full(dots.size, place), "o", color=colour, markersize=4, alpha=0.35, markeredgewidth=0)
        axis.errorbar(dots.mean(), place + 0.32, xerr=dots.std(ddof=1), color=colour, capsize=2, linewidth=1.4)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_ylim(len(rows) - 0.4, -0.5)


def _layers(values: np.ndarray, rank: int) -> dict[str, np.ndarray]:
    """Means of all queries; and of one query: means of its subsets, of its seeds, and the rest, all around its mean."""
    query = np.argsort(values.mean((0, 1)), kind="stable")[rank]
    own = values[:, :, query]
    by_subset, by_seed = own.mean(1), own.mean(0)
    rest = own - by_subset[:, None] - by_seed + 2 * own.mean()
    return {
        f"{values.shape[2]} queries": values.mean((0, 1)),
        f"{len(by_subset)} subsets": by_subset,
        f"{len(by_seed)} seeds": by_seed,
        "what is left": rest.ravel(),
    }


def power_curves(curves: Mapping[str, Mapping[int, Sequence[float]]], subsets: Sequence[int]) -> BookFigure:
    """The smallest LDS difference that is found, by the number of subsets; a colour a pair of methods, a style a seed count.

    Args:
        curves: by the name of a pair of methods, by the number of seeds: fractions, one for each of `subsets`.
    """
    require(bool(curves), "curves: give at least one pair of methods")
    figure, axes = subplots(figsize=(5.6, 3.2))
    for colour, (pair, by_seeds) in zip(CYCLE, curves.items(), strict=False):
        for style, (seeds, values) in zip(("-", "--", ":", "-."), by_seeds.items(), strict=False):
            label = f"{pair}, {seeds} seed{'s' * (seeds > 1)}"
            axes.plot(
                subsets, 100 * np.asarray(values), linestyle=style, color=colour, marker="o", markersize=3, label=label
            )
    axes.set(xscale="log", yscale="log", xlabel="subsets", ylabel="smallest difference (LDS points)")
    axes.set_xticks(subsets, [str(count) for count in subsets])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    ends = {line.get_label(): line.get_ydata()[[0, -1]] for line in axes.lines}
    figure.alt = f"Smallest difference in LDS that is found, from {subsets[0]} to {subsets[-1]} subsets: " + "; ".join(
        f"{name}: {first:.3g} to {last:.3g} points" for name, (first, last) in ends.items()
    )
    return figure
