"""Sampling: images from a model by DDPM, DDIM or Euler steps, one seed a sample."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.configuration import SamplerName
from diffinf_lib.data import Trajectories
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.diffusion.conditions import Labels, conditions_of_samples
from diffinf_lib.diffusion.denoiser import evaluating
from diffinf_lib.errors import require
from diffinf_lib.finite import check_samples_finite
from diffinf_lib.options import check_counts
from diffinf_lib.precision import require_full_precision
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Condition, Images, ImageShape

States = tuple[Float[Tensor, "N states C H W"], Float[Tensor, "N guesses C H W"]]

GENERATED_IDS = 1_000_000_000
"""Generated samples carry the ids from here on, so that their draws never meet those of a dataset's images."""


def sample_seeds(seed: int, count: int) -> list[int]:
    """A seed for each of `count` samples; those of different `seed` have none in common."""
    first = seed * GENERATED_IDS
    return list(range(first, first + count))


@own_settings
@torch.no_grad()
def sample(
    model: Denoiser,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    method: SamplerName | None = None,
    steps: int | None = None,
    labels: Labels = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Images:
    """Draw images from the model; sample i depends on its own seed only, not on the batch it is made in.

    Args:
        seeds: one seed a sample, or a number of samples (seeds 0, 1, …).
        shape: (C, H, W) of one image.
        method: default `ddpm`, or `euler` for a flow.
        steps: number of denoising steps; default all timesteps of the process.
        labels: the class of each sample, for a network that is told apart by classes.

    Returns:
        Images `[N, C, H, W]` in about [−1, 1], on the CPU.

    Raises:
        ConfigurationError: weights in half precision, labels that are missing or unknown, a sampler that the process does not
            take, or a network whose output is not finite.
    """
    steps = require_denoiser(model).process.num_train_timesteps if steps is None else steps
    return sample_states(
        model, seeds, shape, method=method, steps=steps, labels=labels, batch_size=batch_size, progress=progress,
        keep=(steps,),
    )[:, -1]  # fmt: skip


@own_settings
@torch.no_grad()
def sample_states(
    model: Denoiser,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    method: SamplerName | None = None,
    steps: int | None = None,
    labels: Labels = None,
    batch_size: int = 256,
    progress: bool = False,
    keep: Sequence[int] | None = None,
) -> Float[Tensor, "N states C H W"]:
    """Like `sample`, with the states on the way.

    Args:
        keep: which states to keep, counted in steps done: 0 is pure noise, `steps` the sample; default all of them.

    Returns:
        States `[N, len(keep), C, H, W]`, on the CPU, in the order of the steps.
    """
    steps = require_denoiser(model).process.num_train_timesteps if steps is None else steps
    kept = set(range(steps + 1)) if keep is None else set(keep)
    return _sampled(model, seeds, shape, method, steps, kept, labels, batch_size, progress)[0]


@own_settings
@torch.no_grad()
def sample_trajectories(
    model: Denoiser,
    seeds: int | Sequence[int],
    shape: ImageShape,
    *,
    labels: Labels = None,
    batch_size: int = 256,
    progress: bool = False,
) -> Trajectories:
    """Samples by DDPM with every step of the process, with all states and all guesses of the image on the way.

    Their images are those of `sample` with the same seeds; ids count from `GENERATED_IDS`, labels are those given, or −1.
    """
    steps = require_denoiser(model).process.num_train_timesteps
    states, guesses = _sampled(
        model, seeds, shape, "ddpm", steps, set(range(steps + 1)), labels, batch_size, progress
    )  # fmt: skip
    count = len(states)
    told = torch.full((count,), -1) if labels is None else torch.as_tensor(labels)
    return Trajectories(states[:, -1], told, torch.arange(GENERATED_IDS, GENERATED_IDS + count), states, guesses)


def _sampled(
    model: Denoiser,
    seeds: int | Sequence[int],
    shape: ImageShape,
    method: SamplerName | None,
    steps: int,
    kept: set[int],
    labels: Labels,
    batch_size: int,
    progress: bool,
) -> States:
    """The states in `kept`, and the guesses of the image in each of them but the last, batch by batch."""
    process, seeds = require_denoiser(model).process, list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    require_full_precision(model)
    require(len(seeds) > 0, "seeds: give at least one seed, or a positive number of samples")
    check_counts(batch_size=batch_size)
    process.check_sampler(method, steps)
    told = conditions_of_samples(labels, len(seeds), model.classes)
    parts = []
    for start in range(0, len(seeds), batch_size):
        rows = slice(start, start + batch_size)
        here = {name: values[rows].to(model.device) for name, values in told.items()}
        with evaluating(model):
            parts.append(_one_batch(model, seeds[rows], shape, method, steps, kept, here, progress))
    states, guesses = zip(*parts, strict=True)
    return torch.cat(states), torch.cat(guesses)


def _one_batch(
    model: Denoiser,
    seeds: list[int],
    shape: ImageShape,
    method: SamplerName | None,
    steps: int,
    kept: set[int],
    told: dict[str, Condition],
    progress: bool,
) -> States:
    scheduler = model.process.scheduler(method)
    scheduler.set_timesteps(steps)
    generators = [keyed_generator("sample", seed) for seed in seeds]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    state = noise.to(model.device, model.dtype)
    states = [state.cpu()] if 0 in kept else []
    guesses = []
    for done, time in enumerate(tqdm(scheduler.timesteps, desc="sample", disable=not progress), start=1):
        output = model.at_times(state, time.to(model.device).expand(len(seeds)), **told)
        check_samples_finite(output, model, seeds, float(time))  # a sampler that clips would hide infinity
        stepped = scheduler.step(output, time, state, generator=generators)
        state = stepped.prev_sample
        check_samples_finite(state, model, seeds, float(time))
        if done - 1 in kept and "pred_original_sample" in stepped:
            guesses.append(stepped.pred_original_sample.cpu())
        if done in kept:
            states.append(state.cpu())
    return torch.stack(states, dim=1), torch.stack(guesses, dim=1) if guesses else torch.empty(len(seeds), 0, *shape)
