"""Batches: the draws that an expectation is taken over, with whatever else it needs of a sample's trajectory."""

from collections.abc import Iterator
from typing import Any

import torch

from diffinf_lib.configuration import Expectation, Objective, Process
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion.denoiser import Denoiser, require_denoiser
from diffinf_lib.diffusion.draws import DrawBatch, iterate_draws
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Ids, ImageBatch


@own_settings
def expectation_batches(
    expectation: Expectation, model: Denoiser, images: ImageSet, batch_size: int
) -> Iterator[DrawBatch]:
    """The draws of an expectation; see `Expectation.batches`."""
    process, objective = require_denoiser(model).process, expectation.objective
    check_trajectories(images, objective, process)
    key: dict[str, Any] = {"seed": expectation.seed, "purpose": expectation.purpose}
    batches = iterate_draws(
        images.images, images.ids, expectation.draws, **key, process=process, batch_size=batch_size,
        conditions=model.conditions_of(images), no_class=model.no_class, device=model.device, dtype=model.dtype,
    )  # fmt: skip
    for batch in batches:
        if objective.on_trajectories:
            assert isinstance(images, Trajectories)
            batch = _on_trajectory(batch, images, objective, process)
        elif objective.name == "output_probe":
            batch = batch._replace(held_against=_probes(batch, images.ids, expectation.draws.count, **key))
        if expectation.timestep_range is not None:
            low, high = expectation.timestep_range
            batch = batch.rows(((batch.timesteps >= low) & (batch.timesteps < high)).nonzero().squeeze(1))
        if len(batch.images):
            yield batch


def check_images(**options: object) -> None:
    """Refuse what is no `ImageSet` or has no images, by name.

    Raises:
        ConfigurationError: for the first that is none.
    """
    for name, images in options.items():
        require(isinstance(images, ImageSet), f"{name}: a {type(images).__name__} is no ImageSet; give di.ImageSet(images, "
                "labels, ids), which di.runs.as_queries makes of a tensor")  # fmt: skip
        assert isinstance(images, ImageSet)
        require(len(images) > 0, f"{name}: there are no images; give at least one")


def check_trajectories(images: ImageSet, objective: Objective, process: Process) -> None:
    """Refuse images without states where the objective needs them, before any work."""
    if not objective.on_trajectories:
        return
    require(isinstance(images, Trajectories), f"objective={objective.name!r}: it needs the states that a sample went through; "
            "give Trajectories, from sample_trajectories")  # fmt: skip
    assert isinstance(images, Trajectories)
    require(images.steps == process.num_train_timesteps, f"trajectories of {images.steps} steps: the process has "
            f"{process.num_train_timesteps}; sample with every step")  # fmt: skip


def _on_trajectory(batch: DrawBatch, samples: Trajectories, objective: Objective, process: Process) -> DrawBatch:
    """The draws' timesteps, in the states that the sampler was in then."""
    place = process.num_train_timesteps - 1 - batch.timesteps.cpu()
    if objective.name == "journey_loss":
        guesses = samples.guesses[batch.example, place].to(batch.images)
        state = process.noisy(guesses, batch.timesteps, batch.noise)
        return batch._replace(
            images=guesses, state=state, target=process.target_of(guesses, batch.timesteps, batch.noise)
        )
    state, following = (samples.states[batch.example, place + step].to(batch.images) for step in (0, 1))
    here = process.at(batch.timesteps, batch.images)
    noise = (state - here.signal * batch.images) / here.noise
    target = process.target_of(batch.images, batch.timesteps, noise)
    return batch._replace(noise=noise, state=state, target=target, held_against=following)


def _probes(batch: DrawBatch, ids: Ids, count: int, seed: int, purpose: str) -> ImageBatch:
    """A direction of random signs for each draw, which depends on what the draw itself depends on only."""
    signs = torch.empty(batch.images.shape)
    for example in batch.example.unique().tolist():
        here = batch.example == example
        generator = keyed_generator("output-probe", seed, purpose, int(ids[example]))
        drawn = torch.randint(2, (count, *batch.images.shape[1:]), generator=generator)
        signs[here] = 2.0 * drawn[batch.draw[here]] - 1
    return signs.to(batch.images)
