"""Checks of work that is shared out: which trainings of a ground truth a shard does (chapter 14)."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise

Pairs = list[tuple[int, int]]


def _all(subsets: int, seeds: int) -> Pairs:
    """Every pair, seeds outermost."""
    return [(subset, seed) for seed in range(seeds) for subset in range(subsets)]


def _as_tensor(pairs: Pairs) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def _by(choose: Callable[[int, int, int, int], Pairs]) -> Callable[..., Tensor]:
    def shard_of(subsets: int, seeds: int, shard: int, shards: int) -> Tensor:
        return _as_tensor(choose(subsets, seeds, shard, shards))

    return shard_of


def _block(pairs: Pairs, size: int, shard: int) -> Pairs:
    return pairs[shard * size : (shard + 1) * size]


def _even_block(pairs: Pairs, shard: int, shards: int) -> Pairs:
    ends = [round(place * len(pairs) / shards) for place in (shard, shard + 1)]
    return pairs[ends[0] : ends[1]]


def _shared(
    function: Callable[..., Tensor], subsets: int, seeds: int, shards: int
) -> tuple[Tensor, float, float, float, float]:
    """What holds of the shards of a function, in the order of `gives`."""
    parts = [_rows(function(subsets, seeds, shard, shards)) for shard in range(shards)]
    longer = [_rows(function(subsets, seeds + 1, shard, shards)) for shard in range(shards)]
    met, strange = torch.zeros(subsets, seeds, dtype=torch.float64), 0
    for subset, seed in (pair for part in parts for pair in part):
        if 0 <= subset < subsets and 0 <= seed < seeds:
            met[subset, seed] += 1
        else:
            strange += 1
    sizes = [len(part) for part in parts]
    first = math.ceil(subsets / shards)
    early = {subset for part in parts for subset, seed in part[:first] if seed == 0}
    moved = sum(part != more[: len(part)] for part, more in zip(parts, longer, strict=True))
    return met, strange, max(0, max(sizes) - min(sizes) - 1), subsets - len(early), moved


def _rows(returned: Tensor) -> Pairs:
    found = torch.as_tensor(returned)
    if found.numel() == 0:
        return []
    if found.ndim != 2 or found.shape[1] != 2:
        raise ValueError(f"a shard of shape {list(found.shape)}; give one row a pair, [n, 2]")
    return [(int(subset), int(seed)) for subset, seed in found.tolist()]


@exercise(
    gives="how often each pair is met (subset, seed); pairs that do not exist; by how many more than one the sizes of shards "
    "differ; subsets without a model once each shard has done its part of M; shards whose pairs move when a seed is added",
    mistakes={
        "every shard has all pairs; take this shard's part": _by(lambda m, k, i, n: _all(m, k)),
        "the first pairs are met by no shard: shards are counted from 0": _by(
            lambda m, k, i, n: _all(m, k)[i + 1 :: n]
        ),
        "what the division leaves over is lost: round sizes so that every pair has a shard": _by(
            lambda m, k, i, n: _block(_all(m, k), m * k // n, i)
        ),
        "blocks of a rounded-up size leave the last shards with little or nothing; deal pairs out in turns": _by(
            lambda m, k, i, n: _block(_all(m, k), math.ceil(m * k / n), i)
        ),
        "each shard has a block of its own: a seed that is added moves them, and subsets have a first model only at the end; "
        "deal pairs out in turns": _by(lambda m, k, i, n: _even_block(_all(m, k), i, n)),
        "subsets are outermost: some have all their seeds before others have one, and a seed that is added moves pairs; put "
        "seeds outermost": _by(lambda m, k, i, n: [(s, r) for s in range(m) for r in range(k)][i::n]),
        "subsets are dealt out, not pairs: shards differ by whole subsets, and those beyond M have nothing": _by(
            lambda m, k, i, n: [pair for pair in _all(m, k) if pair[0] % n == i]
        ),
        "seeds are dealt out, not pairs: shards beyond the number of seeds have nothing": _by(
            lambda m, k, i, n: [pair for pair in _all(m, k) if pair[1] % n == i]
        ),
        "the two columns are swapped: a pair is (subset, seed)": _by(
            lambda m, k, i, n: [(seed, subset) for subset, seed in _all(m, k)[i::n]]
        ),
        "these are numbers of pairs from 1; subsets and seeds are counted from 0": _by(
            lambda m, k, i, n: [(subset + 1, seed + 1) for subset, seed in _all(m, k)[i::n]]
        ),
    },
)
def shard_of() -> Iterator[Case]:
    """`shard_of(subsets, seeds, shard, shards)` → the pairs (subset, seed) of one shard, whole numbers `[n, 2]`, in order.

    subsets M and seeds K of a ground truth, each counted from 0; this shard, from 0, of so many. Asked in turn for every
    shard, it is to give each pair once, to shards of sizes that differ by one at most. Once each shard has done the first
    ⌈M / shards⌉ of its pairs, every subset is to have the model of its first seed. And a seed that is added later comes at
    the end of each shard's list: pairs that are done stay where they are.
    """
    for subsets, seeds, shards in ((5, 3, 4), (6, 2, 4), (2, 2, 5), (7, 1, 2)):
        yield Case(
            f"{subsets} subsets, {seeds} seed{'s'[: seeds - 1]}, {shards} shards",
            (torch.ones(subsets, seeds, dtype=torch.float64), 0.0, 0.0, 0.0, 0.0),
            (subsets, seeds, 0, shards),
            ask=lambda function, m, k, _, n: _shared(function, m, k, n),
        )
