"""Influence: how a query's measurement would change if a training image were left out (Mlodozeniec et al. 2025, eq. 3)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.renormalised import training_norms
from diffinf_lib.attribution.scoring import block_scores, damped_scores, images_trained_on, in_pairs
from diffinf_lib.configuration import (
    DEFAULT_DAMPING,
    Approximation,
    DrawConfig,
    Expectation,
    MeasurementConfig,
    MeasurementName,
    StoreFormat,
    as_measurement,
    check_dampings,
    check_formats,
)
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import DampingKind, Inverses
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, check_images, require_denoiser
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import GradientSet, LayerGradients, QueryGradients, check_blocks, gradients_of
from diffinf_lib.options import check_counts, check_folders
from diffinf_lib.settings import own_settings


@own_settings
def scores_from_gradients(
    queries: GradientSet,
    train: GradientSet,
    curvature: Curvature,
    *,
    damping: float | Sequence[float],
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
    count: int | None = None,
) -> Float[Tensor, "D Q N"]:
    """Scores (1/N) ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n from gradients in the eigenbasis, for each damping; float64, on the CPU.

    Args:
        damping: λ, one or several.
        count: N, the number of images the model was trained on, of which `train` may be a part; default all of it.

    Raises:
        ConfigurationError: a damping is negative or NaN, or blocks are not the curvature's.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    return damped_scores(queries, train, curvature, inverses, count)


@own_settings
def scores_by_layer(
    queries: GradientSet,
    train: GradientSet,
    curvature: Curvature,
    *,
    damping: float | Sequence[float],
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
    count: int | None = None,
) -> dict[str, Float[Tensor, "D Q N"]]:
    """Each block's share of the scores; the shares add up to `scores_from_gradients`."""
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    for name, gradients in (("queries", queries), ("train", train)):
        check_blocks(gradients, curvature, name)
    here = curvature.to(train.device)

    def shares(mine: QueryGradients, shard: LayerGradients) -> Float[Tensor, "blocks D q n"]:
        return torch.stack([share for _, share in block_scores(mine, shard, here, inverses)])

    found = in_pairs(queries, train, shares) / images_trained_on(count, train)
    return dict(zip(here.layers, found, strict=True))


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
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    damping_kind: DampingKind = "absolute",
    approximation: Approximation | Sequence[Approximation] = "ekfac",
    seed: int = 0,
    batch_size: int = 256,
    store: Path | str | None = None,
    query_store: Path | str | None = None,
    train_format: StoreFormat | None = None,
    query_format: StoreFormat | None = None,
    progress: bool = False,
) -> Float[Tensor, "*options Q N"]:
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
        draws: of each training gradient, under the purpose `train-gradients`; default 250 of each image's own.
        query_draws: of each query gradient; default the measurement's own. Fewer cost less, and some of the LDS.
        damping: λ ≥ 0, or a list of them, all from one pass over the gradients.
        damping_kind: `absolute`, or `relative` to the mean eigenvalue of each block.
        approximation: which eigenvalues to divide by, or a list, all from the same pass.
        store: folder to keep training gradients in, for the next queries.
        query_store: folder to keep query gradients in, so that a killed run goes on.
        train_format: how training gradients are kept; default in full.
        query_format: how query gradients are kept, in `query_store` and in memory while training gradients stream past;
            default in full. One packing serves every damping and approximation. With many queries it decides how much
            memory scoring takes.

    Returns:
        `[Q, N]`; with a list of dampings `[D, Q, N]`, with a list of approximations these stacked in front; float64, on the
        CPU.

    Raises:
        ConfigurationError: a damping is negative or NaN, the approximation or measurement is unknown, the curvature
            belongs to a model of other layers or weights, or a gradient is not finite.
        ArtifactError: a store holds gradients of another configuration.
    """
    approximations: list[Approximation] = [approximation] if isinstance(approximation, str) else list(approximation)  # type: ignore[list-item]
    inverses = Inverses(check_dampings(damping), approximations, damping_kind)
    curvature.check_approximations(approximations)
    check_counts(batch_size=batch_size)
    check_folders(store=store, query_store=query_store)
    check_formats(train_format=train_format, query_format=query_format)
    check_images(train=train, queries=queries)
    measurement = as_measurement(measurement)
    taken = partial(gradients_of, model, curvature, batch_size=batch_size, progress=progress)
    asked = taken(queries, measurement.expectation(seed, query_draws), store=query_store, store_format=query_format)
    of_training = Expectation(draws or DrawConfig(250), seed=seed)
    given = taken(train, of_training, store=store, store_format=train_format)
    scores = damped_scores(asked, given, curvature, inverses)
    scores = scores.view(len(approximations), len(inverses.dampings), len(queries), len(train))
    scores = scores[:, 0] if isinstance(damping, Real) else scores
    return scores[0] if isinstance(approximation, str) else scores


@own_settings
def influence_by_timestep(
    model: Denoiser,
    curvature: Curvature,
    train: GradientSet,
    queries: ImageSet,
    *,
    bins: int = 10,
    measurement: MeasurementConfig | MeasurementName | None = None,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    approximation: Approximation = "ekfac",
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> Float[Tensor, "{bins} D Q N"]:
    """Scores cut by the query's timesteps: the influence on the part of the measurement that each range of t contributes.

    The parts add up to the scores of `influence` with the same draws.

    Args:
        train: gradients of the training images.
        bins: number of equal ranges of t.
        damping: λ, one or several.
        count: N, the number of images the model was trained on; default all of `train`.
    """
    timesteps = require_denoiser(model).process.num_train_timesteps
    require(0 < bins <= timesteps, f"bins={bins}: give a number from 1 to {timesteps}")
    inverses = Inverses(check_dampings(damping), [approximation])
    whole = as_measurement(measurement).expectation(seed)
    edges = [round(index * timesteps / bins) for index in range(bins + 1)]
    parts = []
    for window in zip(edges, edges[1:], strict=False):
        asked = gradients_of(model, curvature, queries, replace(whole, timestep_range=window), batch_size=batch_size)
        parts.append(damped_scores(asked, train, curvature, inverses, count))
    return torch.stack(parts)


@own_settings
def self_influence(
    train: GradientSet,
    curvature: Curvature,
    *,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
    count: int | None = None,
) -> Float[Tensor, "D N"]:
    """Each training image's influence on its own loss, (1/N) ∇ℓ_nᵀ (F + λI)⁻¹ ∇ℓ_n ≥ 0; large for the unusual ones.

    Args:
        train: gradients of the training images; each shard is read once and forgotten.
        damping: λ, one or several.
        count: N, the number of images the model was trained on; default all of `train`.
    """
    total = images_trained_on(count, train)
    norms = training_norms(train, curvature, damping=damping, approximation=approximation, damping_kind=damping_kind)
    scores = norms.self_influence.square() / total
    check_scores(scores, training_image=train.ids)
    return scores
