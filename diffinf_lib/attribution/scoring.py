"""Scoring: products of gradients with a damped inverse curvature between them, for any list of dampings at once.

In the eigenbasis the inverse is a division, element by element: a score is Σ_oi G_q G_n / (Λ + λ) over all blocks. Another
damping, or K-FAC instead of EK-FAC, divides the same numbers by others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.compression import PROJECTION, Compression
from diffinf_lib.configuration import Approximation, StoreFormat, check_dampings
from diffinf_lib.curvature import Curvature
from diffinf_lib.errors import require
from diffinf_lib.gradients import LayerGradients
from diffinf_lib.options import checked

DampingKind = Literal["absolute", "relative"]


@dataclass(frozen=True)
class Inverses:
    """The damped inverses that scores are read with: every approximation at every damping.

    Attributes:
        damping_kind: `absolute`, λ itself; or `relative`, λ as a fraction of the mean eigenvalue of each block.
    """

    dampings: Sequence[float] = (1e-8,)
    approximations: Sequence[Approximation] = ("ekfac",)
    damping_kind: DampingKind = "absolute"

    def __post_init__(self) -> None:
        check_dampings(list(self.dampings))
        checked("damping_kind", self.damping_kind, DampingKind)

    def __len__(self) -> int:
        return len(self.dampings) * len(self.approximations)

    def each(self) -> Iterator[tuple[Approximation, float]]:
        """Every approximation with every damping, approximations outermost."""
        return ((approximation, damping) for approximation in self.approximations for damping in self.dampings)

    def factors(self, curvature: Curvature, name: str) -> Iterator[Float[Tensor, "O I"]]:
        """1/(Λ + λ) of one block, in the order of `each`.

        Where Λ + λ is zero, or so small beside the largest Λ that both come from rounding, the curvature says nothing and
        the direction contributes nothing. Λ is a square: rounding of 10 eps in a gradient is 100 eps² here.
        """
        for approximation, damping in self.each():
            eigenvalues = curvature.layers[name].eigenvalues(approximation)
            damped = eigenvalues + damping * (eigenvalues.mean() if self.damping_kind == "relative" else 1.0)
            known = damped > 100 * torch.finfo(damped.dtype).eps ** 2 * eigenvalues.max()
            yield torch.where(known, 1 / torch.where(known, damped, 1.0), 0.0)


def preconditioned(gradients: LayerGradients, curvature: Curvature, inverses: Inverses) -> Iterator[LayerGradients]:
    """(F + λI)⁻¹ G in the eigenbasis, for each of the inverses."""
    names = list(curvature.layers)
    for factors in zip(*(inverses.factors(curvature, name) for name in names), strict=True):
        yield {name: gradients[name] * factor for name, factor in zip(names, factors, strict=True)}


def block_scores(
    queries: LayerGradients, train: LayerGradients, curvature: Curvature, inverses: Inverses
) -> Iterator[tuple[str, Float[Tensor, "R Q n"]]]:
    """Each block's share of ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n, for each of the R inverses; float64, on the CPU.

    A block's preconditioned queries are the only large intermediate. Of queries and training gradients the fewer are divided.
    """
    for name in curvature.layers:
        few, many = queries[name].flatten(1), train[name].flatten(1)
        swapped = len(few) > len(many)
        few, many = (many, few) if swapped else (few, many)
        shares = []
        for factor in inverses.factors(curvature, name):
            share = (few * factor.flatten()) @ many.T
            shares.append((share.T if swapped else share).double())
        yield name, torch.stack(shares).cpu()


class KeptQueries:
    """Queries as they are kept while training gradients stream past, a shard of queries at a time.

    By default the plain gradients are kept and divided when they meet a shard of training gradients. With a format of their
    own, or with projected training gradients, each of the R inverses' preconditioned queries is encoded, and only that is kept
    (algorithm 1 of the paper): full gradients of one shard of queries are in memory at a time.

    Args:
        shards: gradients of the queries in the eigenbasis, in order.
        form: of the kept queries; None keeps plain gradients. Queries that are projected are small already and stay so.
        train_form: what the training gradients will come in.
    """

    def __init__(
        self,
        shards: Iterable[LayerGradients],
        curvature: Curvature,
        inverses: Inverses,
        form: StoreFormat | None = None,
        train_form: StoreFormat | None = None,
    ):
        projected = train_form is not None and train_form.kind == "projection"
        require(form is None or form.kind != "projection", "query_format='projection': queries are projected when the training "
                "gradients are; give train_format='projection'")  # fmt: skip
        self.curvature, self.inverses = curvature, inverses
        self.encoded, self._projected = form is not None or projected, projected
        self._own = Compression(curvature, form or StoreFormat(), preconditioned=True)
        self._dual = Compression(curvature, train_form or StoreFormat()).dual
        self._kept = [self._encoded(queries) if self.encoded else [queries] for queries in shards]

    def _encoded(self, queries: LayerGradients) -> list[LayerGradients]:
        encode = self._dual if self._projected else self._own.encode
        return [encode(query) for query in preconditioned(queries, self.curvature, self.inverses)]

    def scores(self, train: LayerGradients) -> Float[Tensor, "R Q n"]:
        """∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n of all queries for one shard of training gradients; float64, on the CPU."""
        return torch.cat([self._scores(kept, train) for kept in self._kept], dim=1)

    def _scores(self, kept: list[LayerGradients], train: LayerGradients) -> Float[Tensor, "R q n"]:
        if not self.encoded:
            shares = [share for _, share in block_scores(kept[0], train, self.curvature, self.inverses)]
            return torch.stack(shares).sum(0)
        return torch.stack([_products(self._decoded(queries), train) for queries in kept])

    def _decoded(self, stored: LayerGradients) -> LayerGradients:
        return stored if PROJECTION in stored else self._own.decode(stored)


def _products(queries: LayerGradients, train: LayerGradients) -> Float[Tensor, "q n"]:
    parts = [(queries[name].flatten(1) @ train[name].flatten(1).T).double().cpu() for name in queries]
    return torch.stack(parts).sum(0)
