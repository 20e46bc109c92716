"""Attribution stages: curvature, gradients, scores, and their LDS against a ground truth."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_arrays, stage, tensor_digest, write_arrays
from diffinf_lib.attribution import check_dampings, gradient_dot_scores, influence, pixel_distance_scores, random_scores
from diffinf_lib.attribution.influence import query_gradient_config
from diffinf_lib.compression import StoreFormat
from diffinf_lib.curvature import Approximation, Curvature, fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation import GroundTruth, LDSResult, lds
from diffinf_lib.gradients import GradientConfig, LayerGradients, all_gradients, gradient_shards
from diffinf_lib.stages.model import full_model, model_identity
from diffinf_lib.stages.run import Run


def curvature_of_run(run: Run) -> Curvature:
    """The curvature of the full model."""
    preset = run.preset
    return fit_curvature(
        full_model(run).model,
        run.data.train,
        preset.curvature,
        seed=run.seed,
        out=run.path("curvature"),
        checkpoint_seconds=5.0,
        progress=run.progress,
    )


def influence_scores(
    run: Run,
    queries: ImageSet,
    *,
    damping: Sequence[float] | None = None,
    approximation: Approximation | None = None,
) -> Tensor:
    """Influence of every training image on every query, `[D, Q, N]`, for each damping.

    Gradients are kept in the run folder: another damping, K-FAC after EK-FAC, or other queries cost little.

    Args:
        damping: default: the preset's.
        approximation: default: the preset's.
    """
    preset = run.preset
    dampings = check_dampings([preset.damping] if damping is None else damping)
    approximation = approximation or preset.curvature.approximation
    model, curvature = full_model(run).model, curvature_of_run(run)
    key = _query_key(queries)
    identity = {
        "model": model_identity(run),
        "curvature": curvature.digest,
        "queries": key,
        "dampings": dampings,
        "approximation": approximation,
        "measurement": preset.measurement,
        "gradient_draws": preset.gradient_draws,
        "store_format": preset.store_format,
        "query_format": preset.query_format,
        "seed": run.seed,
    }
    names = (run.data.train.names, queries.names)
    if names != (None, None):
        identity["names"] = json_digest(names)  # kept beside the scores
    folder = run.path("scores", json_digest(plain(identity))[:12])
    with stage(folder, identity, name="scores") as needed:
        if needed:
            scores = influence(
                model,
                curvature,
                run.data.train,
                queries,
                measurement=preset.measurement,
                draws=preset.gradient_draws,
                damping=dampings,
                approximation=approximation,
                seed=run.seed,
                store=run.path("gradients", "train"),
                query_store=run.path("gradients", f"queries-{key}"),
                train_format=preset.store_format,
                query_format=preset.query_format,
                progress=run.progress,
            )
            write_arrays(
                folder / "scores.npz", scores=scores.numpy(), dampings=np.array(dampings, dtype=np.float64),
                **run.data.train.identifiers("train_"), **queries.identifiers("query_"),
            )  # fmt: skip
    return torch.from_numpy(read_arrays(folder / "scores.npz")["scores"])


def _stored(run: Run, images: ImageSet, config: GradientConfig, name: str, form: StoreFormat | None) -> LayerGradients:
    shards = gradient_shards(
        full_model(run).model, curvature_of_run(run), images, config,
        store=run.path("gradients", name), form=form, progress=run.progress,
    )  # fmt: skip
    return all_gradients(shards)


def query_gradients(run: Run, queries: ImageSet) -> LayerGradients:
    """Gradients of queries in the eigenbasis, over the measurement's own draws, from the store that scoring uses."""
    config = query_gradient_config(run.preset.measurement, run.seed)
    return _stored(run, queries, config, f"queries-{_query_key(queries)}", None)


def train_gradients(run: Run) -> LayerGradients:
    """Gradients of the training images in the eigenbasis, from the store that scoring uses, all in memory."""
    config = GradientConfig(run.preset.gradient_draws, seed=run.seed)
    return _stored(run, run.data.train, config, "train", run.preset.store_format)


def _query_key(queries: ImageSet) -> str:
    return tensor_digest(queries.images, queries.ids)[:12]


def baseline_scores(run: Run, queries: ImageSet) -> dict[str, Tensor]:
    """Scores that a method must beat, by name: gradient dot product, pixel distance, random."""
    return {
        "gradient dot product": gradient_dot_scores(query_gradients(run, queries), train_gradients(run)),
        "pixel distance": pixel_distance_scores(run.data.train, queries),
        "random": random_scores(len(queries), len(run.data.train), seed=run.seed),
    }


def lds_of_run(run: Run, truth: GroundTruth, *, damping: Sequence[float] | None = None) -> dict[str, LDSResult]:
    """LDS of a run's scores against a ground truth: EK-FAC and K-FAC (or what was fitted) at each damping, and the baselines.

    The queries are the ground truth's own images, on which its models were measured.

    Raises:
        DataError: the ground truth was made with other training images than the run's.
    """
    same = torch.equal(truth.train_ids, run.data.train.ids)
    require(same, "ground truth: its training images are not those of this run; give its own preset", DataError)
    dampings = check_dampings([run.preset.damping] if damping is None else damping)
    scores: dict[str, Tensor] = {}
    fitted = run.preset.curvature.approximation
    approximations: list[Approximation] = ["ekfac", "kfac"] if fitted == "ekfac" else [fitted]
    for approximation in approximations:
        found = influence_scores(run, truth.queries, damping=dampings, approximation=approximation)
        label = {"ekfac": "EK-FAC", "kfac": "K-FAC"}.get(approximation, approximation)
        scores |= {f"{label}, λ = {value:g}": matrix for value, matrix in zip(dampings, found, strict=True)}
    scores |= baseline_scores(run, truth.queries)
    return {name: lds(matrix, truth) for name, matrix in scores.items()}
