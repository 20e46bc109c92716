"""Checks of evaluation: rank correlation, the LDS and what leaves it alone, reliability (chapters 01 and 09)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers

Correlation = Callable[[Tensor, Tensor], Tensor]


def _average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1 on by counting: ties share the mean of their ranks."""
    below = (values.unsqueeze(-2) < values.unsqueeze(-1)).sum(-1)
    equal = (values.unsqueeze(-2) == values.unsqueeze(-1)).sum(-1)
    return below + (equal + 1).double() / 2


def _ordinal_ranks(values: Tensor) -> Tensor:
    return values.argsort(stable=True).argsort(stable=True).double()


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    a, b = first.double() - first.double().mean(), second.double() - second.double().mean()
    return (a @ b) / (a.norm() * b.norm())


def _spearman(first: Tensor, second: Tensor) -> Tensor:
    return _pearson(_average_ranks(first), _average_ranks(second))


def _by_squared_differences(first: Tensor, second: Tensor) -> Tensor:
    count = len(first)
    return 1 - 6 * (_average_ranks(first) - _average_ranks(second)).square().sum() / (count * (count**2 - 1))


def _kendall(first: Tensor, second: Tensor) -> Tensor:
    signs = [torch.sign(values.unsqueeze(0) - values.unsqueeze(1)).double() for values in (first, second)]
    return (signs[0] * signs[1]).sum() / (signs[0].norm() * signs[1].norm())


def _wrongly_ordered(first: Tensor, second: Tensor) -> Tensor:
    return _pearson(first.argsort(stable=True), second.argsort(stable=True))


@exercise(
    gives="the correlation",
    mistakes={
        "ties get ranks in the order they stand in; they share the mean of their ranks": lambda a, b: _pearson(
            _ordinal_ranks(a), _ordinal_ranks(b)
        ),
        "this is Pearson's correlation of the values; correlate their ranks": _pearson,
        "1 − 6 Σd² / (M³ − M) holds without ties only; take Pearson's correlation of the ranks": _by_squared_differences,
        "argsort says which value comes first, not the rank of each; sort it once more": _wrongly_ordered,
        "this is Kendall's τ; Spearman's is Pearson's correlation of the ranks": _kendall,
        "the sign is dropped: a method that predicts the opposite is worse than one that says nothing": lambda a, b: _spearman(
            a, b
        ).abs(),
        "this is the squared correlation": lambda a, b: _spearman(a, b).square(),
    },
)  # fmt: skip
def spearman() -> Iterator[Case]:
    """`spearman(first, second)` → a number: Spearman's rank correlation of two vectors `[M]`, ties sharing a mean rank."""
    # ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4, which centred are −1.5, 0, 0, 1.5 and −0.5, −1.5, 0.5, 1.5
    yield Case("four values with a tie, by hand", 3 / 22.5**0.5, (numbers(1.0, 5, 5, 9), numbers(2.0, 1, 30, 40)))
    # ranks 4, 1, 3, 2, 5 and 4, 2, 1, 5, 3, whose differences square to 0, 1, 4, 9, 4: 1 − 6 · 18 / 120
    apart = numbers(50.0, 1.0, 20.0, 2.0, 400.0), numbers(0.4, 0.2, -7.0, 9.0, 0.3)
    yield Case("five values without ties, by hand", 0.1, apart)
    first = normal("ties-a", 9).mul(2).round()
    second = -3 * first - normal("ties-b", 9).mul(2).round()
    yield Case("nine values with many ties, by counting", _counted(first, second), (first, second))


def _counted(first: Tensor, second: Tensor) -> float:
    """Spearman's correlation with ranks counted one by one."""
    pairs = first.tolist(), second.tolist()
    ranks = [[sum(x < y for x in v) + (sum(x == y for x in v) + 1) / 2 for y in v] for v in pairs]
    centred = [[r - (len(row) + 1) / 2 for r in row] for row in ranks]
    norms = [sum(r * r for r in row) ** 0.5 for row in centred]
    return sum(a * b for a, b in zip(*centred, strict=True)) / (norms[0] * norms[1])


# --- the LDS


def _predicted(scores: Tensor, kept: Tensor) -> Tensor:
    """Sums over the images that a subset leaves out, `[Q, M]`."""
    return scores @ (~kept).double().T


def _lds(
    predicted: Callable[[Tensor, Tensor], Tensor] = _predicted,
    correlation: Correlation = _spearman,
    measured: Callable[[Tensor], Tensor] = lambda measurements: measurements.mean(1).T,
    together: Callable[[Tensor], Tensor] = torch.mean,
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def lds(scores: Tensor, masks: Tensor, measurements: Tensor) -> Tensor:
        pairs = zip(predicted(scores, masks), measured(measurements), strict=True)
        return together(torch.stack([correlation(a, b) for a, b in pairs]))

    return lds


def _by_seed(scores: Tensor, masks: Tensor, measurements: Tensor) -> Tensor:
    parts = [_lds()(scores, masks, measurements[:, [seed]]) for seed in range(measurements.shape[1])]
    return torch.stack(parts).mean()


def _pooled(scores: Tensor, masks: Tensor, measurements: Tensor) -> Tensor:
    return _spearman(_predicted(scores, masks).flatten(), measurements.mean(1).T.flatten())


def _over_images(scores: Tensor, masks: Tensor, measurements: Tensor) -> Tensor:
    """Correlation over queries for each subset in place of over subsets for each query."""
    predicted, measured = _predicted(scores, masks).T, measurements.mean(1)
    return torch.stack([_spearman(a, b) for a, b in zip(predicted, measured, strict=True)]).mean()


@exercise(
    gives="the LDS",
    mistakes={
        # to turn the sign would give the same ranks: what is kept and what is removed add up to one number for each query
        "the scores of the kept images are added up, or the sign is turned: a score says what the removal of an image does": (
            _lds(lambda scores, kept: scores @ kept.double().T)
        ),
        "the scores of the removed are averaged, not added up: subsets of different sizes then mix": _lds(
            lambda scores, kept: _predicted(scores, kept) / (~kept).double().sum(1)
        ),
        "only the first seed's measurements are used; average over seeds": _lds(measured=lambda m: m[:, 0].T),
        "the correlation is taken for each seed and then averaged; average the measurements first": _by_seed,
        "all queries are ranked together; rank the subsets of each query, then average": _pooled,
        "queries are ranked for each subset; rank the subsets for each query": _over_images,
        "this is Pearson's correlation; the LDS takes ranks": _lds(correlation=_pearson),
        "the absolute value of each query's correlation is averaged; its sign counts": _lds(
            together=lambda each: each.abs().mean()
        ),
        "the absolute value of the scores is taken": _lds(lambda scores, kept: _predicted(scores.abs(), kept)),
        "ties get ranks in the order they stand in; they share the mean of their ranks": _lds(
            correlation=lambda a, b: _pearson(_ordinal_ranks(a), _ordinal_ranks(b))
        ),
    },
)
def lds() -> Iterator[Case]:
    """`lds(scores, masks, measurements)` → a number: the linear datamodelling score, the mean over queries.

    scores `[Q, N]`; masks `[M, N]` bool, True = kept; measurements `[M, K, Q]` of models retrained on each
    subset with each of K seeds. Scores estimate what removing an image does to the measurement.
    """
    scores = numbers(1.0, 2.0, 4.0, 3.0, -1.0, 0.5).view(2, 3)
    masks = torch.tensor([[True, False, False], [False, True, False], [False, False, True], [True, True, False]])
    # removed: {1, 2}, {0, 2}, {0, 1}, {2}: sums 6, 5, 3, 4 and −0.5, 3.5, 2, 0.5
    measured = numbers(9.0, 5.0, 8.0, 6.0, 7.0, 7.0, 4.0, 8.0).view(4, 1, 2)
    # ranks 4, 3, 1, 2 against 4, 3, 2, 1, and 1, 4, 3, 2 against 1, 2, 3, 4: 1 − 6·2/60 and 1 − 6·8/60
    yield Case("four subsets, two queries and one seed, by hand", (0.8 + 0.2) / 2, (scores, masks, measured))
    scores, masks, measured = normal("scores", 3, 6), normal("masks", 7, 6) > 0, normal("measured", 7, 2, 3)
    masks[1] = masks[0]  # the same subset twice: a tie
    expected = sum(
        _one_by_one(scores[q], masks, measured[:, :, q].mean(1)) for q in range(3)
    ) / 3  # fmt: skip
    yield Case("seven subsets of several sizes, three queries and two seeds", expected, (scores, masks, measured))


def _one_by_one(scores: Tensor, masks: Tensor, measured: Tensor) -> float:
    """The correlation of one query, its sums added up image by image and its ranks counted."""
    sums = [sum(float(s) for s, kept in zip(scores, mask, strict=True) if not kept) for mask in masks]
    ranks = [_average_ranks(numbers(*values)) - (len(sums) + 1) / 2 for values in (sums, measured.tolist())]
    return float((ranks[0] @ ranks[1]) / (ranks[0].norm() * ranks[1].norm()))


def _halves(count: int, of: int) -> Tensor:
    """Masks of random halves, all of one size."""
    return torch.stack([normal(f"half-{k}", of).argsort() < of // 2 for k in range(count)])


def _lds_and_changed(function: Callable[[Tensor], Tensor], scores: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Each query's rank correlation with transformed scores, and which share of the scores has changed."""
    turned = function(scores.clone())
    predicted = _predicted(turned, _halves(len(measured), scores.shape[1])).float()  # rounding must make no rank
    each = torch.stack([_spearman(a, b) for a, b in zip(predicted, measured.T, strict=True)])
    return each, (turned != scores).double().mean()


@exercise(
    gives="(each query's LDS, the share of scores that changed)",
    mistakes={
        "nothing was changed; change every score": lambda scores: scores,
        "absolute values change the LDS: images that lower the measurement then raise it": torch.abs,
        "clamped at 0, scores say something else: negative ones no longer add up": lambda scores: scores.clamp(min=0),
        "with the sign turned round, every LDS turns round": torch.neg,
        "each image got a number of its own, the same for all queries; give each query one, the same for all images": (
            lambda scores: scores - scores.mean(0)
        ),
        "scores of 0 for all images predict nothing": torch.zeros_like,
        "only the sign is left of each score": torch.sign,
        "ranks of the scores add up to other sums than the scores do": lambda scores: (
            scores.argsort(1).argsort(1).double()
        ),
    },
)
def keeps_lds() -> Iterator[Case]:
    """`keeps_lds(scores)` → scores `[Q, N]`: every score is changed, and no query's LDS is, where all subsets have one size.

    scores `[Q, N]`. Tried on random halves.
    """
    for queries, images, subsets in ((1, 8, 12), (4, 10, 16)):
        scores, measured = normal("kept-scores", queries, images), normal("kept-measured", subsets, queries)
        expected = _lds_and_changed(lambda same: same, scores, measured)[0]
        name = f"{subsets} halves of {images} images, {queries} {'query' if queries == 1 else 'queries'}"
        yield Case(name, (expected, 1.0), (scores, measured), ask=_lds_and_changed)


# --- reliability


@exercise(
    gives="the reliability",
    mistakes={
        "this grows without a bound: below the line belongs 1 + (k − 1) ρ": lambda rho, k: k * rho,
        "k stands where k − 1 belongs": lambda rho, k: k * rho / (1 + k * rho),
        "this is the reliability of a part; the formula was solved for the other one": lambda rho, k: (
            rho / (k - (k - 1) * rho)
        ),
        "the root is taken: that bounds an LDS; the reliability is the number itself": lambda rho, k: (
            (k * rho / (1 + (k - 1) * rho)) ** 0.5
        ),
        "this is the formula for two parts; here there are k": lambda rho, k: 2 * rho / (1 + rho),
        "this is the chance that one of k succeeds; reliability is a share of variance": lambda rho, k: (
            1 - (1 - rho) ** k
        ),
    },
)
def spearman_brown() -> Iterator[Case]:
    """`spearman_brown(correlation, factor)` → a number: the reliability of a mean over k times as many seeds.

    correlation ρ: of two measurements that are as long as one part; factor k, not always a whole number.
    """
    for rho, k in ((0.5, 2.0), (0.6, 3.0), (0.86, 0.5), (0.2, 10.0)):
        # one signal of variance ρ, and noise of variance 1 − ρ that a mean over k divides
        yield Case(f"ρ = {rho:g}, k = {k:g}", rho / (rho + (1 - rho) / k), (rho, k))
