"""EK-FAC: K-FAC's eigenvectors with the eigenvalues measured anew (George et al. 2018).

In the basis Q_B ⊗ Q_A of K-FAC's eigenvectors, the best diagonal (in Frobenius norm) is the second moment of the rotated
gradients,

    Λ = E[(Q_Bᵀ G Q_A)²]   (element by element, [d_out, d_in]),

so that (F + λI)⁻¹ G ≈ Q_B [(Q_Bᵀ G Q_A) / (Λ + λ)] Q_Aᵀ. K-FAC's own eigenvalues are the outer product of its factors'.
Without a change of basis the same second moment is the diagonal of the curvature, and its mean the best multiple of the
identity.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Approximation
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.options import checked

FLOAT64_LIMIT = 1024
"""Factors up to this size are decomposed in float64; above it in float32, several times faster and good to 1e-6."""


@dataclass(frozen=True)
class LayerCurvature:
    """The curvature of one block in its eigenbasis; without eigenvectors the basis is that of the weights."""

    input_eigenvectors: Float[Tensor, "I I"] | None = None
    output_eigenvectors: Float[Tensor, "O O"] | None = None
    kfac_eigenvalues: Float[Tensor, "O I"] | None = None
    corrected_eigenvalues: Float[Tensor, "O I"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the block."""
        values = self.kfac_eigenvalues if self.corrected_eigenvalues is None else self.corrected_eigenvalues
        assert values is not None
        return values.shape[0], values.shape[1]

    def to_eigenbasis(self, gradients: Float[Tensor, "... O I"]) -> Float[Tensor, "... O I"]:
        """Q_Bᵀ G Q_A of each gradient."""
        if self.input_eigenvectors is None or self.output_eigenvectors is None:
            return gradients
        return self.output_eigenvectors.T @ gradients @ self.input_eigenvectors

    def from_eigenbasis(self, rotated: Float[Tensor, "... O I"]) -> Float[Tensor, "... O I"]:
        """Q_B R Q_Aᵀ, the inverse of `to_eigenbasis`."""
        if self.input_eigenvectors is None or self.output_eigenvectors is None:
            return rotated
        return self.output_eigenvectors @ rotated @ self.input_eigenvectors.T

    @property
    def best(self) -> Approximation:
        """The closest approximation that these eigenvalues can give."""
        if self.corrected_eigenvalues is None:
            return "kfac"
        return "diagonal" if self.input_eigenvectors is None else "ekfac"

    def eigenvalues(self, approximation: Approximation) -> Float[Tensor, "O I"]:
        """The eigenvalues that an approximation divides by.

        The identity's are the mean of the corrected ones, or of K-FAC's where there are no others: the trace is kept.

        Raises:
            ConfigurationError: there is no such approximation, or this fit cannot give it.
        """
        checked("approximation", approximation, Approximation)
        if approximation == "identity":
            values = self.eigenvalues(self.best)
            return values.mean().expand_as(values)
        if approximation == "kfac" and self.kfac_eigenvalues is not None:
            return self.kfac_eigenvalues
        if approximation != self.best or self.corrected_eigenvalues is None:
            fitted = "'diagonal' or 'identity'" if self.best == "diagonal" else repr(self.best)
            raise ConfigurationError(f"approximation={approximation!r}: this curvature was fitted as {fitted}; fit it as "
                                     f"{approximation!r}")  # fmt: skip
        return self.corrected_eigenvalues

    def block(self, approximation: Approximation) -> Float[Tensor, "OI OI"]:
        """The dense block in the order of the flattened `[d_out, d_in]` gradient; small blocks only."""
        values = self.eigenvalues(approximation).flatten()
        if self.input_eigenvectors is None or self.output_eigenvectors is None:
            return torch.diag(values)
        basis = torch.kron(self.output_eigenvectors, self.input_eigenvectors)
        return basis @ (values.unsqueeze(1) * basis.T)


def eigenbasis(factors: KroneckerFactors) -> LayerCurvature:
    """Eigenvectors and K-FAC's eigenvalues from the two factors, kept in the factors' type.

    A factor is positive semi-definite; eigenvalues that come out below zero by rounding are set to zero.
    """
    kind = factors.input_factor.dtype
    input_values, input_vectors = _decomposed(factors.input_factor)
    output_values, output_vectors = _decomposed(factors.output_gradient_factor)
    eigenvalues = torch.outer(output_values.clamp(min=0), input_values.clamp(min=0))
    return LayerCurvature(input_vectors.to(kind), output_vectors.to(kind), eigenvalues.to(kind))


def _decomposed(factor: Float[Tensor, "d d"]) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(factor.double() if len(factor) <= FLOAT64_LIMIT else factor)
    return values.double(), vectors.double()


def correction_sum(layer: LayerCurvature, gradients: Float[Tensor, "U O I"]) -> Float[Tensor, "O I"]:
    """Σ over gradients of (Q_Bᵀ G Q_A)²."""
    return layer.to_eigenbasis(gradients).square().sum(0)
