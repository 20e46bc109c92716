"""Figures: one function each, returning a Matplotlib figure; no reading, no writing, one style."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, NoiseSchedule, noisy_images
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, LDSResult, predicted_changes, spearman

# Okabe and Ito's palette: told apart with any kind of colour vision
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SKY, PURPLE = "#56B4E9", "#CC79A7"

STYLE: Any = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
}


def _subplots(*arguments: Any, **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` in the book's style; the figure is left to the caller to show."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*arguments, layout="constrained", **options)
    plt.close(figure)
    return figure, axes


def _pixels(image: Tensor) -> np.ndarray:
    """An image `[C, H, W]` in [−1, 1] as Matplotlib takes it."""
    values = ((image.detach().float().cpu() + 1) / 2).clamp(0, 1)
    return values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy()


def _show(axes: Axes, image: Tensor | None, title: str = "", colour: str | None = None) -> None:
    axes.set_axis_off()
    if image is None:
        return
    axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=7, pad=2, color=colour or "black")


def training_curve(losses: Any, *, smooth: int = 50) -> Figure:
    """The loss of every step, and its running mean over `smooth` steps.

    Args:
        losses: `[steps]`.
    """
    values = np.asarray(losses, dtype=float)
    window = min(smooth, len(values))
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    figure, axes = _subplots(figsize=(6, 2.6))
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, alpha=0.25, linewidth=0.8, label="one batch")
    axes.plot(np.arange(window, len(values) + 1), mean, color=BLUE, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    return figure


def image_grid(images: Tensor, *, columns: int = 8, titles: Sequence[str] | None = None, size: float = 0.7) -> Figure:
    """Images `[n, C, H, W]` in rows of `columns`.

    Args:
        size: of one image, in inches.
    """
    require(len(images) > 0, "images: give at least one to draw")
    require(titles is None or len(titles) == len(images), "titles: give one for each image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = size * (1.25 if titles else 1.0)
    figure, axes = _subplots(rows, columns, figsize=(size * columns, height * rows), squeeze=False)
    for place, axis in enumerate(axes.flat):
        inside = place < len(images)
        _show(axis, images[place] if inside else None, titles[place] if titles and inside else "")
    return figure


def noising_strip(
    image: Tensor, noise: Tensor, timesteps: Sequence[int], schedule: NoiseSchedule = DEFAULT_SCHEDULE
) -> Figure:
    """One image `[C, H, W]` at several timesteps of the forward process, with one noise `[C, H, W]`."""
    steps = torch.tensor(list(timesteps))
    states = noisy_images(image.expand(len(steps), -1, -1, -1), steps, noise.expand(len(steps), -1, -1, -1), schedule)
    return image_grid(states, columns=len(steps), titles=[f"t = {step}" for step in timesteps], size=0.9)


def lds_bars(results: Mapping[str, LDSResult], *, ceiling: float | None = None) -> Figure:
    """LDS of each method with its bootstrap interval, and what one exact retraining reaches.

    Args:
        results: by the method's name, drawn from top to bottom.
        ceiling: default: that of the first result.
    """
    require(bool(results), "results: give at least one method")
    names, values = list(results), list(results.values())
    ceiling = values[0].ceiling if ceiling is None else ceiling
    figure, axes = _subplots(figsize=(6.5, 0.45 * len(names) + 0.9))
    places = np.arange(len(names))[::-1]
    means = np.array([100 * result.mean for result in values])
    errors = np.array([[100 * (r.mean - r.interval[0]), 100 * (r.interval[1] - r.mean)] for r in values]).T
    axes.barh(
        places, means, xerr=errors, color=[BLUE, *[GREY] * (len(names) - 1)], height=0.6, capsize=3, ecolor="black"
    )
    for place, mean in zip(places, means, strict=True):
        axes.text(1.01, place, f"{mean:.1f}", va="center", transform=axes.get_yaxis_transform())
    if np.isfinite(ceiling):
        axes.axvline(100 * ceiling, color=VERMILION, linestyle="--", label=f"one exact retraining: {100 * ceiling:.1f}")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(places, names)
    axes.set_xlabel("LDS (%)")
    return figure


def ranked(scores: Tensor, count: int) -> dict[str, Tensor]:
    """Places of the highest, lowest and smallest (in size) of the scores `[N]`, as the paper's Fig. 1 shows them."""
    order = scores.argsort(descending=True)
    return {
        "most positive": order[:count],
        "most negative": order.flip(0)[:count],
        "most neutral": scores.abs().argsort()[:count],
    }


def top_influence(train: ImageSet, queries: ImageSet, scores: Tensor, *, query: int, count: int = 8) -> Figure:
    """A query and its most positive, most negative and most neutral training images (the paper's Fig. 1).

    Args:
        scores: `[Q, N]`; a positive score: leaving the image out makes the query less likely.
        query: which of the queries, from 0.
        count: images a row.
    """
    require(0 <= query < len(queries), f"query={query}: give 0 to {len(queries) - 1}")
    rows = ranked(scores[query], min(count, len(train)))
    figure, axes = _subplots(
        3, count + 1, figsize=(0.8 * (count + 2), 3.0), squeeze=False, width_ratios=[1.8] + [1.0] * count
    )
    _show(axes[1][0], queries.images[query], "query")
    for axis in (axes[0][0], axes[2][0]):
        axis.set_axis_off()
    for row, ((name, places), colour) in enumerate(zip(rows.items(), (BLUE, VERMILION, GREY), strict=True)):
        for column in range(count):
            inside = column < len(places)
            image = train.images[places[column]] if inside else None
            title = f"{scores[query, places[column]]:+.1e}" if inside else ""
            _show(axes[row][column + 1], image, title, colour)
        first = axes[row][1]
        first.text(
            -0.15, 0.5, name, transform=first.transAxes, rotation=90, ha="right", va="center", fontsize=7, color=colour
        )
    return figure


def predicted_against_measured(scores: Tensor, truth: GroundTruth, *, query: int) -> Figure:
    """For one query, the change that the scores predict for each subset against what retraining measured."""
    require(0 <= query < len(truth.query_ids), f"query={query}: give 0 to {len(truth.query_ids) - 1}")
    predicted = predicted_changes(scores, truth)[query]
    measured = truth.measurements[:, :, query].mean(1).numpy()
    figure, axes = _subplots(figsize=(4, 3.2))
    axes.scatter(predicted, measured, color=BLUE, s=18, alpha=0.8)
    correlation = float(spearman(predicted[None], measured[None])[0])
    axes.set(
        xlabel="predicted change, sum of scores of the images left out",
        ylabel="measured after retraining",
        title=f"query {query}: Spearman {correlation:.2f} over {len(predicted)} subsets",
    )
    return figure


def schedule_curves(schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> Figure:
    """How much image and how much noise x_t holds at each timestep: √ᾱ_t and √(1 − ᾱ_t)."""
    kept = schedule.alphas_cumprod
    figure, axes = _subplots(figsize=(5.5, 2.4))
    axes.plot(kept.sqrt(), color=BLUE, label="image, √ᾱ")
    axes.plot((1 - kept).sqrt(), color=ORANGE, linestyle="--", label="noise, √(1 − ᾱ)")
    axes.set(xlabel="timestep t", ylabel="share in x_t")
    axes.legend()
    return figure


def draws_curves(lds: Any, counts: Sequence[int], rules: Sequence[str], *, ceiling: float | None = None) -> Figure:
    """LDS against the number of draws of a training gradient, a curve for each rule of drawing, a dot for each seed.

    Args:
        lds: `[rules, counts, seeds, Q]`, NaN where a seed was not run; bundle `digits-draws` holds it.
        ceiling: what one exact retraining reaches.
    """
    means = 100 * np.asarray(lds, dtype=np.float64).mean(-1)
    require(
        means.shape[:2] == (len(rules), len(counts)), f"lds of shape {np.shape(lds)}: give [rules, counts, seeds, Q]"
    )
    figure, axes = _subplots(figsize=(6.5, 3.8))
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
    return figure


GROWTH_LABELS = {"images": "training images N", "queries": "queries Q", "draws": "draws S", "width": "channels"}


def growth_curves(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Seconds (above) and peak memory (below) of each part of an attribution as one size grows.

    Args:
        results: of `benchmarks.growth`: by axis, a record for each size with its `measured` parts.
    """
    figure, axes = _subplots(2, len(results), figsize=(2.1 * len(results), 4.2), squeeze=False)
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
