"""Checks of gradients at scale: scores from draw-averaged gradients, the bias of shared draws, and 8-bit rows (chapter 08)."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers, positive_definite


def _batches(name: str, sizes: tuple[int, ...]) -> list[Tensor]:
    return [normal(f"{name}-{place}", size, 3) for place, size in enumerate(sizes)]


def _inverse(curvature: Tensor, damping: float) -> Tensor:
    return torch.linalg.inv(curvature + damping * torch.eye(len(curvature), dtype=curvature.dtype))


def _between(
    mean: Callable[[Sequence[Tensor]], Tensor], scale: Callable[[int], float] = lambda count: 1 / count
) -> Callable[..., Tensor]:
    """The score of two gradients, each put together from batches of draws."""

    def accumulated_score(query: list[Tensor], train: list[Tensor], f: Tensor, damping: float, count: int) -> Tensor:
        return scale(count) * mean(query) @ _inverse(f, damping) @ mean(train)

    return accumulated_score


def _mean(batches: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(batches)).mean(0)


def _draw_by_draw(query: list[Tensor], train: list[Tensor], f: Tensor, damping: float, count: int) -> Tensor:
    pairs = zip(torch.cat(query), torch.cat(train), strict=False)
    return torch.stack([a @ _inverse(f, damping) @ b for a, b in pairs]).mean() / count


@exercise(
    gives="the score",
    mistakes={
        "the mean of the batches' means is taken; the last batch is smaller, so add up draws and divide once": _between(
            lambda batches: torch.stack([batch.mean(0) for batch in batches]).mean(0)
        ),
        "gradients are added up over draws, not averaged": _between(lambda batches: torch.cat(list(batches)).sum(0)),
        "only the last batch counts: add each to what is there": _between(lambda batches: batches[-1].mean(0)),
        "products are averaged draw by draw; average each gradient over its draws first, then multiply": _draw_by_draw,
        "the 1/N is missing": _between(_mean, lambda count: 1.0),
        "the sign is the other way round": _between(_mean, lambda count: -1 / count),
        "the damping is missing": lambda q, n, f, damping, count: _between(_mean)(q, n, f, 0.0, count),
        "the inverse is missing": lambda q, n, f, damping, count: (
            _mean(q) @ torch.linalg.inv(_inverse(f, damping)) @ _mean(n) / count
        ),
    },
)
def accumulated_score() -> Iterator[Case]:
    """`accumulated_score(query_batches, train_batches, curvature, damping, count)` → a number: one query's score of one image.

    query_batches and train_batches: lists of per-draw gradients `[s, P]`; batches differ in size, and the two have draws of
    their own. curvature F `[P, P]`; damping λ; count N, the number of training images.
    """
    for sizes, name in ((((4,), (4,)), "one batch each"), (((3, 3, 1), (4, 2)), "batches of unequal sizes")):
        query, train = (_batches(side, part) for side, part in zip(("query", "train"), sizes, strict=True))
        f, damping, count = positive_definite("stored", 3), 0.3, 7
        rows, columns = torch.cat(query), torch.cat(train)
        pairs = torch.stack(
            [a @ _inverse(f, damping) @ b for a in rows for b in columns]
        )  # all with all, not one with one
        yield Case(
            f"{name}, as the mean over all pairs of draws", pairs.mean() / count, (query, train, f, damping, count)
        )


def _bias(
    covariance: Callable[[Tensor, Tensor], Tensor], scale: Callable[[int, int], float] = lambda draws, k: 1 / draws
) -> Callable[..., Tensor]:
    """tr(F⁻¹ C) times a function of the number of draws and of the possible draws."""

    def shared_draw_bias(query: Tensor, train: Tensor, curvature: Tensor, draws: int) -> Tensor:
        found = (torch.linalg.inv(curvature) @ covariance(query, train)).trace()
        return scale(draws, len(query)) * found

    return shared_draw_bias


def _covariance(query: Tensor, train: Tensor) -> Tensor:
    return (query - query.mean(0)).T @ (train - train.mean(0)) / len(query)


@exercise(
    gives="the bias",
    mistakes={
        "the bias falls with the number of draws: 1/S is missing": _bias(_covariance, lambda draws, k: 1.0),
        "the bias falls with 1/S, not 1/√S": _bias(_covariance, lambda draws, k: draws**-0.5),
        "the bias falls with 1/S, not 1/S²": _bias(_covariance, lambda draws, k: draws**-2),
        "these draws are all there are, so their covariance is divided by K, not K − 1": _bias(
            _covariance, lambda draws, k: k / (k - 1) / draws
        ),
        "this is the second moment; a bias comes from the covariance, without the product of the means": _bias(
            lambda q, n: q.T @ n / len(q)
        ),
        "this is what is expected of the score; the bias is how much more than the true score that is": lambda q, n, f, s: (
            _bias(_covariance)(q, n, f, s) + q.mean(0) @ torch.linalg.inv(f) @ n.mean(0)
        ),
        "the sign is the other way round: what two noises share is added": _bias(
            _covariance, lambda draws, k: -1 / draws
        ),
        "the inverse of the curvature is missing": lambda q, n, f, s: _covariance(q, n).trace() / s,
        "this multiplies by the curvature; it is its inverse": lambda q, n, f, s: (f @ _covariance(q, n)).trace() / s,
    },
)
def shared_draw_bias() -> Iterator[Case]:
    """`shared_draw_bias(query_gradients, train_gradients, curvature, draws)` → a number: what shared draws add to a score.

    query_gradients and train_gradients `[n, P]`: the gradients of a query and of a training image at each of n equally likely
    draws, in one order; curvature F `[P, P]`; draws S. Both gradients are averaged over the *same* S draws, taken at
    random with replacement; the bias is the mean of ∇mᵀ F⁻¹ ∇ℓ over all such choices less its value with all draws.
    """
    for possible, draws in ((3, 1), (3, 3), (4, 2)):
        query = normal("noisy-query", possible, 2)
        train = 0.5 * query + normal("noisy-train", possible, 2)
        inverse = torch.linalg.inv(positive_definite("shared", 2))
        choices = [list(chosen) for chosen in product(range(possible), repeat=draws)]
        scores = torch.stack([query[chosen].mean(0) @ inverse @ train[chosen].mean(0) for chosen in choices])
        bias = scores.mean() - query.mean(0) @ inverse @ train.mean(0)
        name = f"S = {draws} of {possible} draws, over all {len(choices)} choices"
        yield Case(name, bias, (query, train, positive_definite("shared", 2), draws))


def _packed(
    scale: Callable[[Tensor], Tensor],
    rounded: Callable[[Tensor], Tensor] = torch.round,
    kind: torch.dtype = torch.int8,
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """8-bit rows with a rule for the scale."""

    def int8_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
        steps = scale(matrix)
        ratio = torch.where(steps > 0, matrix / steps, 0.0)
        return rounded(ratio).clamp(-128, 127).to(kind), steps.expand(len(matrix), 1)

    return int8_rows


def _flat_scales(matrix: Tensor) -> tuple[Tensor, Tensor]:
    integers, scale = _packed(_of_rows)(matrix)
    return integers, scale.squeeze(1)


def _of_rows(matrix: Tensor) -> Tensor:
    return matrix.abs().amax(1, keepdim=True) / 127


def _restored(function: Callable[[Tensor], tuple[Tensor, Tensor]], matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The integers, what they stand for, and whether they take a byte each."""
    integers, scale = function(matrix)
    return integers, integers * scale, torch.tensor(float(integers.dtype == torch.int8))


@exercise(
    gives="(integers, integers · scale, whether they are int8)",
    mistakes={
        "one scale serves the whole matrix; each row has its own, or small rows are lost": _packed(
            lambda m: m.abs().amax() / 127
        ),
        "each column has a scale; it is the rows that share one": lambda m: (
            (m / (m.abs().amax(0) / 127)).round().to(torch.int8), _of_rows(m)
        ),
        "the largest entry is mapped to 128, which int8 cannot hold: divide by 127": _packed(lambda m: _of_rows(m) * 127 / 128),
        "the fraction is cut off; round to the nearest integer": _packed(_of_rows, torch.trunc),
        "integers are rounded down; round to the nearest": _packed(_of_rows, torch.floor),
        "the scale is of the largest entry; take the largest absolute value, or negative ones overflow": _packed(
            lambda m: m.amax(1, keepdim=True) / 127
        ),
        "the scale is of the range from smallest to largest; rows are even around 0 here": _packed(
            lambda m: (m.amax(1, keepdim=True) - m.amin(1, keepdim=True)) / 255
        ),
        "the scales are [rows], and times those it is columns that are scaled; give [rows, 1]": _flat_scales,
        "the integers are not of type int8, so nothing is saved": _packed(_of_rows, kind=torch.int32),
    },
)  # fmt: skip
def int8_rows() -> Iterator[Case]:
    """`int8_rows(matrix)` → (integers `[d_out, d_in]` int8, scale `[d_out, 1]`): each row in 8 bits, even around 0.

    matrix `[d_out, d_in]`. The largest absolute value of a row becomes ±127, and integers · scale is the row, each entry to
    half a scale. A row of zeros stays one.
    """
    by_hand = numbers(127.0, -50.6, 3.4, -0.254, 0.1, 0.0123, 0.0, 0.0, 0.0).view(3, 3)
    whole = numbers(127.0, -51.0, 3.0, -127.0, 50.0, 6.0, 0.0, 0.0, 0.0).view(3, 3)
    steps = numbers(1.0, 0.002, 0.0).view(3, 1)
    yield Case("three rows by hand, one of zeros", (whole, whole * steps, 1.0), (by_hand,), ask=_restored)
    matrix = numbers(1.0, 1e-3, 50.0).view(3, 1) * normal("rows", 3, 6)
    steps = torch.stack([row.abs().max() / 127 for row in matrix]).view(3, 1)
    # the nearest of all 255 integers, by trying each
    levels = torch.arange(-127.0, 128.0, dtype=torch.float64)
    nearest = levels[(matrix.unsqueeze(-1) - steps.unsqueeze(-1) * levels).abs().argmin(-1)]
    yield Case(
        "rows of sizes that differ, by trying every integer", (nearest, nearest * steps, 1.0), (matrix,), ask=_restored
    )
