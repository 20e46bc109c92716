"""K-FAC: the curvature of a block as a Kronecker product of two small matrices (Martens & Grosse 2015).

For gradients G = Σ_p g_p a_pᵀ, summed over the positions that share the weights, the block of the curvature is
E[vec(G) vec(G)ᵀ]. K-FAC replaces it by B ⊗ A; with shared weights there are two ways (Eschenhagen et al. 2023):

    expand   A = E[mean_p a_p a_pᵀ]      B = E[Σ_p g_p g_pᵀ]
    reduce   A = E[ā āᵀ], ā = mean_p a_p   B = E[ĝ ĝᵀ], ĝ = Σ_p g_p

with A `[d_in, d_in]` and B `[d_out, d_out]`. Expand is exact when inputs and output gradients are independent and there is
one position, as in a deep linear network; reduce when the positions agree. Here are the definitions, plainly computed;
`covariance` has the fast ways to the input factor.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class KroneckerFactors:
    """A and B of one block; the block, in the order of the flattened `[d_out, d_in]` gradient, is B ⊗ A."""

    input_factor: Float[Tensor, "I I"]
    output_gradient_factor: Float[Tensor, "O O"]


def second_moment(rows: Float[Tensor, "n d"]) -> Float[Tensor, "d d"]:
    """Σ r rᵀ over rows."""
    return rows.T @ rows


def input_factor_sum(inputs: Float[Tensor, "B L I"]) -> Float[Tensor, "I I"]:
    """Expand: Σ over draws of mean_p a_p a_pᵀ."""
    return second_moment(inputs.flatten(0, 1)) / inputs.shape[1]


def output_gradient_factor_sum(gradients: Float[Tensor, "B L O"]) -> Float[Tensor, "O O"]:
    """Expand: Σ over draws and positions of g_p g_pᵀ."""
    if gradients.shape[1] > 1 and gradients.stride(1) == 1:  # a convolution's: [B, O, L] seen from the side, no copy
        return (gradients.transpose(1, 2) @ gradients).sum(0)
    return second_moment(gradients.flatten(0, 1))
