"""Batches: the draws that an objective is averaged over, with whatever else it needs of a sample's trajectory."""

from collections.abc import Iterator

import torch
from torch import Tensor

from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion.draws import DrawBatch, DrawConfig, iterate_draws
from diffinf_lib.diffusion.objectives import Objective
from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_generator


def objective_batches(
    images: ImageSet,
    draws: DrawConfig,
    objective: Objective,
    *,
    seed: int,
    stage: str,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 512,
    like: Tensor | None = None,
) -> Iterator[DrawBatch]:
    """All draws of all images as `iterate_draws` cuts them, ready for `objective`.

    Args:
        like: a tensor of the type and on the device that the batches are to have; default those of the images.

    Raises:
        ConfigurationError: the objective needs the states of trajectories, and `images` has none.
    """
    check_trajectories(images, objective, schedule)
    pixels = images.images if like is None else images.images.to(like)
    batches = iterate_draws(pixels, images.ids, draws, seed=seed, stage=stage, schedule=schedule, batch_size=batch_size)
    start = 0
    for batch in batches:
        if objective.on_trajectories:
            assert isinstance(images, Trajectories)
            yield _on_trajectory(batch, images, objective, schedule)
        elif objective.name == "output_probe":
            rows = torch.arange(start, start + len(batch.images))
            yield batch._replace(target=_probes(batch, rows % draws.count, images.ids, draws.count, seed, stage))
        else:
            yield batch
        start += len(batch.images)


def check_trajectories(images: ImageSet, objective: Objective, schedule: NoiseSchedule) -> None:
    """Refuse images without states where the objective needs them, before any work."""
    if not objective.on_trajectories:
        return
    require(isinstance(images, Trajectories), f"objective={objective.name!r}: it needs the states that a sample went through; "
            "give Trajectories, from sample_trajectories")  # fmt: skip
    assert isinstance(images, Trajectories)
    require(images.timesteps == schedule.timesteps, f"trajectories of {images.timesteps} steps: the schedule has "
            f"{schedule.timesteps}; sample with every step")  # fmt: skip


def _on_trajectory(batch: DrawBatch, samples: Trajectories, objective: Objective, schedule: NoiseSchedule) -> DrawBatch:
    """The draws' timesteps, in the states that the sampler was in then."""
    timesteps = batch.timesteps.cpu()
    place = schedule.timesteps - 1 - timesteps
    if objective.name == "journey_loss":
        return batch._replace(images=samples.guesses[batch.example, place].to(batch.images))
    left = schedule.alphas_cumprod.to(batch.images)[batch.timesteps].view(-1, 1, 1, 1)
    state = samples.states[batch.example, place].to(batch.images)
    noise = (state - left.sqrt() * batch.images) / (1 - left).sqrt()  # so that x_t is the state again
    return batch._replace(noise=noise, target=samples.states[batch.example, place + 1].to(batch.images))


def _probes(batch: DrawBatch, draw: Tensor, ids: Tensor, count: int, seed: int, stage: str) -> Tensor:
    """A direction of random signs for each draw, which depends on what the draw itself depends on only."""
    signs = torch.empty(batch.images.shape)
    for example in batch.example.unique().tolist():
        here = batch.example == example
        generator = keyed_generator("output-probe", seed, stage, int(ids[example]))
        drawn = torch.randint(2, (count, *batch.images.shape[1:]), generator=generator)
        signs[here] = 2.0 * drawn[draw[here]] - 1
    return signs.to(batch.images)
