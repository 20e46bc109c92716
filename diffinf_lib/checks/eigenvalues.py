"""Checks of EK-FAC: the corrected eigenvalues, and their estimate from batches with random signs (chapter 07)."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers, orthogonal


def _rotated(gradients: Tensor, of_outputs: Tensor, of_inputs: Tensor) -> Tensor:
    return of_outputs.T @ gradients @ of_inputs


def _corrected(together: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda *given: together(_rotated(*given))


def _products(gradients: Tensor, of_outputs: Tensor, of_inputs: Tensor) -> Tensor:
    """K-FAC's eigenvalues in place of corrected ones: the outer product of the factors' diagonals, the trace kept."""
    squares = _rotated(gradients, of_outputs, of_inputs).square().mean(0)
    return torch.outer(squares.sum(1), squares.sum(0)) / squares.sum()


@exercise(
    gives="the corrected eigenvalues",
    mistakes={
        "the square of the mean is taken; take the mean of the squares": _corrected(lambda r: r.mean(0).square()),
        "this is a variance; take the second moment, without subtracting the mean": _corrected(
            lambda r: r.var(0, correction=0)
        ),
        "this is a variance, divided by S − 1; take the second moment": _corrected(lambda r: r.var(0)),
        "this is the root of the second moment; an eigenvalue is the second moment itself": _corrected(
            lambda r: r.square().mean(0).sqrt()
        ),
        "this is a sum over draws; give their mean": _corrected(lambda r: r.square().sum(0)),
        "the squares are missing": _corrected(lambda r: r.abs().mean(0)),
        "this rotates out of the eigenbasis, Q_B G Q_Aᵀ; into it is Q_Bᵀ G Q_A": lambda g, b, a: _corrected(
            lambda r: r.square().mean(0)
        )(g, b.T, a.T),
        "the gradients are not rotated: this is the diagonal of the curvature in the basis of the weights": (
            lambda g, b, a: g.square().mean(0)
        ),
        "the eigenvectors stand on each other's side": lambda g, b, a: _corrected(lambda r: r.square().mean(0))(
            g, a, b
        ),
        "this is a product of one number a row and one a column, as K-FAC has it; each entry is measured for itself": _products,
    },
)
def corrected_eigenvalues() -> Iterator[Case]:
    """`corrected_eigenvalues(gradients, output_eigenvectors, input_eigenvectors)` → Λ `[d_out, d_in]`.

    gradients G `[S, d_out, d_in]`, one a draw; Q_B `[d_out, d_out]` and Q_A `[d_in, d_in]` hold eigenvectors of B and of A in
    their columns. Λ is the diagonal of F = E[vec(G) vec(G)ᵀ] in the basis Q_B ⊗ Q_A.
    """
    for draws, outputs, inputs in ((4, 3, 3), (5, 2, 4)):
        gradients = normal("per-draw", draws, outputs, inputs) + 0.5
        of_outputs, of_inputs = orthogonal("output-basis", outputs), orthogonal("input-basis", inputs)
        name = f"{draws} draws of {outputs}×{inputs} gradients, against the diagonal of the dense matrix"
        given = gradients, of_outputs, of_inputs
        yield Case(name, _dense_diagonal(*given), given, {"S": draws})


def _dense_diagonal(gradients: Tensor, of_outputs: Tensor, of_inputs: Tensor) -> Tensor:
    """The diagonal of QᵀFQ, with F and Q = Q_B ⊗ Q_A written out."""
    flat = gradients.flatten(1)
    basis = torch.kron(of_outputs, of_inputs)
    return (basis.T @ (flat.T @ flat / len(flat)) @ basis).diagonal().view(gradients.shape[1:])


def _batched(
    prepared: Callable[[Tensor, Tensor], Tensor] = lambda g, signs: g * signs.view(-1, 1, 1),
    scale: Callable[[int, int], float] = lambda draws, each: 1 / draws,
    square_first: bool = False,
) -> Callable[..., Tensor]:
    """Λ from sums of draws; what is summed, and what the squares are multiplied by, given S and how many are in a sum."""

    def batched_correction(
        g: Tensor, of_outputs: Tensor, of_inputs: Tensor, signs: Tensor, draws_per_sum: int
    ) -> Tensor:
        parts = [part.sum(0) for part in prepared(g, signs).split(draws_per_sum)]
        rotated = torch.stack([_rotated(part, of_outputs, of_inputs) for part in parts])
        return scale(len(g), draws_per_sum) * (rotated.sum(0).square() if square_first else rotated.square().sum(0))

    return batched_correction


def _signed_squares(g: Tensor, of_outputs: Tensor, of_inputs: Tensor, signs: Tensor, draws_per_sum: int) -> Tensor:
    return (signs.view(-1, 1, 1) * _rotated(g, of_outputs, of_inputs).square()).mean(0)


@exercise(
    gives="the corrected eigenvalues",
    mistakes={
        "the signs are missing: without them the draws' products do not cancel": _batched(lambda g, signs: g),
        "divided by the number of sums; each square stands for all draws of its sum, so divide by S": _batched(
            scale=lambda draws, each: 1 / math.ceil(draws / each)
        ),
        "divided by S · draws_per_sum, or by its square: a sum of draws was taken for their mean": _batched(
            scale=lambda draws, each: 1 / (draws * each)
        ),
        "not divided by the number of draws": _batched(scale=lambda draws, each: 1.0),
        "the sums are added up before the square; square each on its own": _batched(square_first=True),
        "the signs are applied to the squares, not to the gradients": _signed_squares,
        "this rotates out of the eigenbasis, Q_B G Q_Aᵀ; into it is Q_Bᵀ G Q_A": lambda g, b, a, signs, each: _batched()(
            g, b.T, a.T, signs, each
        ),
    },
)  # fmt: skip
def batched_correction() -> Iterator[Case]:
    """`batched_correction(gradients, output_eigenvectors, input_eigenvectors, signs, draws_per_sum)` → an estimate of Λ.

    gradients G `[S, d_out, d_in]`, one a draw; Q_B `[d_out, d_out]` and Q_A `[d_in, d_in]` with eigenvectors in columns;
    signs `[S]`, ±1 for each draw; draws_per_sum: how many, in order, are added up with their signs before the square, the last
    sum taking what is left. Over all signs the mean of the answers must be the corrected eigenvalues.
    """
    gradients = normal("per-draw", 5, 3, 3) + 0.5
    of_outputs, of_inputs = orthogonal("output-basis", 3), orthogonal("input-basis", 3)
    exact, signs = _dense_diagonal(gradients, of_outputs, of_inputs), numbers(1.0, -1.0, -1.0, 1.0, -1.0)
    given = gradients, of_outputs, of_inputs
    yield Case("sums of one draw, which are exact", exact, (*given, signs, 1))
    one = (
        of_outputs.T @ (gradients[0] - gradients[1] - gradients[2] + gradients[3] - gradients[4]) @ of_inputs
    ) ** 2 / 5
    yield Case("one sum of five draws, with one choice of signs", one, (*given, signs, 5))
    for draws_per_sum in (2, 5):
        name = f"sums of {draws_per_sum} draws, averaged over all 32 choices of signs"
        yield Case(name, exact, (*given, draws_per_sum), ask=_over_all_signs)


def _over_all_signs(
    function: Callable[..., Tensor], gradients: Tensor, of_outputs: Tensor, of_inputs: Tensor, draws_per_sum: int
) -> Tensor:
    choices = [numbers(*signs) for signs in itertools.product((1.0, -1.0), repeat=len(gradients))]
    return torch.stack([function(gradients, of_outputs, of_inputs, signs, draws_per_sum) for signs in choices]).mean(0)
