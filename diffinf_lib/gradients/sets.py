"""Sets: the gradients of a set of images, a shard at a time, however often and wherever they come from."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, tensor_digest
from diffinf_lib.compression import Compression, Tensors
from diffinf_lib.configuration import StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.errors import require
from diffinf_lib.finite import first_not_finite
from diffinf_lib.settings import own_settings

LayerGradients = dict[str, Float[Tensor, "n _O _I"]]
"""Gradients of some images in memory, one tensor a block."""
QueryGradients = dict[str, Float[Tensor, "q _O _I"]]
"""The same of queries, of which there are as many as there are."""
Projections = dict[str, Float[Tensor, "n k"]]
"""What a random projection leaves of them, `{"projection": [n, k]}`."""

SHARD_BYTES = 1 << 28
"""Shards are scored together up to this size: dividing the queries costs as much as one shard."""


@dataclass(frozen=True, eq=False, repr=False)
class GradientSet:
    """The gradients of n images in the eigenbasis of one curvature, or projected; computed or read whenever they are asked for.

    Attributes:
        count: n.
        shapes: (d_out, d_in) of each block.
        packed: starts a reading of their shards as they are kept: which rows, and tensors of n rows each.
        device, dtype: of the gradients.
        compression: what unpacks the shards; None where they are plain.
        identify: what they depend on, see `identity`.
        folder: where they are kept, or None.
        ids: of the images, for messages; None counts them.
        basis: of the curvature in whose eigenbasis they are, see `Curvature.basis`; None where it is not known.
    """

    count: int
    shapes: Mapping[str, tuple[int, int]]
    packed: Callable[[], Iterator[tuple[slice, Tensors]]]
    device: torch.device
    dtype: torch.dtype
    compression: Compression | None = None
    identify: Callable[[], dict[str, Any]] | None = None
    folder: Path | None = None
    ids: Int[Tensor, "n"] | None = None
    basis: str | None = None

    @staticmethod
    def of(gradients: LayerGradients) -> "GradientSet":
        """Gradients that are in memory as a set: `[n, d_out, d_in]` by block.

        Raises:
            ConfigurationError: there are none, blocks have not the same number of rows, or a gradient is not finite.
        """
        rows = sorted({len(gradient) for gradient in gradients.values()})
        require(bool(rows) and rows[0] > 0, "gradients: there are none; give at least one")
        require(len(rows) == 1, f"gradients: blocks of {rows[0]} and of {rows[-1]} rows; give each one row an image")
        for name, gradient in gradients.items():
            require(
                gradient.ndim == 3, f"layer {name}: gradients of shape {tuple(gradient.shape)}; give [n, d_out, d_in]"
            )
            place = first_not_finite(gradient)
            require(
                place is None, f"layer {name}: the gradient of row {place and place[0]} is not finite; compute it anew"
            )
        some = next(iter(gradients.values()))
        shapes = {name: (gradient.shape[1], gradient.shape[2]) for name, gradient in gradients.items()}
        whole = slice(0, rows[0])
        return GradientSet(rows[0], shapes, lambda: iter([(whole, gradients)]), some.device, some.dtype)

    def __repr__(self) -> str:
        kept = "" if self.compression is None else f", kept as {self.compression.store_format.kind}"
        return f"GradientSet: {self.count} gradients of {len(self.shapes)} blocks{kept}"

    @property
    def projected(self) -> bool:
        """Whether only random projections `[n, k]` are left, which influence alone can read."""
        return self.compression is not None and self.compression.store_format.kind == "projection"

    @property
    def blocks(self) -> Mapping[str, tuple[int, int]]:
        """(d_out, d_in) of each block.

        Raises:
            ConfigurationError: the gradients are projected.
        """
        require(not self.projected, "gradients: a projection has forgotten its blocks, and serves influence only; give another "
                "store format")  # fmt: skip
        return self.shapes

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the gradients depend on, as plain values."""
        if self.identify is None:
            return {"content": tensor_digest(*(value for _, part in self.packed() for value in part.values()))}
        return self.identify()

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return json_digest(plain(self.identity))

    @own_settings
    def shards(self, up_to: float | None = None) -> Iterator[tuple[slice, LayerGradients | Projections]]:
        """Which rows, and their gradients, neighbouring shards joined until they hold `up_to` bytes (see `SHARD_BYTES`).

        Returns:
            `[n, d_out, d_in]` by block; projected ones `{"projection": [n, k]}`.
        """
        for rows, tensors in self._joined(SHARD_BYTES if up_to is None else up_to):
            yield rows, tensors if self.compression is None else self.compression.decode(tensors)

    def whole(self) -> Tensors:
        """All gradients, in memory."""
        ((_, gradients),) = self.shards(math.inf)
        return gradients

    def held(self) -> "GradientSet":
        """The same set, kept in memory as it is packed: what is read again and again while others stream past."""
        parts = list(self._joined(SHARD_BYTES))
        return replace(self, packed=lambda: iter(parts))

    def packed_as(self, curvature: Curvature, store_format: StoreFormat) -> "GradientSet":
        """What a format leaves of the gradients, packed in memory."""
        compression = Compression(curvature.to(self.device), store_format)
        parts = [(rows, compression.encode(gradients)) for rows, gradients in self.shards()]
        return replace(self, packed=lambda: iter(parts), compression=compression, identify=None, folder=None)

    def _joined(self, up_to: float) -> Iterator[tuple[slice, Tensors]]:
        """Packed shards, neighbours joined as far as `up_to` bytes of gradients."""
        entries = sum(outputs * inputs for outputs, inputs in self.shapes.values())
        if self.projected:
            assert self.compression is not None
            entries = self.compression.store_format.dimension
        most = up_to / (entries * self.dtype.itemsize)
        held: list[tuple[slice, Tensors]] = []
        for rows, tensors in self.packed():
            if held and rows.stop - held[0][0].start > most:
                yield _together(held)
                held = []
            held.append((rows, tensors))
        yield _together(held)


def _together(held: list[tuple[slice, dict[str, Shaped[Tensor, "_n ..."]]]]) -> tuple[slice, Tensors]:
    rows, first = slice(held[0][0].start, held[-1][0].stop), held[0][1]
    return rows, first if len(held) == 1 else {name: torch.cat([part[name] for _, part in held]) for name in first}


def check_blocks(gradients: GradientSet, like: Curvature | GradientSet, name: str) -> None:
    """Refuse gradients of other blocks than a curvature's, or than other gradients'; the message names the first.

    Raises:
        ConfigurationError: blocks differ, or the gradients are projected.
    """
    expected = (
        {block: layer.shape for block, layer in like.layers.items()} if isinstance(like, Curvature) else like.blocks
    )
    for block in {**gradients.blocks, **expected}:
        shapes = [part.get(block, "none") for part in (gradients.blocks, expected)]
        require(shapes[0] == shapes[1], f"{name}: layer {block}: gradients of shape {shapes[0]}, {shapes[1]} in the "
                f"{'curvature' if isinstance(like, Curvature) else 'others'}; give gradients in one eigenbasis")  # fmt: skip
    check_basis(gradients, like, name)


def check_basis(gradients: GradientSet, like: Curvature | GradientSet, name: str) -> None:
    """Refuse gradients in another eigenbasis than a curvature's, or than other gradients', as far as it is known.

    Raises:
        ConfigurationError: the bases differ; such scores would look like any others.
    """
    other = "the curvature" if isinstance(like, Curvature) else "the other gradients"
    require(
        None in (gradients.basis, like.basis) or gradients.basis == like.basis,
        f"{name}: these gradients are in the eigenbasis of another curvature than {other}; take them anew with "
        "di.gradients_of(model, curvature, ...)",
    )
