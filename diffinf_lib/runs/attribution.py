"""Stages of attribution: curvature, gradients, scores, and their LDS against a ground truth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import json_digest
from diffinf_lib.attribution import (
    gradient_dot_scores,
    pixel_distance_scores,
    random_scores,
    scores_from_gradients,
)
from diffinf_lib.configuration import Approximation, CurvatureConfig, Expectation, StoreFormat, check_dampings
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation import GroundTruth, LDSResult, lds
from diffinf_lib.gradients import GradientSet, gradients_of
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.run import Run
from diffinf_lib.shapes import Scores


def curvature_of_run(run: Run) -> Curvature:
    """The curvature of the full model."""
    return run.held("curvature", lambda: fitted(run, run.model.model, run.preset.curvature)[0])


def fitted(run: Run, model: Denoiser, config: CurvatureConfig, label: str = "final") -> tuple[Curvature, Kept]:
    """A curvature of one of the run's models over the training images, fitted once, and where it is kept.

    Args:
        label: of the model, for people.
    """
    kept = run.kept("curvature", label, of=model.identity, curvature=config)
    curvature = fit_curvature(
        model, run.data.train, config, seed=run.seed, out=kept.folder,
        checkpoint_seconds=5.0, progress=run.progress,
    )  # fmt: skip
    return curvature, kept


def influence_scores(
    run: Run,
    queries: ImageSet,
    *,
    damping: Sequence[float] | None = None,
    approximation: Approximation | None = None,
) -> Float[Tensor, "D Q N"]:
    """Influence of every training image on every query, `[D, Q, N]`, for each damping.

    Gradients are kept in the run folder: another damping, K-FAC after EK-FAC, or other queries cost little.

    Args:
        damping: default: the preset's.
        approximation: default: the preset's.
    """
    preset = run.preset
    options: dict[str, Any] = {
        "measurement": preset.measurement,
        "draws": preset.gradient_draws,
        "damping": check_dampings([preset.damping] if damping is None else damping),
        "approximation": approximation or preset.curvature.approximation,
        "train_format": preset.store_format,
        "query_format": preset.query_format,
    }

    def scores() -> dict[str, np.ndarray]:
        found = scores_from_gradients(
            query_gradients(run, queries), train_gradients(run), curvature_of_run(run), damping=options["damping"],
            approximation=options["approximation"],
        )  # fmt: skip
        named = run.data.train.identifiers("train_") | queries.identifiers("query_")
        return {"scores": found.numpy(), "dampings": np.array(options["damping"]), **named}

    names = json_digest((run.data.train.names, queries.names))  # kept beside the scores
    kept = run.kept("scores", queries=queries.digest, names=names, curvature=preset.curvature, **options)
    return torch.from_numpy(kept.arrays(scores)["scores"])


def query_gradients(run: Run, queries: ImageSet) -> GradientSet:
    """Gradients of queries in the eigenbasis, over the measurement's own draws, kept as the preset packs them."""
    return _gradients(run, queries, run.preset.measurement.expectation(run.seed), run.preset.query_format)


def train_gradients(run: Run) -> GradientSet:
    """Gradients of the training images in the eigenbasis, kept as the preset packs them."""
    expectation = Expectation(run.preset.gradient_draws, seed=run.seed)
    return _gradients(run, run.data.train, expectation, run.preset.store_format)


def _gradients(run: Run, images: ImageSet, expectation: Expectation, store_format: StoreFormat | None) -> GradientSet:
    return gradients_of(
        run.model.model, curvature_of_run(run), images, expectation, below=run.path("gradients"), store_format=store_format,
        progress=run.progress,
    )  # fmt: skip


def baseline_scores(run: Run, queries: ImageSet) -> dict[str, Scores]:
    """Scores that a method must beat, by name: gradient dot product, pixel distance, random."""
    return {
        "gradient dot product": gradient_dot_scores(query_gradients(run, queries), train_gradients(run)),
        "pixel distance": pixel_distance_scores(run.data.train, queries),
        "random": random_scores(len(queries), len(run.data.train), seed=run.seed),
    }


def check_training_images(run: Run, truth: GroundTruth, name: str = "") -> None:
    """Refuse a ground truth of other training images than the run's.

    Raises:
        DataError: it is one.
    """
    same = torch.equal(truth.train_ids, run.data.train.ids)
    require(same, f"ground truth{name and f' of {name}'}: its training images are not those of this run; give its own preset",
            DataError)  # fmt: skip


def lds_of_run(run: Run, truth: GroundTruth, *, damping: Sequence[float] | None = None) -> dict[str, LDSResult]:
    """LDS of a run's scores against a ground truth: EK-FAC and K-FAC (or what was fitted) at each damping, and the baselines.

    The queries are the ground truth's own images, on which its models were measured.

    Raises:
        DataError: the ground truth was made with other training images than the run's.
    """
    check_training_images(run, truth)
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
