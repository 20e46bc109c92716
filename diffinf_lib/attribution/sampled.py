"""Sampled GGN: influence on K-FAC's or EK-FAC's eigenvalues corrected by some thousand sampled gradients of the output.

Products with the exact GGN cost passes for every query and every step. The gradients of random sums of outputs are a sample
of the GGN that is paid for once: with signs r, E[(Jᵀr)(Jᵀr)ᵀ] = JᵀJ. Alone they have too low a rank, so the fitted curvature
is mixed in, as a shrunken covariance is (Ledoit & Wolf 2004). What it leaves out, between layers and within blocks, the
sample puts back where gradients are large; the rest stays the fitted curvature's.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Approximation
from diffinf_lib.curvature import Curvature, conjugate_gradient_path
from diffinf_lib.curvature.damping import damped_inverse
from diffinf_lib.curvature.operators import MatrixOperator
from diffinf_lib.errors import require
from diffinf_lib.gradients import GradientSet, LayerGradients, check_blocks
from diffinf_lib.settings import own_settings


class SampledGGN(MatrixOperator):
    """(1 − w) Λ + w (2/C) mean (Jᵀr)(Jᵀr)ᵀ in the eigenbasis of a curvature, Λ its eigenvalues.

    Args:
        probes: gradients Jᵀr of the objective `output_probe`, one draw an image; read in every product, so hold them in memory.
        outputs: C, numbers in one output.
        weight: w of the sample, above 0 and up to 1.

    Raises:
        ConfigurationError: no probes, those of other blocks than the curvature's, or a weight out of range.
    """

    def __init__(
        self,
        curvature: Curvature,
        probes: Sequence[GradientSet],
        outputs: int,
        *,
        weight: float = 0.1,
        approximation: Approximation = "ekfac",
    ):
        require(0 < weight <= 1, f"weight={weight}: give a share of the sample above 0 and up to 1")
        require(len(probes) > 0, "probes: give at least one set of sampled gradients")
        for probe in probes:
            check_blocks(probe, curvature, "probes")
        values = [layer.eigenvalues(approximation) for layer in curvature.layers.values()]
        super().__init__([tuple(value.shape) for value in values], values[0])
        self.curvature, self.probes = curvature, probes
        self.fitted = torch.cat([value.flatten() for value in values])
        self.weight, self.scale = weight, 2 / outputs / sum(probe.count for probe in probes)

    def _matmat(self, matrices: list[Float[Tensor, "_O _I n"]]) -> list[Float[Tensor, "_O _I n"]]:
        vectors = torch.cat([matrix.flatten(0, 1) for matrix in matrices])
        product = (1 - self.weight) * self.fitted.unsqueeze(1) * vectors
        for probe in self.probes:
            for _, shard in probe.shards():
                rows = _flat(shard, self.curvature).to(vectors)
                product.addmm_(rows.T, rows @ vectors, alpha=self.weight * self.scale)
        parts = product.split(self._in_shape_flat)
        return [part.view_as(matrix) for part, matrix in zip(parts, matrices, strict=True)]


@own_settings
def sampled_path(
    curvature: Curvature,
    operator: SampledGGN,
    queries: GradientSet,
    *,
    damping: float,
    iterations: int,
    approximation: Approximation = "ekfac",
) -> Iterator[GradientSet]:
    """(F + λI)⁻¹ ∇m_q in the eigenbasis after each of the first steps of conjugate gradients; see `solution_path`.

    Args:
        operator: F; its products cost no passes.
        queries: gradients in the eigenbasis.
        approximation: of the preconditioner.
    """
    check_blocks(queries, curvature, "queries")
    layers = curvature.layers
    inverse = torch.cat(
        [damped_inverse(layer.eigenvalues(approximation), damping).flatten() for layer in layers.values()]
    )
    path = conjugate_gradient_path(
        operator, damping, _flat(queries.whole(), curvature).T, iterations=iterations,
        preconditioner=lambda vectors: inverse.unsqueeze(1) * vectors,
    )  # fmt: skip
    for vectors in path:
        parts = vectors.T.split(
            [outputs * inputs for outputs, inputs in (queries.shapes[name] for name in layers)], dim=1
        )
        yield GradientSet.of(
            {name: part.reshape(-1, *queries.shapes[name]) for name, part in zip(layers, parts, strict=True)}
        )


def _flat(gradients: LayerGradients, curvature: Curvature) -> Float[Tensor, "n P"]:
    return torch.cat([gradients[name].flatten(1) for name in curvature.layers], dim=1)
