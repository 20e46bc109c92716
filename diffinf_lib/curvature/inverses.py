"""Inverses: (F + λI)⁻¹ times vectors for an exact operator, by iteration, with EK-FAC as preconditioner if wanted."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from curvlinops._torch_base import PyTorchLinearOperator as Operator
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Approximation
from diffinf_lib.curvature.blocks import joined_from_blocks, split_into_blocks
from diffinf_lib.curvature.damping import damped_inverse
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.curvature.operators import flatten_layers, split_layers
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.options import check_counts
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings

Multiply = Callable[[Float[Tensor, "P n"]], Float[Tensor, "P n"]]


@dataclass(frozen=True)
class Solution:
    """(F + λI)⁻¹v by iteration, and how well it was reached.

    Attributes:
        vectors: shaped as the right-hand sides, `[P]` or `[P, n]`.
        iterations: products with F that the longest of them took.
        residuals: ‖v − (F + λI) x‖ / ‖v‖ of each, computed anew at the end, `[n]`.
        converged: whether all residuals are below the tolerance that was asked for.
    """

    vectors: Float[Tensor, "P *n"]
    iterations: int
    residuals: Float[Tensor, "columns"]  # noqa: F821
    converged: bool


@own_settings
def curvature_preconditioner(
    model: Denoiser, curvature: Curvature, damping: float, approximation: Approximation = "ekfac"
) -> Multiply:
    """(F̂ + λI)⁻¹ with F̂ a fitted curvature, Q_B [(Q_Bᵀ V Q_A) / (Λ + λ)] Q_Aᵀ, as preconditioner of F + λI.

    EK-FAC is near enough to the GGN to make its inverse cheaper by iteration, and the iteration repairs what EK-FAC leaves
    out, between layers too (ASTRA, Wang et al. 2025). It pays where damping is small and draws are many. A GGN of few
    draws has low rank r, plain conjugate gradients take at most r + 1 steps there, and a preconditioner may add some.

    Args:
        damping: λ of the system to be solved. What the curvature says nothing about is left out (see `damped_inverse`): a
            solution has no part there.

    Raises:
        ConfigurationError: the curvature belongs to a model of other layers, or was not fitted as `approximation`.
    """
    blocks = curvature.blocks(model)
    inverse = {
        name: damped_inverse(layer.eigenvalues(approximation), damping) for name, layer in curvature.layers.items()
    }

    def precondition(vectors: Float[Tensor, "P n"]) -> Float[Tensor, "P n"]:
        parts = split_into_blocks(split_layers(model, vectors, curvature.covers), blocks)
        for name, layer in curvature.layers.items():
            parts[name] = layer.from_eigenbasis(layer.to_eigenbasis(parts[name]) * inverse[name])
        return flatten_layers(joined_from_blocks(parts, blocks))

    return precondition


@own_settings
def conjugate_gradient_inverse(
    operator: Operator | Float[Tensor, "P P"],
    damping: float,
    vectors: Float[Tensor, "P *n"],
    *,
    preconditioner: Multiply | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 200,
) -> Solution:
    """(F + λI)⁻¹v by preconditioned conjugate gradients (Hestenes & Stiefel 1952), all columns side by side.

    Args:
        operator: F, symmetric; F + λI must be positive definite. A dense matrix will do.
        vectors: right-hand sides v, `[P]` or columns `[P, n]`; memory grows with n.
        preconditioner: an approximate inverse of F + λI, such as `curvature_preconditioner`.
        tolerance: relative residual at which a column is done.

    Raises:
        ConfigurationError: a damping that is negative or not finite, or F + λI is not positive definite.
    """
    multiply, right, precondition = _system(operator, damping, vectors, preconditioner, max_iterations)
    solution, iterations = torch.zeros_like(right), 0
    path = _conjugate_gradient_path(multiply, right, precondition, damping, tolerance)
    for iterations, solution in enumerate(islice(path, max_iterations), start=1):  # noqa: B007
        pass
    return _solution("conjugate gradients", multiply, right, solution, iterations, tolerance, vectors)


@own_settings
def conjugate_gradient_path(
    operator: Operator | Float[Tensor, "P P"],
    damping: float,
    vectors: Float[Tensor, "P *n"],
    *,
    preconditioner: Multiply | None = None,
    iterations: int = 5,
) -> Iterator[Float[Tensor, "P *n"]]:
    """What conjugate gradients have found after 1, 2, …, `iterations` steps; arguments as `conjugate_gradient_inverse`.

    Stopping early regularises: the first steps settle the directions in which the preconditioner was furthest off and the
    curvature is large, and leave those that a GGN of few draws knows little about to the preconditioner.
    """
    multiply, right, precondition = _system(operator, damping, vectors, preconditioner, iterations)
    for solution in islice(_conjugate_gradient_path(multiply, right, precondition, damping, 0.0), iterations):
        yield solution.view_as(vectors)


def _conjugate_gradient_path(
    multiply: Multiply, right: Float[Tensor, "P n"], precondition: Multiply, damping: float, tolerance: float
) -> Iterator[Float[Tensor, "P n"]]:
    """The iterates, until every column's residual is below the tolerance."""
    # not curvlinops' CGInverseLinearOperator: its fixed 1e-10 for "zero" stops it at residuals of 1e-5, or at once where
    # damped curvature is small; it takes ten steps at least, and says neither how many nor how far they came
    solution, residual = torch.zeros_like(right), right.clone()
    direction = precondition(residual)
    inner, target = _columns(residual, direction), tolerance * right.norm(dim=0)
    # a residual that the preconditioner does not see lies where the curvature says nothing: nothing is left to do there
    while (active := (residual.norm(dim=0) > target) & (inner > 0)).any():
        product = multiply(direction)
        along = _columns(direction, product)
        _check_definite(along[active], damping)
        step = torch.where(active, inner / along, 0.0)
        solution, residual = solution + step * direction, residual - step * product
        yield solution
        preconditioned = precondition(residual)
        inner, before = _columns(residual, preconditioned), inner
        direction = preconditioned + torch.where(active, inner / before, 0.0) * direction


@own_settings
def neumann_inverse(
    operator: Operator | Float[Tensor, "P P"],
    damping: float,
    vectors: Float[Tensor, "P *n"],
    *,
    preconditioner: Multiply | None = None,
    scale: float | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
) -> Solution:
    """(F + λI)⁻¹v by the Neumann series α Σ_k (I − αP(F + λI))^k P v, with a preconditioner P as in ASTRA.

    Without a preconditioner it is LiSSA (Agarwal et al. 2017). It needs no inner products, so F may be another sample of
    draws in every product; where F is fixed, conjugate gradients take fewer of them.

    Args:
        scale: α; the series converges if it is below 2 over the largest eigenvalue of P(F + λI). Default: 1 over it,
            from 20 power iterations, which are not counted.

    Raises:
        ConfigurationError: a damping that is negative or not finite, or the series diverges.
    """
    # curvlinops' NeumannInverseLinearOperator takes no preconditioner, and a fixed number of terms
    multiply, right, precondition = _system(operator, damping, vectors, preconditioner, max_iterations)
    chosen = 1 / largest_eigenvalue(multiply, right[:, 0], precondition) if scale is None else scale
    solution, residual, target = torch.zeros_like(right), right.clone(), tolerance * right.norm(dim=0)
    iterations = 0
    while iterations < max_iterations and (residual.norm(dim=0) > target).any():
        step = chosen * precondition(residual)
        solution, residual = solution + step, residual - multiply(step)
        iterations += 1
        grown = residual.norm(dim=0) > 1e6 * right.norm(dim=0)
        require(bool(residual.isfinite().all()) and not grown.any(), f"scale={chosen:.3g}: the Neumann series diverges; "
                "give a smaller scale, a better preconditioner or use conjugate gradients")  # fmt: skip
    return _solution("Neumann series", multiply, right, solution, iterations, tolerance, vectors)


def largest_eigenvalue(
    multiply: Multiply, like: Float[Tensor, "P"], precondition: Multiply | None = None, *, iterations: int = 20
) -> float:
    """The largest eigenvalue of PA by power iteration, from below (A and P symmetric positive definite)."""
    generator = keyed_generator("largest-eigenvalue")
    vector = torch.randn(len(like), 1, generator=generator).to(like)
    value = torch.ones(())
    for _ in range(iterations):
        product = multiply(vector)
        following = precondition(product) if precondition else product
        value = _columns(following, product)[0] / _columns(vector, product)[0]
        vector = following / following.norm()
    return float(value)


def _system(
    operator: Operator | Float[Tensor, "P P"],
    damping: float,
    vectors: Float[Tensor, "rows *n"],  # noqa: F821
    preconditioner: Multiply | None,
    max_iterations: int,
) -> tuple[Multiply, Float[Tensor, "P columns"], Multiply]:
    """Multiplication with F + λI, the right-hand sides as columns, and the preconditioner; checked."""
    require(0 <= damping < float("inf"), f"damping={damping}: give a number >= 0, such as 1e-8")
    check_counts(max_iterations=max_iterations)
    right = vectors if vectors.ndim == 2 else vectors.unsqueeze(1)
    require(len(right) == operator.shape[1], f"vectors have {len(right)} rows, the operator {operator.shape[1]} columns; "
            "give vectors of the same model")  # fmt: skip
    return (lambda v: operator @ v + damping * v), right, preconditioner or (lambda v: v)


def _columns(left: Float[Tensor, "P n"], right: Float[Tensor, "P n"]) -> Float[Tensor, "n"]:
    """The inner product of each column with its counterpart."""
    return (left * right).sum(0)


def _check_definite(along: Float[Tensor, "n"], damping: float) -> None:
    require(bool((along > 0).all()), f"damping={damping}: F + λI is not positive definite; "
            "give more damping, or a GGN in place of a Hessian")  # fmt: skip


def _solution(
    method: str,
    multiply: Multiply,
    right: Float[Tensor, "P columns"],
    solution: Float[Tensor, "P columns"],
    iterations: int,
    tolerance: float,
    asked: Float[Tensor, "P *n"],
) -> Solution:
    """Shape the result like the question, with its true residual; a warning if that is too large."""
    norms = right.norm(dim=0)
    residuals = (right - multiply(solution)).norm(dim=0) / torch.where(norms > 0, norms, 1.0)
    converged = bool((residuals <= tolerance).all())
    if not converged:
        warnings.warn(
            f"{method}: relative residual {float(residuals.max()):.1e} after {iterations} iterations, tolerance="
            f"{tolerance:.1e}; give more max_iterations, more damping, or a larger tolerance (rounding bounds it in float32)",
            stacklevel=3,
        )
    return Solution(solution.view_as(asked), iterations, residuals, converged)
