"""Draws: the (timestep, noise) pairs over which every expectation in this project is averaged.

One draw is (t, ε). The draws of an example depend on (seed, purpose, example id) only, or, where all examples share them, on
(seed, purpose): a gradient, a measurement and a score are the same whatever the batch size, the order of the data or the
number of workers.

A draw has a weight: an expectation over draws is the mean of weight · value. All weights are 1 unless some timesteps are
drawn more often than others (importance sampling); the weights then undo the preference.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from diffinf_lib.configuration import DrawConfig, Process, TimestepRule
from diffinf_lib.diffusion.conditions import Conditions, drop_conditions
from diffinf_lib.diffusion.reverse import added_variances
from diffinf_lib.errors import require
from diffinf_lib.options import check_counts
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Ids, ImageBatch, Images, ImageShape, PerDraw, PerTimestep, Timesteps

UNIFORM_SHARE = 0.1
"""Share of uniform timesteps in the rules `signal` and `elbo`; no weight exceeds its inverse (a defensive mixture,
Hesterberg 1995)."""


class Draws(NamedTuple):
    """The draws of one example; the mean of draw_weights · value over them estimates an expectation.

    In `dropped` draws the network is not told its conditions.
    """

    timesteps: Int[Tensor, "S"]
    noise: Float[Tensor, "S C H W"]
    draw_weights: Float[Tensor, "S"]
    dropped: Bool[Tensor, "S"]


class DrawBatch(NamedTuple):
    """Some draws of some examples, one row a draw.

    Attributes:
        example: place of the draw's example among the images.
        draw: number of the draw among its example's, from 0.
        state: x_t, what the network sees.
        target: y_t, what its output is held against.
        conditions: what the network is told besides, by name, a row a draw.
        held_against: what some objectives take besides: the next state of a trajectory, or a random direction.
    """

    images: ImageBatch
    timesteps: Timesteps
    noise: ImageBatch
    example: Int[Tensor, "B"]
    draw: Int[Tensor, "B"]
    draw_weights: PerDraw
    state: ImageBatch
    target: ImageBatch
    conditions: Conditions = MappingProxyType({})
    held_against: ImageBatch | None = None

    def rows(self, which: Int[Tensor, "n"] | Bool[Tensor, "B"] | slice) -> "DrawBatch":
        """Some rows of the batch: by position, where a mask is True, or a slice."""

        def taken(field: Shaped[Tensor, "B ..."]) -> Shaped[Tensor, "n ..."]:
            return field[which if isinstance(which, slice) else which.to(field.device)]

        fields = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
        conditions = {name: taken(value) for name, value in self.conditions.items()}
        return self._replace(**{name: taken(value) for name, value in fields.items()}, conditions=conditions)


@own_settings
def example_draws(
    example_id: int,
    shape: ImageShape,
    config: DrawConfig,
    *,
    seed: int,
    purpose: str,
    process: Process,
) -> Draws:
    """The draws of one example.

    The part of the loss gradient that is odd in ε has zero mean; an antithetic pair cancels it exactly, which leaves
    less variance than the same number of independent draws. Draws come in order of slice, a pair side by side, so any
    run of consecutive rows holds whole pairs and neighbouring timesteps.

    Args:
        example_id: the example's id in its dataset, not its position in a batch.
        shape: (C, H, W) of one image.
        purpose: what the draws are for; different purposes get independent draws.

    Returns:
        timesteps `[S]`, noise `[S, C, H, W]` and draw_weights `[S]`, float32.
    """
    key = ("shared-draws", seed, purpose) if config.shared else ("draws", seed, purpose, example_id)
    generator = keyed_generator(*key)
    pairs = 2 if config.noise_rule == "antithetic" else 1
    distinct = config.count // pairs
    probabilities = timestep_probabilities(config, process)
    whole = config.timestep is None  # an expectation over all timesteps, not that at one
    timesteps = _timesteps(distinct, config.timestep_rule, probabilities, generator)
    noise = torch.randn(distinct, *shape, generator=generator)
    if pairs == 2:
        timesteps = timesteps.repeat_interleave(2)
        noise = torch.stack([noise, -noise], dim=1).flatten(0, 1)
    draw_weights = 1 / (process.num_train_timesteps * probabilities[timesteps]) if whole else torch.ones(len(timesteps))
    # Drawn last, so that timesteps and noise are the same whether or not conditions are dropped; a pair stays one
    dropped = torch.rand(distinct, generator=generator).repeat_interleave(pairs) < config.drop_condition
    return Draws(timesteps, noise, draw_weights.float(), dropped)


@own_settings
def independent_draws(
    count: int,
    shape: ImageShape,
    process: Process,
    generator: torch.Generator,
    drop_condition: float = 0.0,
) -> Draws:
    """One draw for each row of a batch, uniform in t and independent: what a step of training takes (Ho et al. 2020,
    algorithm 1).

    Args:
        drop_condition: chance that a row's network is not told its conditions.
    """
    timesteps = torch.randint(process.num_train_timesteps, (count,), generator=generator)
    noise = torch.randn(count, *shape, generator=generator)
    never = torch.zeros(count, dtype=torch.bool)
    dropped = torch.rand(count, generator=generator) < drop_condition if drop_condition else never
    return Draws(timesteps, noise, torch.ones(count), dropped)


def _timesteps(
    count: int, rule: TimestepRule, probabilities: PerTimestep, generator: torch.Generator
) -> Int[Tensor, "S"]:
    total = len(probabilities)
    if rule == "uniform":
        return torch.randint(total, (count,), generator=generator)
    offset = torch.full((count,), 0.5) if rule == "grid" else torch.rand(count, generator=generator)
    position = (torch.arange(count) + offset.double()) * (total / count)
    if rule in ("signal", "elbo", "importance", "single"):
        position = torch.searchsorted(probabilities.cumsum(0), position / total, right=True)
    return position.long().clamp(max=total - 1)


@lru_cache
@own_settings
def timestep_probabilities(config: DrawConfig, process: Process) -> PerTimestep:
    """p(t), how often each timestep is drawn: `[T]`, float64, sums to 1.

    A proposal is a density that is constant on equal slices of [0, T), and p(t) its integral from t to t + 1: a timestep
    that a boundary between slices cuts gets its share of both.
    """
    total = process.num_train_timesteps
    if config.timestep is not None:
        require(0 <= config.timestep < total, f"timestep={config.timestep}: give a number from 0 to {total - 1}")
        return torch.nn.functional.one_hot(torch.tensor(config.timestep), total).double()
    if config.timestep_rule in ("signal", "elbo"):
        wanted = process.alphas_cumprod if config.timestep_rule == "signal" else elbo_weights(process)
        return (1 - UNIFORM_SHARE) * wanted / wanted.sum() + UNIFORM_SHARE / total
    heights = torch.tensor(config.proposal or (1.0,), dtype=torch.float64)
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), heights.cumsum(0) / heights.sum()])
    edges = torch.arange(total + 1, dtype=torch.float64) * (len(heights) / total)
    below = edges.long().clamp(max=len(heights) - 1)
    return torch.lerp(cumulative[below], cumulative[below + 1], edges - below).diff()


def elbo_weights(process: Process) -> PerTimestep:
    """w_t, the weight that the ELBO gives the squared error of the target at t with σ_t² = β_t (Ho et al. 2020, eq. 12).

    For noise it is β_t / (2 α_t (1 − ᾱ_t)). `[T]`, float64.
    """
    process.check_solvable()
    here = process.coefficients
    before = torch.cat([here.signal.new_ones(1), here.signal[:-1]])
    return before.square() * added_variances(process) / (2 * (here.noise * here.determinant).square())


@own_settings
def iterate_draws(
    images: Images,
    ids: Ids,
    config: DrawConfig,
    *,
    seed: int,
    purpose: str,
    process: Process,
    batch_size: int = 512,
    conditions: Mapping[str, Shaped[Tensor, "N ..."]] = MappingProxyType({}),
    no_class: int | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Iterator[DrawBatch]:
    """All draws of all examples, in the order of the examples, cut into batches of `batch_size` draws.

    Only the images and the noise of one batch are on the device, and in its type, at a time.

    Args:
        conditions: what the network is told of each image, `[N, ...]` by name.
        no_class: the class it is told in draws that drop their condition.
        device, dtype: of the batches; default those of the images.

    Raises:
        ConfigurationError: conditions are to be dropped, and there is no label that stands for none.
    """
    require(config.drop_condition == 0 or no_class is not None, f"drop_condition={config.drop_condition}: this network has no "
            "label for no class; give di.Denoiser(network, process, no_class=...), or draws that drop nothing")  # fmt: skip
    check_counts(batch_size=batch_size)
    shape = (images.shape[1], images.shape[2], images.shape[3])
    total = len(ids) * config.count
    made: tuple[int, Draws] | None = None
    for start in range(0, total, batch_size):
        parts = []
        for example in range(start // config.count, (min(start + batch_size, total) - 1) // config.count + 1):
            if made is None or (made[0] != example and not config.shared):
                made = (
                    example,
                    example_draws(int(ids[example]), shape, config, seed=seed, purpose=purpose, process=process),
                )
            low = max(start - example * config.count, 0)
            high = min(start + batch_size - example * config.count, config.count)
            parts.append(Draws(*(value[low:high] for value in made[1])))
        rows = torch.arange(start, min(start + batch_size, total))
        drawn = Draws(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
        places, like = rows // config.count, images.new_empty(0, device=device, dtype=dtype)
        pixels = images[places.to(images.device)].to(like)
        yield _batch(pixels, drawn, places, rows % config.count, process, conditions, no_class)


def _batch(
    pixels: ImageBatch,
    drawn: Draws,
    example: Int[Tensor, "B"],
    draw: Int[Tensor, "B"],
    process: Process,
    conditions: Mapping[str, Shaped[Tensor, "N ..."]],
    no_class: int | None,
) -> DrawBatch:
    """Draws with their images, states and targets, on the images' device and in their type."""
    timesteps, noise = drawn.timesteps.to(pixels.device), drawn.noise.to(pixels)
    told = {name: values[example.to(values.device)].to(pixels.device) for name, values in conditions.items()}
    told = drop_conditions(told, drawn.dropped, no_class)
    return DrawBatch(
        pixels, timesteps, noise, example, draw, drawn.draw_weights.to(pixels), process.noisy(pixels, timesteps, noise),
        process.target_of(pixels, timesteps, noise), told,
    )  # fmt: skip
