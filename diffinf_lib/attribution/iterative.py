"""Iterative influence: scores with the exact GGN, solved by iteration, EK-FAC as preconditioner (ASTRA, Wang et al. 2025).

EK-FAC takes layers for independent of each other and each block for a Kronecker product. The GGN itself multiplies with a
vector at the price of a few forward passes, so (F + λI) x = ∇m_q can be solved with it by iteration. EK-FAC's inverse
starts the iteration, and each step puts some of what it leaves out back, between layers too. The number of steps
regularises, as damping does: the first ones act where the GGN exceeds EK-FAC most, later ones where it says little. A
fixed small number of them is therefore an estimator of its own, not a failure to converge.
"""

import warnings
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import torch
from curvlinops._torch_base import PyTorchLinearOperator as Operator
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.influence import together
from diffinf_lib.configuration import (
    Approximation,
    DrawConfig,
    MeasurementConfig,
    MeasurementName,
    as_measurement,
    check_dampings,
    check_draws,
)
from diffinf_lib.curvature import (
    Curvature,
    Solution,
    conjugate_gradient_inverse,
    conjugate_gradient_path,
    curvature_preconditioner,
    flatten_layers,
    ggn_operator,
    neumann_inverse,
    split_into_blocks,
    split_layers,
)
from diffinf_lib.curvature.blocks import joined_from_blocks
from diffinf_lib.curvature.layers import Covers
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, objective_batches, require_denoiser
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import GradientConfig, LayerGradients, all_gradients, gradient_shards
from diffinf_lib.measurements import MEASUREMENT_STAGE
from diffinf_lib.options import checked
from diffinf_lib.settings import own_settings

IterativeMethod = Literal["neumann", "cg"]

GGN_STAGE = "ggn"
"""The stage under which the draws of the GGN are keyed."""


@own_settings
def iterative_influence(
    model: Denoiser,
    curvature: Curvature,
    train: ImageSet,
    queries: ImageSet,
    *,
    measurement: MeasurementConfig | MeasurementName | None = None,
    draws: DrawConfig | None = None,
    ggn_draws: DrawConfig | None = None,
    damping: float | Sequence[float] = 1e-6,
    method: IterativeMethod = "cg",
    max_iterations: int = 4,
    tolerance: float | None = None,
    scale: float | None = None,
    approximation: Approximation = "ekfac",
    seed: int = 0,
    batch_size: int = 256,
    ggn_batch_size: int = 25,
    store: Path | str | None = None,
    query_store: Path | str | None = None,
    progress: bool = False,
) -> Float[Tensor, "*D Q N"]:
    """Scores (1/N) ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n with F the GGN over some draws of all training images, by iteration.

    The first iteration multiplies with the preconditioner alone: with `method="neumann"`, `scale=1` and one iteration the
    scores are those of `influence` with `approximation`; with conjugate gradients they are that times a number for each query.
    Each further one costs a product with F for all queries, of the order of 4 Q passes over its draws; one more product
    checks the result. A product keeps the activations of `ggn_batch_size` draws for some queries at a time: fewer, the more
    pixels a batch has.

    Args:
        curvature: the preconditioner, from `fit_curvature` on the same model.
        train: the images the model was trained on, `[N, C, H, W]`.
        queries: `[Q, C, H, W]`; all are solved for side by side, some six vectors of Q · P numbers.
        draws: of each training gradient; default 250.
        ggn_draws: of each training image for F; default 2. The same in every product.
        damping: λ ≥ 0, or a list of them; each is solved for anew.
        method: `cg`, preconditioned conjugate gradients; or `neumann`, the preconditioned series, of ASTRA.
        max_iterations: how many, or with `tolerance` at most.
        tolerance: relative residual at which to stop; a warning says if it is not reached. None takes `max_iterations`.
        scale: α of the Neumann series, see `neumann_inverse`.
        ggn_batch_size: draws of F a pass; the result depends on it by rounding only.
        store, query_store: folders to keep gradients in, the same ones as for `influence` with the same draws.

    Returns:
        `[Q, N]`, or `[D, Q, N]` with a list of dampings; float64, on the CPU.

    Raises:
        ConfigurationError: as `influence`; or the Neumann series diverges.
        ArtifactError: a store holds gradients of another configuration.
    """
    dampings = check_dampings(damping)
    _check_options(method, max_iterations, tolerance, scale)
    ggn_draws, draws = ggn_draws or DrawConfig(2), draws or DrawConfig(250)
    check_draws(draws=draws, ggn_draws=ggn_draws)
    for name, images in (("train", train), ("queries", queries)):
        require(isinstance(images, ImageSet), f"{name}: {type(images).__name__} is no ImageSet; see as_queries")
        require(len(images) > 0, f"{name}: there are no images; give at least one")
    measured = as_measurement(measurement)
    shared: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    curvature.check_approximations([approximation])
    curvature = curvature.to(require_denoiser(model).device)
    config = GradientConfig(measured.measured_draws, MEASUREMENT_STAGE, seed, objective=measured.objective)
    gradients = all_gradients(gradient_shards(model, curvature, queries, config, store=query_store, **shared))
    ggn = training_ggn(model, train, ggn_draws, seed=seed, batch_size=ggn_batch_size, covers=curvature.covers)
    solutions = [
        solved_queries(
            model, curvature, ggn, gradients, damping=value, method=method, max_iterations=max_iterations,
            tolerance=tolerance, scale=scale, approximation=approximation,
        )[0]
        for value in dampings
    ]  # fmt: skip
    config = GradientConfig(draws, seed=seed)
    scores = torch.empty(len(dampings), len(queries), len(train), dtype=torch.float64)
    for rows, part in together(gradient_shards(model, curvature, train, config, store=store, **shared)):
        for index, solution in enumerate(solutions):
            scores[index, :, rows] = solved_scores(solution, part, count=len(train))
    check_scores(scores, query=queries.ids, training_image=train.ids)
    return scores[0] if isinstance(damping, Real) else scores


@own_settings
def training_ggn(
    model: Denoiser,
    train: ImageSet,
    draws: DrawConfig,
    *,
    seed: int = 0,
    batch_size: int = 25,
    covers: Covers = None,
) -> Operator:
    """GGN^model of the mean loss over some draws of every training image, as a linear operator.

    Args:
        draws: of each training image; the operator keeps them, N · S noisy images.
        batch_size: draws a pass of a product.
        covers: which parameters; `curvature.covers` for those of a fitted curvature.
    """
    batches = objective_batches(model, train, draws, seed=seed, stage=GGN_STAGE, batch_size=batch_size)
    return ggn_operator(model, list(batches), covers=covers)


@own_settings
def solved_queries(
    model: Denoiser,
    curvature: Curvature,
    operator: Operator | Float[Tensor, "P P"],
    queries: LayerGradients,
    *,
    damping: float,
    method: IterativeMethod = "cg",
    max_iterations: int = 4,
    tolerance: float | None = None,
    scale: float | None = None,
    approximation: Approximation = "ekfac",
) -> tuple[LayerGradients, Solution]:
    """(F + λI)⁻¹ ∇m_q of all queries in the eigenbasis, and how far the iteration came.

    Args:
        operator: F, symmetric positive semi-definite, in the order of `flatten_layers`; a dense matrix will do.
        queries: gradients in the eigenbasis, from `gradient_shards`.

    Returns:
        solutions `[Q, d_out, d_in]` a block, for `solved_scores`; and the solver's own account, with its residuals.
    """
    _check_options(method, max_iterations, tolerance, scale)
    blocks = curvature.blocks(model)
    plain = {name: layer.from_eigenbasis(queries[name]) for name, layer in curvature.layers.items()}
    options: dict[str, Any] = {
        "preconditioner": curvature_preconditioner(model, curvature, damping, approximation),
        "tolerance": 0.0 if tolerance is None else tolerance,
        "max_iterations": max_iterations,
    }
    right = flatten_layers(joined_from_blocks(plain, blocks))
    with warnings.catch_warnings():
        if tolerance is None:
            warnings.filterwarnings("ignore", ".*relative residual")  # nothing was asked for
        if method == "cg":
            solution = conjugate_gradient_inverse(operator, damping, right, **options)
        else:
            solution = neumann_inverse(operator, damping, right, scale=scale, **options)
    parts = split_into_blocks(split_layers(model, solution.vectors, curvature.covers), blocks)
    return {name: layer.to_eigenbasis(parts[name]) for name, layer in curvature.layers.items()}, solution


@own_settings
def solution_path(
    model: Denoiser,
    curvature: Curvature,
    operator: Operator | Float[Tensor, "P P"],
    queries: LayerGradients,
    *,
    damping: float,
    iterations: int,
    approximation: Approximation = "ekfac",
) -> Iterator[LayerGradients]:
    """What conjugate gradients have found after each of their first steps, in the eigenbasis; see `solved_queries`."""
    blocks = curvature.blocks(model)
    plain = {name: layer.from_eigenbasis(queries[name]) for name, layer in curvature.layers.items()}
    path = conjugate_gradient_path(
        operator, damping, flatten_layers(joined_from_blocks(plain, blocks)), iterations=iterations,
        preconditioner=curvature_preconditioner(model, curvature, damping, approximation),
    )  # fmt: skip
    for vectors in path:
        parts = split_into_blocks(split_layers(model, vectors, curvature.covers), blocks)
        yield {name: layer.to_eigenbasis(parts[name]) for name, layer in curvature.layers.items()}


def solved_scores(solved: LayerGradients, train: LayerGradients, *, count: int) -> Float[Tensor, "Q N"]:
    """Scores (1/N) x_q · ∇ℓ_n with solutions x_q from `solved_queries`; float64, on the CPU.

    Args:
        train: gradients in the eigenbasis, from `gradient_shards`.
        count: N, the number of images the model was trained on; `train` may be a part of them.
    """
    require(solved.keys() == train.keys(), "gradients: training images are kept as projections, which serve influence "
            "only; give another store format")  # fmt: skip
    parts = [(solved[name].flatten(1) @ train[name].flatten(1).T).double().cpu() for name in solved]
    return torch.stack(parts).sum(0) / count


def _check_options(method: str, max_iterations: int, tolerance: float | None, scale: float | None) -> None:
    checked("method", method, IterativeMethod)
    require(max_iterations > 0, f"max_iterations={max_iterations}: give a positive number")
    require(tolerance is None or 0 < tolerance < 1, f"tolerance={tolerance}: give a relative residual between 0 and 1, or None "
            "for a fixed number of iterations")  # fmt: skip
    require(scale is None or (scale > 0 and method == "neumann"), f"scale={scale} with method={method!r}: give a positive "
            "number, and for 'neumann' only")  # fmt: skip
