"""Subsets: which training images each retrained model is shown, and which models a shard retrains."""

import torch
from jaxtyping import Bool
from torch import Tensor

from diffinf_lib.errors import require
from diffinf_lib.options import check_counts, check_shard
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.runs.run import Run
from diffinf_lib.shapes import Masks


def subset_mask(count: int, fraction: float, index: int, *, seed: int = 0) -> Bool[Tensor, "{count}"]:  # noqa: F821
    """Which training images subset `index` keeps, `[N]`, True = kept; exactly round(fraction · N) of them.

    A subset depends on its own index only, so a ground truth can be extended.
    """
    kept = round(fraction * count)
    require(0 < kept < count, f"subsets.fraction={fraction}: keeps {kept} of {count} images; give another share")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=keyed_generator("subset", seed, index))[:kept]] = True
    return mask


def subset_masks(run: Run, subsets: int) -> Masks:
    """The masks of the first `subsets` subsets, `[M, N]`."""
    total, fraction = len(run.data.train), run.preset.subsets.fraction
    return torch.stack([subset_mask(total, fraction, index, seed=run.seed) for index in range(subsets)])


def shard_of(subsets: int, seeds: int, shard: int, shards: int) -> list[tuple[int, int]]:
    """The (subset, seed) pairs of one shard, seeds outermost: whole subsets of pairs come early.

    Raises:
        ConfigurationError: there is no such shard.
    """
    check_counts(subsets=subsets, seeds=seeds)
    check_shard(shard, shards)
    pairs = [(subset, seed) for seed in range(seeds) for subset in range(subsets)]
    return pairs[shard::shards]


def model_name(subset: int, seed: int) -> str:
    """The name of one retrained model, in files."""
    return f"k{subset:03d}-r{seed}"
