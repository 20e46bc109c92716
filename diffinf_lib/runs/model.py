"""Stages of the model: the model trained on everything, and the queries drawn from it."""

from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import QuerySet
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.errors import require
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.run import Run
from diffinf_lib.sampling import GENERATED_IDS, sample, sample_seeds, sample_trajectories
from diffinf_lib.shapes import Images
from diffinf_lib.training import TrainingResult

QUERY_SETS = get_args(QuerySet)


def full_model(run: Run) -> TrainingResult:
    """The model trained on all training images."""
    return run.model


def generated_queries(run: Run) -> ImageSet:
    """Samples of the full model, as queries."""
    preset = run.preset

    def images() -> dict[str, Images]:
        return {"images": sample(
            run.model.model, sample_seeds(run.seed, run.preset.sampling.count), run.data.train.shape,
            method=preset.sampling.method, steps=preset.sampling.steps, progress=run.progress,
        )}  # fmt: skip

    return run.held("samples", lambda: as_queries(_sampled(run, "samples").tensors(images)["images"]))


def _sampled(run: Run, stage: str) -> Kept:
    return run.kept(stage, sampling=run.preset.sampling, shape=run.data.train.shape)


def generated_trajectories(run: Run) -> Trajectories:
    """The generated queries with the states the sampler went through, sampled once more and kept.

    Raises:
        ConfigurationError: the preset samples by DDIM or in fewer steps.
    """
    preset = run.preset
    require(preset.has_trajectories, f"sampling={preset.sampling.method}, {preset.sampling.steps} steps: trajectories need "
            f"ddpm with all {preset.process.num_train_timesteps} steps")  # fmt: skip

    def states() -> dict[str, Float[Tensor, "N _states C H W"]]:
        found = sample_trajectories(
            run.model.model,
            sample_seeds(run.seed, run.preset.sampling.count),
            run.data.train.shape,
            progress=run.progress,
        )
        return {"states": found.states, "guesses": found.guesses}

    def trajectories() -> Trajectories:
        tensors, images = _sampled(run, "trajectories").tensors(states), generated_queries(run)
        return Trajectories(images.images, images.labels, images.ids, tensors["states"], tensors["guesses"])

    return run.held("trajectories", trajectories)


def as_queries(images: Images) -> ImageSet:
    """Generated images as a set of queries: ids from `GENERATED_IDS` on, no labels (−1)."""
    count = len(images)
    return ImageSet(images, torch.full((count,), -1), torch.arange(GENERATED_IDS, GENERATED_IDS + count))


def query_sets(run: Run) -> dict[str, ImageSet]:
    """The queries of a run by name: `held-out` images of the dataset, and `generated` ones."""
    return {"held-out": run.data.queries, "generated": generated_queries(run)}


def measured_queries(run: Run) -> dict[str, ImageSet]:
    """The same, the generated ones with their trajectories where the preset measures along these."""
    return query_sets(run) | ({"generated": generated_trajectories(run)} if run.preset.measures_trajectories else {})


def queries(run: Run, name: str) -> ImageSet:
    """One set of queries; the generated ones need the full model, the held-out ones do not."""
    require(name in QUERY_SETS, f"queries={name!r}: give one of {', '.join(QUERY_SETS)}")
    return run.data.queries if name == "held-out" else generated_queries(run)
