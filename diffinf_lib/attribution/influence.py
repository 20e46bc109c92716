"""Influence: how a query's measurement would change if a training image were left out (Mlodozeniec et al. 2025, eq. 3)."""

import math
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.curvature import Approximation, Curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, DrawConfig, Network, NoiseSchedule
from diffinf_lib.errors import require
from diffinf_lib.gradients import GradientConfig, LayerGradients, all_gradients, gradient_shards
from diffinf_lib.measurements import MEASUREMENT_STAGE, MeasurementConfig


def check_dampings(damping: float | Sequence[float]) -> list[float]:
    """One damping or several, as a list.

    Raises:
        ConfigurationError: one is negative or not finite, or there is none.
    """
    dampings = [float(damping)] if isinstance(damping, Real) else [float(value) for value in damping]  # type: ignore[union-attr]
    require(len(dampings) > 0, "damping: give at least one number")
    for value in dampings:
        require(math.isfinite(value) and value >= 0, f"damping={value}: give a number >= 0, such as 1e-8")
    return dampings


def layer_scores(
    queries: Float[Tensor, "Q O I"], train: Float[Tensor, "N O I"], eigenvalues: Float[Tensor, "O I"], damping: float
) -> Float[Tensor, "Q N"]:
    """One layer's share, Σ_oi G_q G_n / (Λ + λ), of gradients in the eigenbasis.

    Where Λ + λ is zero, or so small beside the largest Λ that both come from rounding, the curvature says nothing and
    the direction contributes nothing. Λ is a square: rounding of 10 eps in a gradient is 100 eps² here.
    """
    damped = eigenvalues + damping
    known = damped > 100 * torch.finfo(damped.dtype).eps ** 2 * eigenvalues.max()
    preconditioned = torch.where(known, queries / torch.where(known, damped, 1.0), 0.0)
    return preconditioned.flatten(1) @ train.flatten(1).T


def scores_from_gradients(
    queries: LayerGradients,
    train: LayerGradients,
    curvature: Curvature,
    *,
    count: int,
    damping: float | Sequence[float],
    approximation: Approximation = "ekfac",
) -> Float[Tensor, "D Q N"]:
    """Scores (1/N) ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n from gradients in the eigenbasis, for each damping; float64, on the CPU.

    Args:
        count: N, the number of images the model was trained on; `train` may be a part of them.
        damping: λ, one or several.
    """
    results = []
    curvature = curvature.to(next(iter(train.values())).device)
    for value in check_dampings(damping):
        parts = [
            layer_scores(queries[name], train[name], layer.eigenvalues(approximation), value).double().cpu()
            for name, layer in curvature.layers.items()
        ]
        results.append(torch.stack(parts).sum(0) / count)
    return torch.stack(results)


def influence(
    model: Network,
    curvature: Curvature,
    train: ImageSet,
    queries: ImageSet,
    *,
    measurement: MeasurementConfig | Literal["loss"] | None = None,
    draws: DrawConfig | None = None,
    damping: float | Sequence[float] = 1e-8,
    approximation: Approximation = "ekfac",
    seed: int = 0,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 256,
    store: Path | str | None = None,
    query_store: Path | str | None = None,
    progress: bool = False,
) -> Float[Tensor, "Q N"] | Float[Tensor, "D Q N"]:
    """Scores of every training image for every query.

    `scores[q, n]` estimates m_q(θ trained without n) − m_q(θ), the 1/N included: a positive score says that leaving
    image n out raises the measurement, which for the loss means that the query becomes less likely.

    Query gradients are taken over the measurement's own draws, so what is differentiated is what is measured.

    Args:
        curvature: from `fit_curvature` on the same model.
        train: the images the model was trained on, `[N, C, H, W]`.
        queries: `[Q, C, H, W]`.
        draws: of each training gradient; default 250.
        damping: λ ≥ 0, or a list of them, all from one pass over the gradients.
        store: folder to keep training gradients in, for the next queries; without it they are used once.
        query_store: folder to keep query gradients in, so that a killed run goes on.

    Returns:
        `[Q, N]` for one damping, `[D, Q, N]` for a list; float64, on the CPU.

    Raises:
        ConfigurationError: a damping is negative or NaN, the approximation or measurement is unknown, the curvature
            belongs to a model of other layers, or a gradient is not finite.
        ArtifactError: a store holds gradients of another configuration.
    """
    dampings = check_dampings(damping)
    curvature.check_approximation(approximation)
    measurement = MeasurementConfig(measurement) if isinstance(measurement, str) else measurement or MeasurementConfig()
    query_config = GradientConfig(measurement.draws, MEASUREMENT_STAGE, seed)
    train_config = GradientConfig(draws or DrawConfig(250), seed=seed)
    shared = {"schedule": schedule, "batch_size": batch_size, "progress": progress}
    query_gradients = all_gradients(
        gradient_shards(model, curvature, queries, query_config, store=query_store, **shared)  # type: ignore[arg-type]
    )
    scores = torch.empty(len(dampings), len(queries), len(train), dtype=torch.float64)
    for rows, gradients in gradient_shards(model, curvature, train, train_config, store=store, **shared):  # type: ignore[arg-type]
        scores[:, :, rows] = scores_from_gradients(
            query_gradients, gradients, curvature, count=len(train), damping=dampings, approximation=approximation
        )
    return scores[0] if isinstance(damping, Real) else scores
