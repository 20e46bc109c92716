"""Draws: the (timestep, noise) pairs over which every expectation in this project is averaged.

One draw is (t, ε). The draws of an example depend on (seed, stage, example id) only, so a gradient, a measurement and a
score are the same whatever the batch size, the order of the data or the number of workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.shapes import ImageShape

TimestepRule = Literal["stratified", "uniform", "grid"]
NoiseRule = Literal["antithetic", "independent"]


class Draws(NamedTuple):
    """The draws of one example."""

    timesteps: Int[Tensor, "S"]
    noise: Float[Tensor, "S C H W"]


class DrawBatch(NamedTuple):
    """Some draws of some examples, one row a draw."""

    images: Float[Tensor, "B C H W"]
    timesteps: Int[Tensor, "B"]
    noise: Float[Tensor, "B C H W"]
    example: Int[Tensor, "B"]


@dataclass(frozen=True)
class DrawConfig:
    """How many draws an example gets, and how they are spread.

    Attributes:
        count: number of draws S of each example.
        timesteps: `stratified` (one uniform timestep in each of equal slices of 0..T−1), `uniform` (independent), or
            `grid` (the middle of each slice, the same for every example: the evenly spaced protocol of D-TRAK).
        noise: `antithetic` (each timestep serves two draws, with ε and −ε) or `independent`.
    """

    count: int = 250
    timesteps: TimestepRule = "stratified"
    noise: NoiseRule = "antithetic"

    def __post_init__(self) -> None:
        require(self.count > 0, f"draws={self.count}: give a positive number")
        require(self.timesteps in ("stratified", "uniform", "grid"),
                f"timesteps={self.timesteps!r}: give 'stratified', 'uniform' or 'grid'")  # fmt: skip
        require(self.noise in ("antithetic", "independent"),
                f"noise={self.noise!r}: give 'antithetic' or 'independent'")  # fmt: skip
        require(self.noise == "independent" or self.count % 2 == 0,
                f"draws={self.count}: antithetic draws come in pairs, give an even number or noise='independent'")  # fmt: skip


def example_draws(
    example_id: int,
    shape: ImageShape,
    config: DrawConfig,
    *,
    seed: int,
    stage: str,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
) -> Draws:
    """The draws of one example.

    The part of the loss gradient that is odd in ε has zero mean; an antithetic pair cancels it exactly, which leaves
    less variance than the same number of independent draws. Draws come in order of slice, a pair side by side, so any
    run of consecutive rows holds whole pairs and neighbouring timesteps.

    Args:
        example_id: the example's id in its dataset, not its position in a batch.
        shape: (C, H, W) of one image.
        stage: what the draws are for; different stages get independent draws.

    Returns:
        timesteps `[S]` and noise `[S, C, H, W]`, float32.
    """
    generator = keyed_generator("draws", seed, stage, example_id)
    pairs = 2 if config.noise == "antithetic" else 1
    distinct = config.count // pairs
    timesteps = _timesteps(distinct, config.timesteps, schedule.timesteps, generator)
    noise = torch.randn(distinct, *shape, generator=generator)
    if pairs == 2:
        timesteps = timesteps.repeat_interleave(2)
        noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)
    return Draws(timesteps, noise)


def _timesteps(count: int, rule: TimestepRule, total: int, generator: torch.Generator) -> Int[Tensor, "S"]:
    if rule == "uniform":
        return torch.randint(total, (count,), generator=generator)
    offset = torch.full((count,), 0.5) if rule == "grid" else torch.rand(count, generator=generator)
    position = (torch.arange(count) + offset.double()) * (total / count)
    return position.long().clamp(max=total - 1)


def iterate_draws(
    images: Float[Tensor, "N C H W"],
    ids: Int[Tensor, "N"],
    config: DrawConfig,
    *,
    seed: int,
    stage: str,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 512,
) -> Iterator[DrawBatch]:
    """All draws of all examples, in the order of the examples, cut into batches of `batch_size` draws.

    Only the noise of the examples of one batch is in memory at a time.
    """
    require(batch_size > 0, f"batch_size={batch_size}: give a positive number")
    shape = (images.shape[1], images.shape[2], images.shape[3])
    total = len(ids) * config.count
    made: tuple[int, Draws] | None = None
    for start in range(0, total, batch_size):
        parts = []
        for example in range(start // config.count, (min(start + batch_size, total) - 1) // config.count + 1):
            if made is None or made[0] != example:
                draws = example_draws(int(ids[example]), shape, config, seed=seed, stage=stage, schedule=schedule)
                made = (example, draws)
            low = max(start - example * config.count, 0)
            high = min(start + batch_size - example * config.count, config.count)
            parts.append((example, high - low, made[1].timesteps[low:high], made[1].noise[low:high]))
        example_index = torch.cat([torch.full((size,), example) for example, size, _, _ in parts])
        yield DrawBatch(
            images=images[example_index.to(images.device)],
            timesteps=torch.cat([timesteps for _, _, timesteps, _ in parts]).to(images.device),
            noise=torch.cat([noise for _, _, _, noise in parts]).to(images),
            example=example_index,
        )
