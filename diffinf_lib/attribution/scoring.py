"""Scoring: products of gradients with a damped inverse curvature between them, for any list of dampings at once.

In the eigenbasis the inverse is a division, element by element: a score is Σ_oi G_q G_n / (Λ + λ) over all blocks. Another
damping, or K-FAC instead of EK-FAC, divides the same numbers by others.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.compression import PROJECTION, Tensors
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import (
    GradientSet,
    LayerGradients,
    Projections,
    QueryGradients,
    check_basis,
    check_blocks,
    pieces,
    sets as gradient_sets,
)
from diffinf_lib.settings import own_settings


def preconditioned(gradients: LayerGradients, curvature: Curvature, inverses: Inverses) -> Iterator[LayerGradients]:
    """(F + λI)⁻¹ G in the eigenbasis, for each of the inverses."""
    names = list(curvature.layers)
    for factors in zip(*(inverses.factors(curvature, name) for name in names), strict=True):
        yield {name: gradients[name] * factor for name, factor in zip(names, factors, strict=True)}


def block_scores(
    queries: QueryGradients, train: LayerGradients, curvature: Curvature, inverses: Inverses
) -> Iterator[tuple[str, Float[Tensor, "D q n"]]]:
    """Each block's share of ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n, for each of the D inverses; float64, on the CPU.

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


def products(first: QueryGradients, second: LayerGradients) -> Float[Tensor, "q n"]:
    """The inner product of every pair, blocks added in float64; on the CPU."""
    parts = [(first[name].flatten(1) @ second[name].flatten(1).T).double().cpu() for name in first]
    return torch.stack(parts).sum(0)


STREAMED_BYTES, STREAMED_ON_CPU = 1 << 33, 1 << 30
"""Training gradients that are scored together where the queries do not stay on the device: these are read once for each such
part, a quarter of its bytes at a time. A GPU waits for what it reads; a CPU has it at hand, and less memory to spare."""


def streamed_bytes(on_cpu: bool) -> int:
    """The size of such a part."""
    return STREAMED_ON_CPU if on_cpu else STREAMED_BYTES


class Queries:
    """Gradients of queries that training gradients stream past, at hand on the device or a block at a time."""

    def __init__(self, gradients: GradientSet):
        self._at_hand, self.count = gradients.at_hand(), gradients.count
        part: float = streamed_bytes(gradients.device.type == "cpu")
        small = gradients.fits_device
        self.meets: float = gradient_sets.SHARD_BYTES if small else part
        self._block: float = gradient_sets.SHARD_BYTES if small else part / 4

    def each(self, score: Callable[[QueryGradients], Tensor]) -> list[Tensor]:
        """What is taken of the queries, in order: of some at a time, unpacked, and dropped before the next are read."""
        found = []
        for _, block in self._at_hand.shards(self._block):
            found.append(score(block))
            del block
        return found


def in_pairs(
    queries: GradientSet,
    train: GradientSet,
    score: Callable[[QueryGradients, LayerGradients], Float[Tensor, "... q n"]],
) -> Float[Tensor, "... Q N"]:
    """Scores `[..., q, n]` of every block of queries with every shard of training gradients, put together.

    The training gradients stream past the queries, once.
    """
    mine, columns = Queries(queries), []

    def column(shard: LayerGradients) -> Tensor:
        return torch.cat(mine.each(lambda block: score(block, shard)), dim=-2)

    for _, shard in train.shards(mine.meets):
        columns.append(column(shard))
        del shard
    return torch.cat(columns, dim=-1)


class KeptQueries:
    """Queries as they are kept while training gradients stream past.

    They stay packed as their set packs them, and serve every inverse: a block of them is unpacked when it meets a shard of
    training gradients. Where these are projected, the queries' own projections are kept, one for each of the D inverses.

    Args:
        queries: in the eigenbasis.
        train: the gradients to come, in the same eigenbasis or projected from it.

    Attributes:
        meets: bytes of training gradients that are best scored together.

    Raises:
        ConfigurationError: gradients of other blocks than the curvature's, or projected queries.
    """

    def __init__(self, queries: GradientSet, train: GradientSet, curvature: Curvature, inverses: Inverses):
        require(not queries.projected, "query_format='projection': queries are projected when the training gradients are; give "
                "train_format='projection'")  # fmt: skip
        check_blocks(queries, curvature, "queries")
        self.curvature, self.inverses = curvature.to(queries.device), inverses
        check_basis(train, curvature, "train")
        self.meets: float = gradient_sets.SHARD_BYTES
        if train.projected:
            self._duals = [self._projected(train, part) for _, part in queries.shards()]
        else:
            check_blocks(train, curvature, "train")
            self._queries = Queries(queries)
            self.meets = self._queries.meets

    def _projected(self, train: GradientSet, queries: QueryGradients) -> Float[Tensor, "D q k"]:
        assert train.compression is not None
        divided = preconditioned(queries, self.curvature, self.inverses)
        return torch.stack([train.compression.dual(part)[PROJECTION] for part in divided])

    def scores(self, train: LayerGradients | Projections) -> Float[Tensor, "D Q n"]:
        """∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n of all queries for one shard of training gradients; float64, on the CPU."""
        if PROJECTION in train:
            parts = [(dual @ train[PROJECTION].T).double().cpu() for dual in self._duals]
        else:
            parts = self._queries.each(lambda block: self._summed(block, train))
        return torch.cat(parts, dim=1)

    def _summed(self, queries: QueryGradients, train: LayerGradients) -> Float[Tensor, "D q n"]:
        shares = (share for _, share in block_scores(queries, train, self.curvature, self.inverses))
        return sum(shares, next(shares))  # type: ignore[no-any-return]


@own_settings
def damped_scores(
    queries: GradientSet, train: GradientSet, curvature: Curvature, inverses: Inverses, count: int | None = None
) -> Float[Tensor, "D Q N"]:
    """Scores (1/N) ∇m_qᵀ (F + λI)⁻¹ ∇ℓ_n for each of the inverses; float64, on the CPU.

    Args:
        count: N, the number of images the model was trained on, of which `train` may be a part; default all of it.

    Raises:
        ConfigurationError: blocks differ, or a score is not finite.
    """
    (scores,) = scores_of_sets([queries], train, curvature, inverses, count)
    return scores


@own_settings
def scores_of_sets(
    sets: Sequence[GradientSet],
    train: GradientSet,
    curvature: Curvature,
    inverses: Inverses,
    count: int | None = None,
    *,
    folder: Path | None = None,
    identity: Any = None,
) -> list[Float[Tensor, "D _Q N"]]:
    """The same for several sets of queries, from one reading of the training gradients.

    Args:
        folder: where the scores of each part of the training images are kept, so that a killed reading goes on.
        identity: all that they depend on, see `pieces`.
    """
    if inverses.approximations or not inverses.products:
        curvature.check_approximations(inverses.approximations)
    total = images_trained_on(count, train)
    kept = [KeptQueries(queries, train, curvature, inverses) for queries in sets]
    scores = [torch.empty(len(inverses), queries.count, train.count, dtype=torch.float64) for queries in sets]

    def read(shard: LayerGradients | Projections) -> Tensors:
        return {str(index): queries.scores(shard).permute(2, 0, 1) for index, queries in enumerate(kept)}

    meets = max(queries.meets for queries in kept)
    for rows, piece in pieces(train, read, up_to=meets, folder=folder, identity=identity):
        for index, found in enumerate(scores):
            torch.div(piece[str(index)].permute(1, 2, 0), total, out=found[:, :, rows])
    for queries, found in zip(sets, scores, strict=True):
        check_scores(found, query=queries.ids, training_image=train.ids)
    return scores


def images_trained_on(count: int | None, train: GradientSet) -> int:
    """N: as given, or the number of training gradients."""
    require(count is None or count > 0, f"count={count}: give N, the number of images the model was trained on")
    return train.count if count is None else count
