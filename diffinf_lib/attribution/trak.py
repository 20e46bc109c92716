"""TRAK: influence whose curvature is the Gram matrix of the training gradients, exactly or through a random projection.

With φ the gradient of an output function and Φ `[N, P]` those of all training images, a score is φ_q (ΦᵀΦ + λI)⁻¹ φ_n. TRAK
(Park et al. 2023) takes the loss for the output; D-TRAK (Zheng et al. 2024) takes others, such as ‖ε_θ‖², for training image
and query alike. The algebra is the same: which of the two it is, the given gradients decide.

A score needs inner products only. By the push-through identity Φ_q (ΦᵀΦ + λI)⁻¹ Φᵀ = K_q (K + λI)⁻¹ with K = ΦΦᵀ and
K_q = Φ_q Φᵀ, so N×N numbers stand for P×P ones and nothing need be projected. A projection to k dimensions, TRAK's own form,
replaces inner products by estimates whose error falls like 1/√k; it reads the training gradients once and keeps k numbers each.

With gradients of the loss, ΦᵀΦ/N is GGN^loss per example, and influence on it, (1/N) ∇m_qᵀ (ΦᵀΦ/N + λ'I)⁻¹ ∇ℓ_n, is TRAK
with λ = Nλ': the scores have the scale and the sign of every other influence, the 1/N included. With other output functions
the scale is arbitrary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import in_pairs
from diffinf_lib.compression import projected
from diffinf_lib.configuration import check_dampings
from diffinf_lib.curvature.damping import DampingKind, Inverses, damped_inverse, squared_rounding
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import GradientSet, LayerGradients, QueryGradients, check_blocks
from diffinf_lib.settings import own_settings

COPIED_ENTRIES = 1 << 24
"""Entries of gradients that are held in float64 at a time."""


@dataclass(frozen=True)
class TrakKernel:
    """ΦᵀΦ decomposed once: scores at any damping are sums over as many directions as its rank, w_i.

    Attributes:
        eigenvalues: κ, `[rank]`, of ΦᵀΦ.
        basis: `[F, rank]`; features of a query times this are φ_q · w_i.
        coordinates: c, `[N, rank]`; (ΦᵀΦ + λI)⁻¹ φ_n = Σ_i c_ni w_i / (κ_i + λ).
    """

    eigenvalues: Float[Tensor, "rank"]  # noqa: F821
    basis: Float[Tensor, "F rank"]
    coordinates: Float[Tensor, "N rank"]

    @staticmethod
    def of_gram(gram: Float[Tensor, "N N"]) -> "TrakKernel":
        """From K = ΦΦᵀ; the features of a query are its inner products with the training gradients, F = N."""
        values, vectors = torch.linalg.eigh(gram.double())
        return TrakKernel(values.clamp(min=0), vectors, vectors)

    @staticmethod
    def of_features(features: Float[Tensor, "N k"]) -> "TrakKernel":
        """From the features themselves, F = k; the smaller of the N×N and the k×k matrix is decomposed."""
        features = features.double()
        if len(features) <= features.shape[1]:
            kernel = TrakKernel.of_gram(features @ features.T)
            return replace(kernel, basis=features.T @ kernel.basis)
        values, vectors = torch.linalg.eigh(features.T @ features)
        return TrakKernel(values.clamp(min=0), vectors, features @ vectors)

    def scores(
        self,
        features: Float[Tensor, "Q F"],
        damping: float | Sequence[float],
        *,
        damping_kind: DampingKind = "absolute",
    ) -> Float[Tensor, "D Q N"]:
        """φ_q (ΦᵀΦ + λI)⁻¹ φ_n for each damping; float64.

        Args:
            damping_kind: `absolute`; or `relative` to the mean over training images of ‖φ_n‖².
        """
        inverses = Inverses(check_dampings(damping), damping_kind=damping_kind)
        unit = self.eigenvalues.sum() / len(self.coordinates) if damping_kind == "relative" else 1.0
        turned = features.double() @ self.basis
        factors = [
            damped_inverse(self.eigenvalues, value * unit, rounding=self.rounding) for value in inverses.dampings
        ]
        return torch.stack([(turned * factor) @ self.coordinates.T for factor in factors])

    @property
    def rounding(self) -> float:
        """What rounding may leave in κ, as a part of the largest: that of float32 gradients, or of the decomposition."""
        return max(squared_rounding(torch.float32), len(self.eigenvalues) * torch.finfo(torch.float64).eps)


class Trak:
    """Training gradients made ready to score any queries.

    Args:
        train: gradients of the training images' output function, all N of them. In the exact form shards are read once for
            each of them (pairs of shards meet), so keep them in a store; in the projected form they are read once.
        dimension: k of a random projection; None takes the exact inner products.
        seed: of the projection.

    Attributes:
        kernel: the decomposition.

    Raises:
        ConfigurationError: a projected store, or a dimension below 1.
    """

    def __init__(self, train: GradientSet, *, dimension: int | None = None, seed: int = 0):
        require(dimension is None or dimension > 0, f"dimension={dimension}: give a positive number, or None for the exact "
                "inner products")  # fmt: skip
        self.dimension, self.seed = dimension, seed
        self._train = train
        if dimension is None:
            self.kernel = TrakKernel.of_gram(gram_matrix(train))
        else:
            self.kernel = TrakKernel.of_features(self._projected(train, "train"))

    def features(self, queries: GradientSet) -> Float[Tensor, "Q F"]:
        """What the kernel takes of queries: inner products with the training gradients, or the projection; float64, CPU."""
        return (
            gradient_products(queries, self._train) if self.dimension is None else self._projected(queries, "queries")
        )

    def scores(
        self, queries: GradientSet, damping: float | Sequence[float], *, damping_kind: DampingKind = "absolute"
    ) -> Float[Tensor, "D Q N"]:
        """φ_q (ΦᵀΦ + λI)⁻¹ φ_n of given queries (see `trak_scores`)."""
        scores = self.kernel.scores(self.features(queries), damping, damping_kind=damping_kind)
        check_scores(scores, query=queries.ids, training_image=self._train.ids)
        return scores

    def _projected(self, gradients: GradientSet, name: str) -> Float[Tensor, "n k"]:
        assert self.dimension is not None
        check_blocks(gradients, self._train, name)
        parts = [projected(shard, self.dimension, seed=self.seed) for _, shard in gradients.shards()]
        return torch.cat([part.double().cpu() for part in parts])


@own_settings
def trak_scores(
    queries: GradientSet,
    train: GradientSet,
    *,
    damping: float | Sequence[float],
    dimension: int | None = None,
    seed: int = 0,
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D Q N"]:
    """TRAK or D-TRAK: φ_q (ΦᵀΦ + λI)⁻¹ φ_n for each damping; float64, on the CPU.

    A positive score says that leaving the image out raises the query's output. With gradients of the loss on both sides the
    scale is that of influence; otherwise it is arbitrary. No damping means a pseudo-inverse (see `damped_inverse`).

    Args:
        queries: gradients, plain or in any eigenbasis that the training gradients share.
        train: the same of all N training images (see `Trak` on shards).
        damping: λ ≥ 0, one or several, all from one decomposition. Influence with damping λ' is TRAK with λ = Nλ'.
        dimension: k of a random projection; None takes the exact inner products.
        seed: of the projection.
        damping_kind: `absolute`; or `relative` to the mean over training images of ‖φ_n‖².

    Raises:
        ConfigurationError: a damping is negative or NaN, blocks differ, or a store is projected.
    """
    Inverses(check_dampings(damping), damping_kind=damping_kind)  # refused before any work
    return Trak(train, dimension=dimension, seed=seed).scores(queries, damping, damping_kind=damping_kind)


@own_settings
def gradient_products(queries: GradientSet, train: GradientSet) -> Float[Tensor, "Q N"]:
    """φ · φ' of every pair, accumulated in float64 a block at a time; on the CPU. `train` is read once."""
    check_blocks(queries, train, "queries")
    return in_pairs(queries, train, exact_products)


@own_settings
def gram_matrix(train: GradientSet) -> Float[Tensor, "N N"]:
    """K = ΦΦᵀ of training gradients; two shards are in memory at a time."""
    _ = train.blocks  # refused before any work
    rows: list[list[Tensor]] = []
    for index, (_, mine) in enumerate(train.shards()):
        before = [exact_products(mine, other) for _, other in islice(train.shards(), index)]
        rows.append([*before, exact_products(mine, mine)])
    whole = [
        torch.cat([rows[i][j] if j <= i else rows[j][i].T for j in range(len(rows))], dim=1) for i in range(len(rows))
    ]
    return torch.cat(whole)


def exact_products(first: QueryGradients, second: LayerGradients) -> Float[Tensor, "q n"]:
    """Inner products in float64 of gradients in memory."""
    some = next(iter(first.values()))
    count = len(some), len(next(iter(second.values())))
    total = torch.zeros(*count, dtype=torch.float64, device=some.device)
    columns = max(1, COPIED_ENTRIES // sum(count))
    for name in first:
        pieces = (part[name].flatten(1).split(columns, dim=1) for part in (first, second))
        for left, right in zip(*pieces, strict=True):
            total.addmm_(left.double(), right.double().T)
    return total.cpu()
