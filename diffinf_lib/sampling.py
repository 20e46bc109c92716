"""Sampling: images from a model by DDPM or DDIM, one seed a sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.data import Trajectories
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, Network, NoiseSchedule, predict_noise
from diffinf_lib.diffusion.schedule import SamplerName
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.shapes import Images, ImageShape

GENERATED_IDS = 1_000_000_000
"""Generated samples carry the ids from here on, so that their draws never meet those of a dataset's images."""


@dataclass(frozen=True)
class SamplingConfig:
    """How many samples a run keeps as queries, and how they are made.

    Attributes:
        count: number of samples.
        method: `ddpm` (Ho et al. 2020, algorithm 2) or `ddim` (Song et al. 2021, η = 0).
        steps: number of denoising steps, at most the schedule's timesteps.
    """

    count: int = 64
    method: SamplerName = "ddpm"
    steps: int = 1000

    def __post_init__(self) -> None:
        require(self.count > 0, f"samples={self.count}: give a positive number")
        require(self.method in ("ddpm", "ddim"), f"method={self.method!r}: give 'ddpm' or 'ddim'")
        require(self.steps > 0, f"steps={self.steps}: give a positive number")


@torch.no_grad()
def sample(
    model: Network,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    method: SamplerName = "ddpm",
    steps: int = 1000,
    batch_size: int = 256,
    progress: bool = False,
) -> Images:
    """Draw images from the model; sample i depends on its own seed only, not on the batch it is made in.

    Args:
        seeds: one seed a sample, or a number of samples (seeds 0, 1, …).
        shape: (C, H, W) of one image.
        steps: number of denoising steps.

    Returns:
        Images `[B, C, H, W]` in about [−1, 1], on the CPU.
    """
    return sample_states(
        model, seeds, shape, schedule=schedule, method=method, steps=steps, batch_size=batch_size, progress=progress,
        keep=(steps,),
    )[:, -1]  # fmt: skip


@torch.no_grad()
def sample_states(
    model: Network,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    method: SamplerName = "ddpm",
    steps: int = 1000,
    batch_size: int = 256,
    progress: bool = False,
    keep: Sequence[int] | None = None,
) -> Tensor:
    """Like `sample`, with the states on the way.

    Args:
        keep: which states to keep, counted in steps done: 0 is pure noise, `steps` the sample; default all of them.

    Returns:
        States `[B, len(keep), C, H, W]`, on the CPU, in the order of the steps.
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    require(len(seeds) > 0, "seeds: give at least one seed, or a positive number of samples")
    require(0 < steps <= schedule.timesteps, f"steps={steps}: give a number from 1 to {schedule.timesteps}")
    kept = set(range(steps + 1)) if keep is None else set(keep)
    batches = [seeds[start : start + batch_size] for start in range(0, len(seeds), batch_size)]
    parts = [_one_batch(model, part, shape, schedule, method, steps, kept, progress)[0] for part in batches]
    return torch.cat(parts)


@torch.no_grad()
def sample_trajectories(
    model: Network,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 256,
    progress: bool = False,
) -> Trajectories:
    """Samples by DDPM with every step of the schedule, with all states and all guesses of the image on the way.

    Their images are those of `sample` with the same seeds; ids count from `GENERATED_IDS`, there are no labels (−1).
    """
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    require(len(seeds) > 0, "seeds: give at least one seed, or a positive number of samples")
    steps = schedule.timesteps
    parts = [
        _one_batch(
            model, seeds[start : start + batch_size], shape, schedule, "ddpm", steps, set(range(steps + 1)), progress
        )
        for start in range(0, len(seeds), batch_size)
    ]
    states, guesses = (torch.cat(values) for values in zip(*parts, strict=True))
    count = len(seeds)
    ids = torch.arange(GENERATED_IDS, GENERATED_IDS + count)
    return Trajectories(states[:, -1], torch.full((count,), -1), ids, states, guesses)


def _one_batch(
    model: Network,
    seeds: list[int],
    shape: ImageShape,
    schedule: NoiseSchedule,
    method: SamplerName,
    steps: int,
    kept: set[int],
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """The states in `kept`, and the guesses of the image in each of them but the last."""
    scheduler = schedule.scheduler(method)
    scheduler.set_timesteps(steps)
    device = next(model.parameters()).device
    generators = [keyed_generator("sample", seed) for seed in seeds]
    state = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
    states = [state.cpu()] if 0 in kept else []
    guesses = []
    for done, timestep in enumerate(tqdm(scheduler.timesteps, desc="sample", disable=not progress), start=1):
        noise = predict_noise(model, state, timestep.to(device).expand(len(seeds)))
        stepped = scheduler.step(noise, timestep, state, generator=generators)
        state = stepped.prev_sample
        if done - 1 in kept:
            guesses.append(stepped.pred_original_sample.cpu())
        if done in kept:
            states.append(state.cpu())
    return torch.stack(states, dim=1), torch.stack(guesses, dim=1) if guesses else torch.empty(0)
