"""Model stages: the model trained on everything, and the queries drawn from it."""

import torch
from torch import Tensor

from diffinf_lib.artifacts import read_json, read_tensors, stage, write_tensors
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.errors import require
from diffinf_lib.models import build_model
from diffinf_lib.sampling import GENERATED_IDS, sample, sample_trajectories
from diffinf_lib.stages.run import Run
from diffinf_lib.training import TrainingResult, train

QUERY_SETS = ("held-out", "generated")


def full_model(run: Run) -> TrainingResult:
    """The model trained on all training images."""
    preset = run.preset
    return train(
        build_model(preset.unet, preset.process, seed=run.seed), run.data.train, preset.training, seed=run.seed,
        out=run.path("model"), device=run.device, progress=run.progress,
    )  # fmt: skip


def generated_queries(run: Run) -> ImageSet:
    """Samples of the full model, as queries."""
    preset, model = run.preset, full_model(run).model
    identity = {"sampling": preset.sampling, "model": model_identity(run), "seed": run.seed}
    file = run.path("samples", "samples.safetensors")
    with stage(file.parent, identity, name="samples") as needed:
        if needed:
            images = sample(
                model, _sample_seeds(run), run.data.train.shape, method=preset.sampling.method,
                steps=preset.sampling.steps, progress=run.progress,
            )  # fmt: skip
            write_tensors(file, {"images": images})
    return as_queries(read_tensors(file)["images"])


def _sample_seeds(run: Run) -> list[int]:
    first = run.seed * GENERATED_IDS
    return list(range(first, first + run.preset.sampling.count))


def has_trajectories(run: Run) -> bool:
    """Whether the generated queries come by every step of the reverse process, each with a density."""
    sampling = run.preset.sampling
    return sampling.method == "ddpm" and sampling.steps == run.preset.process.timesteps


def generated_trajectories(run: Run) -> Trajectories:
    """The generated queries with the states the sampler went through, sampled once more and kept.

    Raises:
        ConfigurationError: the preset samples by DDIM or in fewer steps.
    """
    preset, model = run.preset, full_model(run).model
    require(has_trajectories(run), f"sampling={preset.sampling.method}, {preset.sampling.steps} steps: trajectories need ddpm "
            f"with all {preset.process.timesteps} steps")  # fmt: skip
    identity = {"sampling": preset.sampling, "model": model_identity(run), "seed": run.seed}
    file = run.path("trajectories", "trajectories.safetensors")
    with stage(file.parent, identity, name="trajectories") as needed:
        if needed:
            found = sample_trajectories(model, _sample_seeds(run), run.data.train.shape, progress=run.progress)
            write_tensors(file, {"states": found.states, "guesses": found.guesses})
    tensors, images = read_tensors(file), generated_queries(run)
    return Trajectories(images.images, images.labels, images.ids, tensors["states"], tensors["guesses"])


def as_queries(images: Tensor) -> ImageSet:
    """Generated images as a set of queries: ids from `GENERATED_IDS` on, no labels (−1)."""
    count = len(images)
    return ImageSet(images, torch.full((count,), -1), torch.arange(GENERATED_IDS, GENERATED_IDS + count))


def model_identity(run: Run) -> str:
    """The digest of the full model's training, under which everything made from it is filed."""
    if not run.path("model", "manifest.json").exists():
        full_model(run)
    return str(read_json(run.path("model", "manifest.json"))["configuration_digest"])


def query_sets(run: Run) -> dict[str, ImageSet]:
    """The queries of a run by name: `held-out` images of the dataset, and `generated` ones."""
    return {"held-out": run.data.queries, "generated": generated_queries(run)}


def measured_queries(run: Run) -> dict[str, ImageSet]:
    """The same, the generated ones with their trajectories where there are any."""
    sets = query_sets(run)
    return sets | {"generated": generated_trajectories(run)} if has_trajectories(run) else sets


def queries(run: Run, name: str) -> ImageSet:
    """One set of queries; the generated ones need the full model, the held-out ones do not."""
    require(name in QUERY_SETS, f"queries={name!r}: give one of {', '.join(QUERY_SETS)}")
    return run.data.queries if name == "held-out" else generated_queries(run)
