"""Evaluation: figures of what retraining did to each query, beside what scores said of it."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from diffinf_lib.errors import require
from diffinf_lib.evaluation import Constancy, SignStudy
from diffinf_lib.figures.studies import CYCLE
from diffinf_lib.figures.style import BLUE, GREY, ORANGE, subplots


def sign_scatter(studies: Mapping[str, SignStudy], *, label: str = "loss") -> Figure:
    """Real against predicted changes, a panel for each set of queries, with the lines where nothing changes (Observation 2).

    Args:
        studies: by the panel's name.
        label: the measurement that changes.
    """
    require(bool(studies), "studies: give at least one")
    figure, axes = subplots(1, len(studies), figsize=(3.6 * len(studies), 3.0), squeeze=False)
    for axis, (name, study) in zip(axes[0], studies.items(), strict=True):
        axis.plot(study.predicted_changes.ravel(), study.real_changes.ravel(), ".", color=BLUE, markersize=2, alpha=0.4)
        axis.axhline(0, color=GREY, linewidth=0.8)
        axis.axvline(0, color=GREY, linewidth=0.8)
        rises = f"rises: predicted {100 * study.predicted.value:.0f} %, real {100 * study.real.value:.0f} %"
        axis.set(title=f"{name}\n{rises}", xlabel=f"predicted change of the {label}")
    axes[0, 0].set_ylabel("real change")
    return figure


def constancy_spread(studies: Mapping[str, Constancy], *, label: str) -> Figure:
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
        axis.plot(range(len(order)), study.query_means[order], ".", color="black", markersize=3, label="mean")
        axis.set(title=name, xlabel="query, in order of its mean")
    axes[0, 0].set_ylabel(label)
    axes[0, -1].legend(fontsize=7)
    return figure


def power_curves(curves: Mapping[str, Mapping[int, Sequence[float]]], subsets: Sequence[int]) -> Figure:
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
    return figure
