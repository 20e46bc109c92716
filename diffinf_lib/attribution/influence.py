"""Influence: how a query's measurement would change if a training image were left out (Mlodozeniec et al. 2025, eq. 3)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import DampingKind, Inverses, KeptQueries, block_scores
from diffinf_lib.configuration import (
    Approximation,
    DrawConfig,
    MeasurementConfig,
    MeasurementName,
    StoreFormat,
    as_measurement,
    check_dampings,
)
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import GradientConfig, LayerGradients, all_gradients, gradient_shards
from diffinf_lib.measurements import MEASUREMENT_STAGE
from diffinf_lib.settings import own_settings

QUERY_STAGE = "query-gradients"
"""The stage under which draws of query gradients are keyed, where they are not the measurement's own."""

SHARD_BYTES = 1 << 28
"""Shards of training gradients are scored together up to this size: dividing the queries costs as much as one shard."""


def query_gradient_config(
    measurement: MeasurementConfig, seed: int = 0, draws: DrawConfig | None = None
) -> GradientConfig:
    """What a query's gradient is taken of: the measurement's own draws, or `draws`, keyed apart from them.

    Raises:
        ConfigurationError: the measurement is for evaluation only.
    """
    if draws is None:
        return GradientConfig(measurement.measured_draws, MEASUREMENT_STAGE, seed, objective=measurement.objective)
    return GradientConfig(draws, QUERY_STAGE, seed, objective=measurement.objective)


@own_settings
def scores_from_gradients(
    queries: LayerGradients,
    train: LayerGradients,
    curvature: Curvature,
    *,
    count: int,
    damping: float | Sequence[float],
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D Q N"]:
    """Scores (1/N) ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n from gradients in the eigenbasis, for each damping; float64, on the CPU.

    Args:
        count: N, the number of images the model was trained on; `train` may be a part of them.
        damping: λ, one or several.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    curvature = curvature.to(next(iter(train.values())).device)
    return KeptQueries([queries], curvature, inverses).scores(train) / count


@own_settings
def scores_by_layer(
    queries: LayerGradients,
    train: LayerGradients,
    curvature: Curvature,
    *,
    count: int,
    damping: float,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> dict[str, Float[Tensor, "Q N"]]:
    """Each block's share of the scores; the shares add up to `scores_from_gradients`."""
    require(isinstance(damping, Real), f"damping={damping}: give one number here")
    curvature = curvature.to(next(iter(train.values())).device)
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    return {name: share[0] / count for name, share in block_scores(queries, train, curvature, inverses)}


def together(
    shards: Iterator[tuple[slice, LayerGradients]], limit: int = SHARD_BYTES
) -> Iterator[tuple[slice, LayerGradients]]:
    """Neighbouring shards joined until they hold `limit` bytes."""
    held: list[tuple[slice, LayerGradients]] = []
    size = 0
    for where, gradients in shards:
        bytes_here = sum(value.nbytes for value in gradients.values())
        if held and size + bytes_here > limit:
            yield _joined(held)
            held, size = [], 0
        held.append((where, gradients))
        size += bytes_here
    if held:
        yield _joined(held)


def _joined(held: list[tuple[slice, LayerGradients]]) -> tuple[slice, LayerGradients]:
    rows = slice(held[0][0].start, held[-1][0].stop)
    return rows, held[0][1] if len(held) == 1 else all_gradients(iter(held))


@own_settings
def influence(
    model: Denoiser,
    curvature: Curvature,
    train: ImageSet,
    queries: ImageSet,
    *,
    measurement: MeasurementConfig | MeasurementName | None = None,
    draws: DrawConfig | None = None,
    query_draws: DrawConfig | None = None,
    damping: float | Sequence[float] = 1e-8,
    damping_kind: DampingKind = "absolute",
    approximation: Approximation | Sequence[Approximation] = "ekfac",
    seed: int = 0,
    batch_size: int = 256,
    store: Path | str | None = None,
    query_store: Path | str | None = None,
    train_format: StoreFormat | None = None,
    query_format: StoreFormat | None = None,
    progress: bool = False,
) -> Tensor:
    """Scores of every training image for every query.

    `scores[q, n]` estimates m_q(θ trained without n) − m_q(θ), the 1/N included: a positive score says that leaving
    image n out raises the measurement, which for the loss means that the query becomes less likely, and for the ELBO more
    likely (`MeasurementConfig.direction`).

    Query gradients are taken over the measurement's own draws, so what is differentiated is what is measured. Training
    gradients stream past the queries a shard at a time, so memory does not grow with N. Without `store` they are computed
    and forgotten (single use, the paper's algorithm 1); with it they are kept, and the next queries cost only their own
    gradients and one reading (continual deployment, algorithm 2).

    Args:
        curvature: from `fit_curvature` on the same model.
        train: the images the model was trained on, `[N, C, H, W]`.
        queries: `[Q, C, H, W]`; `Trajectories` for the measurement `trajectory_log_prob`.
        measurement: what of the queries is attributed; default the loss.
        draws: of each training gradient; default 250.
        query_draws: of each query gradient; default the measurement's own. Fewer cost less, and some of the LDS.
        damping: λ ≥ 0, or a list of them, all from one pass over the gradients.
        damping_kind: `absolute`, or `relative` to the mean eigenvalue of each block.
        approximation: which eigenvalues to divide by, or a list, all from the same pass.
        store: folder to keep training gradients in, for the next queries.
        query_store: folder to keep query gradients in, so that a killed run goes on.
        train_format: how training gradients are kept; default in full.
        query_format: how preconditioned queries are kept in memory while training gradients stream past, each damping and
            approximation for itself; default as plain gradients, divided anew for each shard. With many queries it decides
            how much memory scoring takes. `query_store` holds the gradients in full: they are packed once, after division.

    Returns:
        `[Q, N]`; with a list of dampings `[D, Q, N]`, with a list of approximations these stacked in front; float64, on the
        CPU.

    Raises:
        ConfigurationError: a damping is negative or NaN, the approximation or measurement is unknown, the curvature
            belongs to a model of other layers, or a gradient is not finite.
        ArtifactError: a store holds gradients of another configuration.
    """
    approximations: list[Approximation] = [approximation] if isinstance(approximation, str) else list(approximation)  # type: ignore[list-item]
    inverses = Inverses(check_dampings(damping), approximations, damping_kind)
    curvature.check_approximations(approximations)
    require(batch_size > 0, f"batch_size={batch_size}: give a positive number")
    for name, images in (("train", train), ("queries", queries)):
        require(
            isinstance(images, ImageSet),
            f"{name}: {type(images).__name__} is no ImageSet; see as_queries",
        )
        require(len(images) > 0, f"{name}: there are no images; give at least one")
    measurement = as_measurement(measurement)
    shared: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    query_config = query_gradient_config(measurement, seed, query_draws)
    curvature = curvature.to(require_denoiser(model).device)
    query_shards = gradient_shards(model, curvature, queries, query_config, store=query_store, **shared)
    kept = KeptQueries(
        (gradients for _, gradients in together(query_shards)), curvature, inverses, query_format, train_format
    )
    train_config = GradientConfig(draws or DrawConfig(250), seed=seed)
    shards = gradient_shards(model, curvature, train, train_config, store=store, form=train_format, **shared)
    scores = torch.empty(len(inverses), len(queries), len(train), dtype=torch.float64)
    for rows, gradients in together(shards):
        scores[:, :, rows] = kept.scores(gradients) / len(train)
    check_scores(scores, query=queries.ids, training_image=train.ids)
    scores = scores.view(len(approximations), len(inverses.dampings), len(queries), len(train))
    scores = scores[:, 0] if isinstance(damping, Real) else scores
    return scores[0] if isinstance(approximation, str) else scores


@own_settings
def influence_by_timestep(
    model: Denoiser,
    curvature: Curvature,
    train_gradients: LayerGradients,
    queries: ImageSet,
    *,
    count: int,
    bins: int = 10,
    measurement: MeasurementConfig | MeasurementName | None = None,
    damping: float = 1e-8,
    approximation: Approximation = "ekfac",
    seed: int = 0,
    batch_size: int = 256,
) -> Float[Tensor, "T Q N"]:
    """Scores cut by the query's timesteps: the influence on the part of the measurement that each range of t contributes.

    The parts add up to the scores of `influence` with the same draws.

    Args:
        train_gradients: in the eigenbasis, from `gradient_shards`.
        count: N, the number of images the model was trained on.
        bins: number of equal ranges of t.
    """
    timesteps = require_denoiser(model).process.timesteps
    require(0 < bins <= timesteps, f"bins={bins}: give a number from 1 to {timesteps}")
    require(isinstance(damping, Real), f"damping={damping}: give one number here")
    measurement = as_measurement(measurement)
    check_dampings(damping)
    curvature.check_approximations([approximation])
    edges = [round(index * timesteps / bins) for index in range(bins + 1)]
    parts = []
    for low, high in zip(edges, edges[1:], strict=False):
        config = replace(query_gradient_config(measurement, seed), timesteps=(low, high))
        gradients = all_gradients(gradient_shards(model, curvature, queries, config, batch_size=batch_size))
        parts.append(
            scores_from_gradients(
                gradients, train_gradients, curvature, count=count, damping=damping, approximation=approximation
            )[0]
        )
    return torch.stack(parts)


@own_settings
def self_influence(
    shards: Iterator[tuple[slice, LayerGradients]],
    curvature: Curvature,
    *,
    count: int,
    damping: float | Sequence[float] = 1e-8,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D N"]:
    """Each training image's influence on its own loss, (1/N) ∇ℓ_nᵀ (F + λI)⁻¹ ∇ℓ_n ≥ 0; large for the unusual ones.

    Args:
        shards: of training gradients in the eigenbasis, from `gradient_shards`; each is read once and forgotten.
        count: N, the number of images the model was trained on.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    require(count > 0, f"count={count}: give N, the number of images the model was trained on")
    parts = []
    for _, gradients in shards:
        curvature = curvature.to(next(iter(gradients.values())).device)
        total = torch.zeros(len(inverses), len(next(iter(gradients.values()))), dtype=torch.float64)
        for name, gradient in gradients.items():
            squares = gradient.flatten(1).square()
            for index, factor in enumerate(inverses.factors(curvature, name)):
                total[index] += (squares @ factor.flatten()).double().cpu()
        parts.append(total)
    scores = torch.cat(parts, dim=1) / count
    check_scores(scores, training_image=None)
    return scores
