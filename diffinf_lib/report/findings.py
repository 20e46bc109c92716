"""Findings: what training images say about one another, and which of them deserve a second look.

Two kinds of likeness are read. Images are alike *by influence* if their whitened gradients h = (F + λI)^(−1/2) ∇ℓ point the
same way, which is the cosine of their influence on one another (the mean over all images taken off, which is the draws'
common error). They are alike *by shape* if their pixels correlate, after a small shift, whatever brightness and contrast.
Copies are the same in both, edited copies in shape only; an image whose nearest by influence are of another class may be in
the wrong one; one with a large influence on itself was not learnt from others. All of it names candidates, no verdicts.
"""

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from scipy.stats import norm
from torch import Tensor
from torch.nn import functional as F

from diffinf_lib.artifacts.arrays import tensor_digest
from diffinf_lib.errors import require
from diffinf_lib.shapes import Images, PerExample

COPY_COSINE = 0.9
"""Cosine of gradients from which two images count as copies; planted ones stood at 1.000, the next pairs at 0.67 and 0.76."""
COPY_CORRELATION = 0.995
"""Correlation of shapes from which two images count as copies; planted ones stood at 0.9988 or more, the next best pair of
sneakers or bags at 0.991 (the images of `benchmarks.planted`)."""
SHAPE_SIDE = 16
"""Side in pixels at which shapes are compared; shifts of a half and of one of these pixels are allowed for."""
VOTERS = 8
"""Images that are asked for an image's class: the nearest by influence, copies left out."""
LABEL_LEAD = 0.6
"""Lead of another class over an image's own, in shares of their votes, from which its label counts as doubtful."""
NEIGHBOURS = 24
"""Nearest images that are kept of each."""
SCALED_AT_ONCE = 256
"""Images that are scaled down at a time."""
ENTRIES = 1 << 23
"""Entries of a table of all pairs that are in memory at a time."""

Likely = Literal["pixels", "shape", "gradients"]


@dataclass(frozen=True, eq=False)
class Likeness:
    """The images nearest to each, the nearest first.

    Attributes:
        nearest, cosines: by influence.
        shapes, correlations: by shape.
    """

    nearest: Int[Tensor, "N k"]
    cosines: Float[Tensor, "N k"]
    shapes: Int[Tensor, "N k"]
    correlations: Float[Tensor, "N k"]


@dataclass(frozen=True)
class CopyGroup:
    """Images that are copies of one another, or nearly so.

    Attributes:
        members: positions, in order.
        by: how the least alike pair was found: the same `pixels`, the same `shape`, or nearly the same `gradients`.
        value: its correlation or cosine.
    """

    members: tuple[int, ...]
    by: Likely
    value: float


@dataclass(frozen=True)
class Unusual:
    """An image that the model learnt from itself more than from others.

    Attributes:
        ratio: its self-influence over the median one.
        flagged: whether it stands further out than the largest of so many ordinary ones would.
    """

    image: int
    ratio: float
    flagged: bool


@dataclass(frozen=True)
class LabelDoubt:
    """An image whose nearest by influence are of another class.

    Attributes:
        label, suggested: its class, and that of most of its nearest.
        votes: how many of its nearest are of the suggested class, and how many of its own.
        lead: the same as a difference of shares, each vote weighted by its cosine.
    """

    image: int
    label: int
    suggested: int
    votes: tuple[int, int]
    lead: float


# --- tables of all pairs


def compare(
    vectors: Float[Tensor, "N d"],
    images: Images,
    *,
    neighbours: int = NEIGHBOURS,
    entries: int = ENTRIES,
) -> Likeness:
    """Compare all pairs of images, by influence and by shape, a block of rows at a time.

    Args:
        vectors: whitened gradients, or a random projection of them: it keeps the cosine of copies at 1, others to 1/√d.
        entries: of the table that are in memory at a time.
    """
    count = len(vectors)
    require(count > 1, f"{count} training image(s): comparing them needs two or more")
    centred = _unit(vectors - vectors.mean(0))
    windows = _shape_windows(images)
    middle = windows[len(windows) // 2]

    def by_shape(rows: slice) -> Float[Tensor, "rows N"]:
        return torch.stack([torch.maximum(middle[rows] @ w.T, w[rows] @ middle.T) for w in windows]).amax(0)

    return Likeness(
        *_nearest(lambda rows: centred[rows] @ centred.T, count, neighbours, entries),
        *_nearest(by_shape, count, neighbours, entries // len(windows)),
    )


def _unit(rows: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
    """Rows of length 1; rows that are nothing but rounding stay 0."""
    lengths = rows.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-6 * lengths.max(), rows / lengths, 0.0)


def _shape_windows(images: Images) -> list[Float[Tensor, "N d"]]:
    """The same part of every small image, and the parts beside it; brightness and contrast taken off. The middle comes midway.

    A large image is read on a grid twice as fine, for a shift of one of its own pixels is a part of a small one.
    """
    small, fine = images.float(), max(images.shape[2:]) > SHAPE_SIDE
    if fine:  # a few at a time: what takes them down holds images of both sizes
        sides = (2 * SHAPE_SIDE, 2 * SHAPE_SIDE)
        parts = (F.interpolate(part, sides, mode="bilinear", antialias=True) for part in small.split(SCALED_AT_ONCE))
        small = torch.cat(list(parts))
    places = range(5 if fine else 3)
    height, width = (side - len(places) + 1 for side in small.shape[2:])
    shifted = [small[:, :, y : y + height, x : x + width] for y in places for x in places]
    windows = [(F.avg_pool2d(part, 2) if fine else part).flatten(1) for part in shifted]
    return [_unit(window - window.mean(1, keepdim=True)) for window in windows]


def _nearest(
    table: Callable[[slice], Float[Tensor, "rows N"]], count: int, neighbours: int, entries: int
) -> tuple[Int[Tensor, "N k"], Float[Tensor, "N k"]]:
    """The largest entries of each row but the diagonal one."""
    rows, parts = max(1, entries // count), []
    for start in range(0, count, rows):
        block = table(slice(start, start + rows)).double()
        block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -torch.inf
        parts.append(block.topk(min(neighbours, count - 1), dim=1))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


# --- findings


def find_copies(images: Images, alike: Likeness) -> tuple[CopyGroup, ...]:
    """Groups of copies: the same pixels, the same shape, or nearly the same gradients; the surest first.

    The surest pairs are joined first, so the last pair that joined a group is its least alike one.
    """
    links: list[tuple[Likely, float, int, int]] = [("pixels", 1.0, n, m) for n, m in _identical_pairs(images)]
    links += _links("shape", alike.shapes, alike.correlations, COPY_CORRELATION)
    links += _links("gradients", alike.nearest, alike.cosines, COPY_COSINE)
    groups: dict[int, CopyGroup] = {}
    for by, value, first, second in links:
        one, other = (groups[n].members if n in groups else (n,) for n in (first, second))
        if one != other:
            joined = CopyGroup(tuple(sorted(one + other)), by, value)
            groups |= dict.fromkeys(joined.members, joined)
    unique = {group.members: group for group in groups.values()}.values()
    return tuple(
        sorted(unique, key=lambda group: (typing.get_args(Likely).index(group.by), -group.value, group.members))
    )


def _links(
    by: Likely, nearest: Int[Tensor, "N k"], values: Float[Tensor, "N k"], threshold: float
) -> list[tuple[Likely, float, int, int]]:
    """Pairs above the threshold, the most alike first."""
    found = [
        (by, min(1.0, float(values[n, place])), n, int(nearest[n, place]))
        for n, place in (values >= threshold).nonzero().tolist()
    ]
    return sorted(found, key=lambda link: -link[1])


def _identical_pairs(images: Images) -> list[tuple[int, int]]:
    """Images that equal an earlier one pixel for pixel, each with the first of its kind."""
    first: dict[str, int] = {}  # by digest: the pixels themselves may be more than the memory holds
    earlier = [first.setdefault(tensor_digest(image), n) for n, image in enumerate(images)]
    return [(m, n) for n, m in enumerate(earlier) if m != n]


def find_unusual(self_influence: PerExample, *, most: int = NEIGHBOURS) -> tuple[Unusual, ...]:
    """The images with the largest self-influence, the most unusual first.

    One is flagged if log self-influence lies so far above its median, in robust standard deviations, that among so many
    normally distributed ones less than half an image would lie there (Chauvenet's criterion).
    """
    logarithms = self_influence.double().clamp(min=torch.finfo(torch.float64).tiny).log()
    median = logarithms.median()
    deviation = 1.4826 * (logarithms - median).abs().median()
    limit = float(median + deviation * norm.isf(0.5 / len(logarithms)))
    order = self_influence.argsort(descending=True, stable=True)[:most].tolist()
    return tuple(Unusual(n, math.exp(float(logarithms[n] - median)), float(logarithms[n]) > limit) for n in order)


def find_label_doubts(alike: Likeness, labels: Int[Tensor, "N"]) -> tuple[LabelDoubt, ...]:
    """Images whose nearest by influence are of another class, copies left out; the clearest first."""
    if len(labels[labels >= 0].unique()) < 2:
        return ()
    doubts = (_doubt(n, label, alike, labels) for n, label in enumerate(labels.tolist()) if label >= 0)
    return tuple(sorted((doubt for doubt in doubts if doubt), key=lambda doubt: (-doubt.lead, doubt.image)))


def _doubt(n: int, label: int, alike: Likeness, labels: Int[Tensor, "N"]) -> LabelDoubt | None:
    same_shape = alike.shapes[n][alike.correlations[n] >= COPY_CORRELATION]
    asked = (alike.cosines[n] < COPY_COSINE) & ~torch.isin(alike.nearest[n], same_shape)
    asked &= labels[alike.nearest[n]] >= 0
    voters, weights = alike.nearest[n][asked][:VOTERS], alike.cosines[n][asked][:VOTERS].clamp(min=0)
    if weights.sum() <= 0:
        return None
    shares = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
    shares.index_add_(0, labels[voters], weights.double() / weights.double().sum())
    others = shares.clone()
    others[label] = -torch.inf
    suggested = int(others.argmax())
    lead = float(shares[suggested] - shares[label])
    votes = (int((labels[voters] == suggested).sum()), int((labels[voters] == label).sum()))
    return LabelDoubt(n, label, suggested, votes, lead) if lead >= LABEL_LEAD else None
