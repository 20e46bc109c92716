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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.influence import together
from diffinf_lib.attribution.scoring import DampingKind, Inverses
from diffinf_lib.compression import PROJECTION, projected
from diffinf_lib.configuration import check_dampings
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores, first_not_finite
from diffinf_lib.gradients import LayerGradients
from diffinf_lib.settings import own_settings

GradientSource = LayerGradients | Callable[[], Iterable[tuple[slice, LayerGradients]]]
"""Gradients in one piece, or a function that starts a reading of their shards, such as
`lambda: gradient_shards(..., store=folder)`."""

CUTOFF = 1e-12
"""A direction whose damped eigenvalue is no larger than this part of the largest eigenvalue is left out: a pseudo-inverse.

Rounding of 10 eps in float32 gradients leaves 100 eps² ≈ 1e-12 in the eigenvalues of their Gram matrix.
"""

COPIED_ENTRIES = 1 << 24
"""Entries of gradients that are held in float64 at a time."""


@dataclass(frozen=True)
class TrakKernel:
    """ΦᵀΦ decomposed once: scores, leverages and step lengths at any damping are sums over its R directions w_i.

    Attributes:
        eigenvalues: κ, `[R]`, of ΦᵀΦ.
        basis: `[F, R]`; features of a query times this are φ_q · w_i.
        coordinates: c, `[N, R]`; (ΦᵀΦ + λI)⁻¹ φ_n = Σ_i c_ni w_i / (κ_i + λ).
        squared_lengths: ‖w_i‖², `[R]`.
    """

    eigenvalues: Float[Tensor, "R"]
    basis: Float[Tensor, "F R"]
    coordinates: Float[Tensor, "N R"]
    squared_lengths: Float[Tensor, "R"]

    @staticmethod
    def of_gram(gram: Float[Tensor, "N N"]) -> "TrakKernel":
        """From K = ΦΦᵀ; the features of a query are its inner products with the training gradients, F = N."""
        values, vectors = torch.linalg.eigh(gram.double())
        values = values.clamp(min=0)
        return TrakKernel(values, vectors, vectors, values)

    @staticmethod
    def of_features(features: Float[Tensor, "N k"]) -> "TrakKernel":
        """From the features themselves, F = k; the smaller of the N×N and the k×k matrix is decomposed."""
        features = features.double()
        if len(features) <= features.shape[1]:
            kernel = TrakKernel.of_gram(features @ features.T)
            return replace(kernel, basis=features.T @ kernel.basis)
        values, vectors = torch.linalg.eigh(features.T @ features)
        return TrakKernel(values.clamp(min=0), vectors, features @ vectors, torch.ones_like(values))

    @property
    def rounding(self) -> float:
        """What the decomposition's rounding may leave in an eigenvalue, and in a squared length of a training image."""
        return len(self.eigenvalues) * torch.finfo(torch.float64).eps * float(self.eigenvalues.max())

    def factors(
        self, damping: float | Sequence[float], damping_kind: DampingKind = "absolute"
    ) -> Iterator[Float[Tensor, "R"]]:
        """1/(κ + λ) for each damping, zero where κ + λ is below the cutoff (see `CUTOFF`).

        Args:
            damping_kind: `absolute`; or `relative` to the mean over training images of ‖φ_n‖².
        """
        inverses = Inverses(check_dampings(damping), damping_kind=damping_kind)
        unit = self.eigenvalues.sum() / len(self.coordinates) if damping_kind == "relative" else 1.0
        cutoff = max(CUTOFF * float(self.eigenvalues.max()), self.rounding)
        for value in inverses.dampings:
            damped = self.eigenvalues + value * unit
            known = damped > cutoff
            yield torch.where(known, 1 / torch.where(known, damped, 1.0), 0.0)

    def scores(
        self,
        features: Float[Tensor, "Q F"],
        damping: float | Sequence[float],
        *,
        damping_kind: DampingKind = "absolute",
    ) -> Float[Tensor, "D Q N"]:
        """φ_q (ΦᵀΦ + λI)⁻¹ φ_n for each damping; float64."""
        turned = features.double() @ self.basis
        return torch.stack([(turned * factor) @ self.coordinates.T for factor in self.factors(damping, damping_kind)])

    def leverages(
        self, damping: float | Sequence[float], *, damping_kind: DampingKind = "absolute"
    ) -> Float[Tensor, "D N"]:
        """φ_n (ΦᵀΦ + λI)⁻¹ φ_n, between 0 and 1: how much of its own fit each training image decides."""
        squares = self.coordinates.square() * self.squared_lengths
        return torch.stack([squares @ factor for factor in self.factors(damping, damping_kind)])

    def step_lengths(
        self, damping: float | Sequence[float], *, damping_kind: DampingKind = "absolute"
    ) -> Float[Tensor, "D N"]:
        """‖(ΦᵀΦ + λI)⁻¹ φ_n‖: how far the weights move when a training image is left out."""
        squares = self.coordinates.square() * self.squared_lengths
        return torch.stack([(squares @ factor.square()).sqrt() for factor in self.factors(damping, damping_kind)])


class Trak:
    """Training gradients made ready to score any queries.

    Args:
        train: gradients of the training images' output function by block, all N of them. In the exact form shards are read
            once for each of them (pairs of shards meet), so give a store; in the projected form they are read once.
        dimension: k of a random projection; None takes the exact inner products.
        seed: of the projection.

    Attributes:
        kernel: the decomposition.

    Raises:
        ConfigurationError: no gradients, a projected store, a gradient that is not finite, or a dimension below 1.
    """

    def __init__(self, train: GradientSource, *, dimension: int | None = None, seed: int = 0):
        require(dimension is None or dimension > 0, f"dimension={dimension}: give a positive number, or None for the exact "
                "inner products")  # fmt: skip
        self.dimension, self.seed = dimension, seed
        self._train = train
        self._blocks: dict[str, torch.Size] = {}
        if dimension is None:
            self.kernel = TrakKernel.of_gram(gram_matrix(train))
        else:
            self.kernel = TrakKernel.of_features(self._projected(train, "train"))

    def features(self, queries: GradientSource) -> Float[Tensor, "Q F"]:
        """What the kernel takes of queries: inner products with the training gradients, or the projection; float64, CPU."""
        return (
            gradient_products(queries, self._train) if self.dimension is None else self._projected(queries, "queries")
        )

    def scores(
        self, queries: GradientSource, damping: float | Sequence[float], *, damping_kind: DampingKind = "absolute"
    ) -> Float[Tensor, "D Q N"]:
        """φ_q (ΦᵀΦ + λI)⁻¹ φ_n of given queries (see `trak_scores`)."""
        scores = self.kernel.scores(self.features(queries), damping, damping_kind=damping_kind)
        check_scores(scores, query=None, training_image=None)
        return scores

    def _projected(self, source: GradientSource, name: str) -> Float[Tensor, "n k"]:
        assert self.dimension is not None
        parts = []
        for _, gradients in checked_shards(source, name):
            blocks = {block: gradient.shape[1:] for block, gradient in gradients.items()}
            self._blocks = self._blocks or blocks
            _require_same(self._blocks, blocks)
            parts.append(projected(gradients, self.dimension, seed=self.seed).double().cpu())
        return torch.cat(parts)


@own_settings
def trak_scores(
    queries: GradientSource,
    train: GradientSource,
    *,
    damping: float | Sequence[float],
    dimension: int | None = None,
    seed: int = 0,
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D Q N"]:
    """TRAK or D-TRAK: φ_q (ΦᵀΦ + λI)⁻¹ φ_n for each damping; float64, on the CPU.

    A positive score says that leaving the image out raises the query's output. With gradients of the loss on both sides the
    scale is that of influence; otherwise it is arbitrary. No damping means a pseudo-inverse (see `CUTOFF`).

    Args:
        queries: gradients by block, `[Q, d_out, d_in]`, plain or in any eigenbasis that the training gradients share.
        train: the same of all N training images (see `Trak` on shards).
        damping: λ ≥ 0, one or several, all from one decomposition. Influence with damping λ' is TRAK with λ = Nλ'.
        dimension: k of a random projection; None takes the exact inner products.
        seed: of the projection.
        damping_kind: `absolute`; or `relative` to the mean over training images of ‖φ_n‖².

    Raises:
        ConfigurationError: a damping is negative or NaN, blocks differ, a store is projected, a gradient is not finite.
    """
    Inverses(check_dampings(damping), damping_kind=damping_kind)  # refused before any work
    return Trak(train, dimension=dimension, seed=seed).scores(queries, damping, damping_kind=damping_kind)


@own_settings
def gradient_products(first: GradientSource, second: GradientSource) -> Float[Tensor, "n m"]:
    """φ · φ' of every pair, accumulated in float64 a block at a time; on the CPU. `second` is read once a shard of `first`."""
    rows = []
    for _, left in checked_shards(first, "queries"):
        rows.append(torch.cat([_products(left, right) for _, right in checked_shards(second, "train")], dim=1))
    return torch.cat(rows)


@own_settings
def gram_matrix(train: GradientSource) -> Float[Tensor, "N N"]:
    """K = ΦΦᵀ of training gradients; two shards are in memory at a time."""
    rows: list[list[Tensor]] = []
    for index, (_, mine) in enumerate(checked_shards(train, "train")):
        before = [_products(mine, other) for _, other in islice(checked_shards(train, "train"), index)]
        rows.append([*before, _products(mine, mine)])
    whole = [
        torch.cat([rows[i][j] if j <= i else rows[j][i].T for j in range(len(rows))], dim=1) for i in range(len(rows))
    ]
    return torch.cat(whole)


def _products(first: LayerGradients, second: LayerGradients) -> Float[Tensor, "n m"]:
    _require_same(*({name: gradient.shape[1:] for name, gradient in part.items()} for part in (first, second)))
    some = next(iter(first.values()))
    count = len(some), len(next(iter(second.values())))
    total = torch.zeros(*count, dtype=torch.float64, device=some.device)
    columns = max(1, COPIED_ENTRIES // sum(count))
    for name in first:
        pieces = (part[name].flatten(1).split(columns, dim=1) for part in (first, second))
        for left, right in zip(*pieces, strict=True):
            total.addmm_(left.double(), right.double().T)
    return total.cpu()


def checked_shards(source: GradientSource, name: str) -> Iterator[tuple[slice, LayerGradients]]:
    """The shards of a source, neighbours joined to a useful size, each refused if it is no use.

    Raises:
        ConfigurationError: no gradients, a projected store, or a gradient that is not finite; the message names the row.
    """
    if isinstance(source, dict):
        size = len(next(iter(source.values()))) if source else 0
        shards: Iterable[tuple[slice, LayerGradients]] = [(slice(0, size), source)] if size else []
    else:
        require(callable(source), f"{name}: {type(source).__name__} is no gradients by block; give these, or a function that "
                "starts a reading of their shards")  # fmt: skip
        shards = together(iter(source()))
    found = False
    for where, gradients in shards:
        _check_gradients(where, gradients, name)
        found = True
        yield where, gradients
    require(found, f"{name}: there are no gradients; give at least one")


def _check_gradients(where: slice, gradients: LayerGradients, name: str) -> None:
    require(PROJECTION not in gradients, f"{name}: a projected store has forgotten the blocks; give another store format, "
            "and dimension=k for a projection")  # fmt: skip
    for block, gradient in gradients.items():
        place = first_not_finite(gradient)
        require(place is None, f"{name}: layer {block}: the gradient of row {where.start + place[0] if place else ''} is not "
                "finite; compute it anew")  # fmt: skip


def _require_same(expected: dict[str, torch.Size], found: dict[str, torch.Size]) -> None:
    for name in expected | found:
        shapes = [tuple(part[name]) if name in part else "none" for part in (expected, found)]
        require(shapes[0] == shapes[1], f"layer {name}: gradients of shape {shapes[0]} and {shapes[1]}; give queries and "
                "training images gradients of the same blocks")  # fmt: skip
