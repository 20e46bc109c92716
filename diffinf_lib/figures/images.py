"""Images: figures of images, of what the model was trained on and of what is behind a query."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from torch import Tensor

from diffinf_lib.configuration import Process
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.figures.style import BLUE, GREY, INK, ORANGE, VERMILION, BookFigure, subplots
from diffinf_lib.shapes import Images, PerExample, Scores


def _pixels(image: Float[Tensor, "C H W"]) -> Float[np.ndarray, "H W *C"]:
    """An image `[C, H, W]` in [−1, 1] as Matplotlib takes it."""
    values = ((image.detach().float().cpu() + 1) / 2).clamp(0, 1)
    return values[0].numpy() if len(values) == 1 else values.permute(1, 2, 0).numpy()


def _show(axes: Axes, image: Float[Tensor, "C H W"] | None, title: str = "", colour: str | None = None) -> None:
    axes.set_axis_off()
    if image is None:
        return
    axes.imshow(_pixels(image), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=7, pad=2, color=colour or INK)


def training_curve(losses: Any, *, smooth: int = 50) -> BookFigure:
    """The loss of every step, and its running mean over `smooth` steps.

    Args:
        losses: `[steps]`.
    """
    values = np.asarray(losses, dtype=float)
    window = min(smooth, len(values))
    mean = np.convolve(values, np.ones(window) / window, mode="valid")
    alt = f"Training loss over {len(values)} steps; its running mean goes from {mean[0]:.3g} to {mean[-1]:.3g}"
    figure, axes = subplots(figsize=(6, 2.6), alt=alt)
    axes.plot(np.arange(1, len(values) + 1), values, color=BLUE, alpha=0.25, linewidth=0.8, label="one batch")
    axes.plot(np.arange(window, len(values) + 1), mean, color=BLUE, label=f"mean of {window} steps")
    axes.set(xlabel="step", ylabel="loss", yscale="log")
    axes.legend()
    return figure


def image_grid(
    images: Images, *, columns: int = 8, titles: Sequence[str] | None = None, size: float = 0.7
) -> BookFigure:
    """Images `[N, C, H, W]` in rows of `columns`.

    Args:
        size: of one image, in inches.
    """
    require(len(images) > 0, "images: give at least one to draw")
    require(titles is None or len(titles) == len(images), "titles: give one for each image")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height = size * (1.25 if titles else 1.0)
    alt = f"{len(images)} images in {rows} row{'s' * (rows > 1)}" + (f": {', '.join(titles)}" if titles else "")
    figure, axes = subplots(rows, columns, figsize=(size * columns, height * rows), squeeze=False, alt=alt)
    for place, axis in enumerate(axes.flat):
        inside = place < len(images)
        _show(axis, images[place] if inside else None, titles[place] if titles and inside else "")
    return figure


def noising_strip(
    image: Float[Tensor, "C H W"], noise: Float[Tensor, "C H W"], timesteps: Sequence[int], process: Process = Process()
) -> BookFigure:
    """One image `[C, H, W]` at several timesteps of the forward process, with one noise `[C, H, W]`."""
    steps = torch.tensor(list(timesteps))
    shape = (len(steps), *image.shape)
    states = process.noisy(image.expand(shape), steps, noise.expand(shape))
    return image_grid(states, columns=len(steps), titles=[f"t = {step}" for step in timesteps], size=0.9)


def ranked(scores: PerExample, count: int) -> dict[str, Int[Tensor, "n"]]:
    """Places of the highest and lowest of the scores `[N]` and of those nearest to zero, as the paper's Fig. 1 shows them."""
    order = scores.argsort(descending=True)
    return {
        "most positive": order[:count],
        "most negative": order.flip(0)[:count],
        "nearest to zero": scores.abs().argsort()[:count],
    }


def top_influence(
    train: ImageSet,
    queries: ImageSet,
    scores: Scores,
    *,
    query: int,
    count: int = 8,
    pixels: Callable[[ImageSet], Images] | None = None,
) -> BookFigure:
    """A query and its most positive, most negative and most indifferent training images (the paper's Fig. 1).

    Args:
        scores: `[Q, N]`; a positive score: leaving the image out makes the query less likely.
        query: which of the queries, from 0.
        count: images a row.
        pixels: what latents stand for, `Dataset.pixels`; default the images as they are.
    """
    require(0 <= query < len(queries), f"query={query}: give 0 to {len(queries) - 1}")
    rows = ranked(scores[query], min(count, len(train)))
    figure, axes = subplots(
        3, count + 1, figsize=(0.8 * (count + 2), 3.0), squeeze=False, width_ratios=[1.8] + [1.0] * count
    )
    figure.alt = f"Query {query} beside its training images, with scores. " + " ".join(
        f"{name.capitalize()}: {', '.join(f'{scores[query, place]:+.1e}' for place in places)}."
        for name, places in rows.items()
    )
    shown = pixels or (lambda images: images.images)
    _show(axes[1][0], shown(queries.subset([query]))[0], "query")
    for axis in (axes[0][0], axes[2][0]):
        axis.set_axis_off()
    for row, ((name, places), colour) in enumerate(zip(rows.items(), (BLUE, VERMILION, GREY), strict=True)):
        pictures = shown(train.subset(places))
        for column in range(count):
            inside = column < len(places)
            image = pictures[column] if inside else None
            title = f"{scores[query, places[column]]:+.1e}" if inside else ""
            _show(axes[row][column + 1], image, title, colour)
        first = axes[row][1]
        first.text(
            -0.15, 0.5, name, transform=first.transAxes, rotation=90, ha="right", va="center", fontsize=7, color=colour
        )
    return figure


def schedule_curves(process: Process = Process()) -> BookFigure:
    """How much image and how much noise x_t holds at each timestep: √ᾱ_t and √(1 − ᾱ_t)."""
    kept = process.alphas_cumprod
    alt = f"Factors of image and of noise from timestep 0 to {len(kept) - 1}: the image falls from 1 to 0, the noise rises"
    figure, axes = subplots(figsize=(5.5, 2.4), alt=alt)
    axes.plot(kept.sqrt(), color=BLUE, label="image, √ᾱ")
    axes.plot((1 - kept).sqrt(), color=ORANGE, linestyle="--", label="noise, √(1 − ᾱ)")
    axes.set(xlabel="timestep t", ylabel="factor in $x_t$")
    axes.legend()
    return figure
