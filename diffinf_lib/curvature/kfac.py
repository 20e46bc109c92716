"""K-FAC: the curvature of a layer as a Kronecker product of two small matrices (Martens & Grosse 2015).

For a layer with gradient G = Σ_p g_p a_pᵀ the block of the GGN is E[vec(G) vec(G)ᵀ]. K-FAC with weights shared over
positions ("expand", Eschenhagen et al. 2023) replaces it by B ⊗ A with

    A = E[mean_p a_p a_pᵀ]   (inputs, [d_in, d_in]),     B = E[Σ_p g_p g_pᵀ]   (output gradients, [d_out, d_out]).

It is exact when inputs and output gradients are independent and there is one position, as in a deep linear network.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class KroneckerFactors:
    """A and B of one layer; the layer's block, in the order of the flattened `[d_out, d_in]` gradient, is B ⊗ A."""

    input_factor: Float[Tensor, "I I"]
    output_gradient_factor: Float[Tensor, "O O"]


def input_factor_sum(inputs: Float[Tensor, "B P I"]) -> Float[Tensor, "I I"]:
    """Σ over draws of mean_p a_p a_pᵀ."""
    rows = inputs.flatten(0, 1)
    return (rows.T @ rows) / inputs.shape[1]


def output_gradient_factor_sum(gradients: Float[Tensor, "B P O"]) -> Float[Tensor, "O O"]:
    """Σ over draws and positions of g_p g_pᵀ."""
    rows = gradients.flatten(0, 1)
    return rows.T @ rows
