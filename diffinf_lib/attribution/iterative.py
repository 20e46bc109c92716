"""Iterative influence: scores with the exact GGN, solved by iteration, EK-FAC as preconditioner (ASTRA, Wang et al. 2025).

EK-FAC takes layers for independent of each other and each block for a Kronecker product. The GGN itself multiplies with a
vector at the price of a few forward passes, so (F + λI) x = ∇m_q can be solved with it by iteration. EK-FAC's inverse
suggests each direction, and each step puts some of what it leaves out back, between layers too. The number of steps
regularises, as damping does: the first ones act where the GGN exceeds EK-FAC most, later ones where it says little. A
fixed small number of them is therefore an estimator of its own, not a failure to converge. It ranks well, but its sizes
are small because it was stopped: they are those of the GGN only where further steps leave them alone.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from curvlinops._torch_base import PyTorchLinearOperator as Operator
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import images_trained_on, products
from diffinf_lib.configuration import Approximation, DrawConfig, Expectation
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
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.gradients import GradientSet, check_blocks
from diffinf_lib.options import check_counts, checked
from diffinf_lib.settings import own_settings

IterativeMethod = Literal["neumann", "cg"]

GGN_PURPOSE = "ggn"
"""The purpose under which the draws of the GGN are keyed."""


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
    return ggn_operator(
        model, list(Expectation(draws, GGN_PURPOSE, seed).batches(model, train, batch_size)), covers=covers
    )


@own_settings
def solved_queries(
    model: Denoiser,
    curvature: Curvature,
    operator: Operator | Float[Tensor, "P P"],
    queries: GradientSet,
    *,
    damping: float,
    method: IterativeMethod = "cg",
    max_iterations: int = 4,
    tolerance: float | None = None,
    scale: float | None = None,
    approximation: Approximation = "ekfac",
) -> tuple[GradientSet, Solution]:
    """(F + λI)⁻¹ ∇m_q of all queries in the eigenbasis, and how far the iteration came.

    Args:
        operator: F, symmetric positive semi-definite, in the order of `flatten_layers`; a dense matrix will do.
        queries: gradients in the eigenbasis.

    Returns:
        the solutions, for `solved_scores`; and the solver's own account, with its residuals.
    """
    _check_options(method, max_iterations, tolerance, scale)
    options: dict[str, Any] = {
        "preconditioner": curvature_preconditioner(model, curvature, damping, approximation),
        "tolerance": 0.0 if tolerance is None else tolerance,
        "max_iterations": max_iterations,
    }
    right = as_columns(model, curvature, queries)
    with warnings.catch_warnings():
        if tolerance is None:
            warnings.filterwarnings("ignore", ".*relative residual")  # nothing was asked for
        if method == "cg":
            solution = conjugate_gradient_inverse(operator, damping, right, **options)
        else:
            solution = neumann_inverse(operator, damping, right, scale=scale, **options)
    return as_gradients(model, curvature, solution.vectors), solution


@own_settings
def solution_path(
    model: Denoiser,
    curvature: Curvature,
    operator: Operator | Float[Tensor, "P P"],
    queries: GradientSet,
    *,
    damping: float,
    iterations: int,
    approximation: Approximation = "ekfac",
) -> Iterator[GradientSet]:
    """What conjugate gradients have found after each of their first steps, in the eigenbasis; see `solved_queries`."""
    path = conjugate_gradient_path(
        operator, damping, as_columns(model, curvature, queries), iterations=iterations,
        preconditioner=curvature_preconditioner(model, curvature, damping, approximation),
    )  # fmt: skip
    for vectors in path:
        yield as_gradients(model, curvature, vectors)


def as_columns(model: Denoiser, curvature: Curvature, queries: GradientSet) -> Float[Tensor, "P Q"]:
    """Gradients as the operators take them: a column each."""
    check_blocks(queries, curvature, "queries")
    rotated = queries.whole()
    plain = {name: layer.from_eigenbasis(rotated[name]) for name, layer in curvature.layers.items()}
    return flatten_layers(joined_from_blocks(plain, curvature.blocks(model)))


def as_gradients(model: Denoiser, curvature: Curvature, vectors: Float[Tensor, "P Q"]) -> GradientSet:
    """The inverse of `as_columns`."""
    parts = split_into_blocks(split_layers(model, vectors, curvature.covers), curvature.blocks(model))
    return GradientSet.of({name: layer.to_eigenbasis(parts[name]) for name, layer in curvature.layers.items()})


def solved_scores(
    solved: Sequence[GradientSet], train: GradientSet, *, count: int | None = None
) -> Float[Tensor, "D Q N"]:
    """Scores (1/N) x_q · ∇ℓ_n with each of several solutions x_q; float64, on the CPU.

    Args:
        solved: from `solved_queries` or `solution_path`.
        train: gradients in the eigenbasis; read once.
        count: N, the number of images the model was trained on; default all of `train`.
    """
    total = images_trained_on(count, train)
    for solution in solved:
        check_blocks(solution, train, "solutions")
    columns = [torch.stack([products(part.whole(), shard) for part in solved]) for _, shard in train.shards()]
    return torch.cat(columns, dim=-1) / total


def _check_options(method: str, max_iterations: int, tolerance: float | None, scale: float | None) -> None:
    checked("method", method, IterativeMethod)
    check_counts(max_iterations=max_iterations)
    require(tolerance is None or 0 < tolerance < 1, f"tolerance={tolerance}: give a relative residual between 0 and 1, or None "
            "for a fixed number of iterations")  # fmt: skip
    require(scale is None or (scale > 0 and method == "neumann"), f"scale={scale} with method={method!r}: give a positive "
            "number, and for 'neumann' only")  # fmt: skip
