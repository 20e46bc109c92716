"""EK-FAC: K-FAC's eigenvectors with the eigenvalues measured anew (George et al. 2018).

In the basis Q_B ⊗ Q_A of K-FAC's eigenvectors, the best diagonal (in Frobenius norm) is the second moment of the rotated
per-draw gradients,

    Λ = E[(Q_Bᵀ G Q_A)²]   (element by element, [d_out, d_in]),

so that (F + λI)⁻¹ G ≈ Q_B [(Q_Bᵀ G Q_A) / (Λ + λ)] Q_Aᵀ. K-FAC's own eigenvalues are the outer product of its factors'.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.curvature.config import Approximation
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.errors import ConfigurationError, require


@dataclass(frozen=True)
class LayerCurvature:
    """The curvature of one layer in its eigenbasis."""

    input_eigenvectors: Float[Tensor, "I I"]
    output_eigenvectors: Float[Tensor, "O O"]
    kfac_eigenvalues: Float[Tensor, "O I"]
    corrected_eigenvalues: Float[Tensor, "O I"] | None = None

    def to_eigenbasis(self, gradients: Float[Tensor, "... O I"]) -> Float[Tensor, "... O I"]:
        """Q_Bᵀ G Q_A of each gradient."""
        return self.output_eigenvectors.T @ gradients @ self.input_eigenvectors

    def eigenvalues(self, approximation: Approximation) -> Float[Tensor, "O I"]:
        """The eigenvalues that an approximation divides by.

        Raises:
            ConfigurationError: there is no such approximation, or EK-FAC's are asked of a fit of K-FAC only.
        """
        require(approximation in ("ekfac", "kfac"), f"approximation={approximation!r}: give 'ekfac' or 'kfac'")
        if approximation == "kfac":
            return self.kfac_eigenvalues
        if self.corrected_eigenvalues is None:
            raise ConfigurationError("approximation='ekfac': this curvature was fitted as 'kfac'; fit it as 'ekfac'")
        return self.corrected_eigenvalues

    def block(self, approximation: Approximation) -> Float[Tensor, "OI OI"]:
        """The dense block in the order of the flattened `[d_out, d_in]` gradient; small layers only."""
        basis = torch.kron(self.output_eigenvectors, self.input_eigenvectors)
        return basis @ (self.eigenvalues(approximation).flatten().unsqueeze(1) * basis.T)


def eigenbasis(factors: KroneckerFactors) -> LayerCurvature:
    """Eigenvectors and K-FAC's eigenvalues from the two factors; computed in float64, kept in the factors' type.

    A factor is positive semi-definite; eigenvalues that come out below zero by rounding are set to zero.
    """
    kind = factors.input_factor.dtype
    input_values, input_vectors = torch.linalg.eigh(factors.input_factor.double())
    output_values, output_vectors = torch.linalg.eigh(factors.output_gradient_factor.double())
    eigenvalues = torch.outer(output_values.clamp(min=0), input_values.clamp(min=0))
    return LayerCurvature(input_vectors.to(kind), output_vectors.to(kind), eigenvalues.to(kind))


def correction_sum(
    layer: LayerCurvature, inputs: Float[Tensor, "B P I"], output_gradients: Float[Tensor, "B P O"]
) -> Float[Tensor, "O I"]:
    """Σ over draws of (Q_Bᵀ G Q_A)², with G the gradient of one draw."""
    gradients = output_gradients.transpose(1, 2) @ inputs
    return layer.to_eigenbasis(gradients).square().sum(0)
