"""Attribution stages: curvature, gradients, scores, and their LDS against a ground truth."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffinf_lib.artifacts import plain, read_arrays, stage, write_arrays, write_json
from diffinf_lib.attribution import influence
from diffinf_lib.attribution.influence import check_dampings
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation import GroundTruth, LDSResult, lds
from diffinf_lib.stages.model import full_model, model_identity, queries
from diffinf_lib.stages.run import Run


def curvature_of_run(run: Run) -> Curvature:
    """The curvature of the full model."""
    preset = run.preset
    return fit_curvature(
        full_model(run).model, run.data.train, preset.curvature, seed=run.seed, schedule=preset.schedule,
        out=run.path("curvature"), checkpoint_seconds=5.0, progress=run.progress,
    )  # fmt: skip


def influence_scores(run: Run, query_set: str = "held-out", *, damping: Sequence[float] | None = None) -> Tensor:
    """Influence of every training image on every query, `[D, Q, N]`, for each damping; default: the preset's.

    Gradients are kept in the run folder: another damping or another set of queries costs little.
    """
    preset = run.preset
    dampings = check_dampings(damping or [preset.damping])
    images = queries(run, query_set)
    curvature = curvature_of_run(run)
    identity = {
        "model": model_identity(run), "curvature": curvature.digest, "query_set": query_set, "dampings": dampings,
        "approximation": preset.curvature.approximation, "measurement": preset.measurement,
        "gradient_draws": preset.gradient_draws, "query_ids": images.ids.tolist(), "seed": run.seed,
    }  # fmt: skip
    folder = run.path("scores", f"{query_set}-{'-'.join(f'{value:g}' for value in dampings)}")
    with stage(folder, identity, name="scores") as needed:
        if needed:
            scores = influence(
                full_model(run).model, curvature, run.data.train, images, measurement=preset.measurement,
                draws=preset.gradient_draws, damping=dampings, approximation=preset.curvature.approximation,
                seed=run.seed, schedule=preset.schedule, progress=run.progress,
                store=run.path("gradients", "train"), query_store=run.path("gradients", query_set),
            )  # fmt: skip
            write_arrays(folder / "scores.npz", scores=scores.numpy())
    return torch.from_numpy(read_arrays(folder / "scores.npz")["scores"])


def check_same_images(run: Run, truth: GroundTruth, query_ids: Tensor) -> None:
    """Refuse a ground truth that was made with other images than the run's.

    Raises:
        DataError: training images or queries differ.
    """
    same_train = torch.equal(truth.train_ids, run.data.train.ids)
    require(same_train, "ground truth: its training images are not those of this run; give its own preset", DataError)
    same_queries = torch.equal(truth.query_ids, query_ids)
    require(same_queries, "ground truth: its queries are not those of this run; give its own preset", DataError)


def lds_of_run(
    run: Run, truth: GroundTruth, query_set: str = "held-out", *, damping: Sequence[float] | None = None
) -> dict[float, LDSResult]:
    """LDS of a run's influence scores against a ground truth, for each damping; also written to the run folder."""
    dampings = check_dampings(damping or [run.preset.damping])
    check_same_images(run, truth, queries(run, query_set).ids)
    scores = influence_scores(run, query_set, damping=dampings)
    results = {value: lds(matrix, truth) for value, matrix in zip(dampings, scores, strict=True)}
    record = {
        f"{value:g}": {"mean": r.mean, "interval": r.interval, "sem": r.sem, "ceiling": r.ceiling}
        for value, r in results.items()
    }
    write_json(run.path("lds", f"{query_set}.json"), plain({"lds": record, "ground_truth": truth.provenance}))
    return results
