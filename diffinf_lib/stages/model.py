"""Model stages: the model trained on everything, and the queries drawn from it."""

import torch
from torch import Tensor

from diffinf_lib.artifacts import read_json, read_tensors, stage, write_tensors
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.models import build_unet
from diffinf_lib.sampling import GENERATED_IDS, sample
from diffinf_lib.stages.run import Run
from diffinf_lib.training import TrainingResult, train

QUERY_SETS = ("held-out", "generated")


def full_model(run: Run) -> TrainingResult:
    """The model trained on all training images."""
    preset = run.preset
    return train(
        build_unet(preset.unet, seed=run.seed), run.data.train, preset.training, schedule=preset.schedule,
        seed=run.seed, out=run.path("model"), device=run.device, progress=run.progress,
    )  # fmt: skip


def generated_queries(run: Run) -> ImageSet:
    """Samples of the full model, as queries."""
    preset, model = run.preset, full_model(run).model
    identity = {"sampling": preset.sampling, "model": model_identity(run), "seed": run.seed}
    file = run.path("samples", "samples.safetensors")
    with stage(file.parent, identity, name="samples") as needed:
        if needed:
            seeds = range(run.seed * GENERATED_IDS, run.seed * GENERATED_IDS + preset.sampling.count)
            images = sample(
                model, list(seeds), run.data.train.shape, schedule=preset.schedule,
                method=preset.sampling.method, steps=preset.sampling.steps, progress=run.progress,
            )  # fmt: skip
            write_tensors(file, {"images": images})
    return as_queries(read_tensors(file)["images"])


def as_queries(images: Tensor) -> ImageSet:
    """Generated images as a set of queries: ids from `GENERATED_IDS` on, no labels (−1)."""
    count = len(images)
    return ImageSet(images, torch.full((count,), -1), torch.arange(GENERATED_IDS, GENERATED_IDS + count))


def model_identity(run: Run) -> str:
    """The digest of the full model's training, under which everything made from it is filed."""
    return str(read_json(run.path("model", "manifest.json"))["configuration_digest"])


def query_sets(run: Run) -> dict[str, ImageSet]:
    """The queries of a run by name: `held-out` images of the dataset, and `generated` ones."""
    return {"held-out": run.data.queries, "generated": generated_queries(run)}


def queries(run: Run, name: str) -> ImageSet:
    """One set of queries; the generated ones need the full model, the held-out ones do not."""
    require(name in QUERY_SETS, f"queries={name!r}: give one of {', '.join(QUERY_SETS)}")
    return run.data.queries if name == "held-out" else generated_queries(run)
