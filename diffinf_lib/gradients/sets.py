"""Sets: the gradients of a set of images, a shard at a time, however often and wherever they come from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, tensor_digest
from diffinf_lib.compression import Compression, Tensors, stored_bytes
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

Packed = tuple[slice, dict[str, Shaped[Tensor, "_n ..."]]]
"""Which rows, and their tensors as they are packed."""

SHARD_BYTES = 1 << 28
"""Gradients are computed, kept and scored in shards up to this size: dividing the queries costs as much as one shard."""
SHARD_IMAGES = 25
"""The most images of a shard, however small their gradients: a killed store goes on after its last whole shard."""
HELD_BYTES = 1 << 31
"""Gradients that are read again and again stay on the device up to this size, as they are packed."""


def images_of_shard(bytes_each: float) -> int:
    """How many images a shard has whose gradients take so many bytes each."""
    return int(min(SHARD_IMAGES, max(1, SHARD_BYTES // bytes_each)))


@dataclass(frozen=True, eq=False, repr=False)
class GradientSet:
    """The gradients of n images in the eigenbasis of one curvature, or projected; computed or read whenever they are asked for.

    Attributes:
        count: n.
        shapes: (d_out, d_in) of each block.
        packed: starts a reading of their shards as they are kept, from a row on: which rows, and tensors of n rows each.
        device, dtype: of the gradients.
        compression: what unpacks the shards; None where they are plain.
        identify: what they depend on, see `identity`.
        folder: where they are kept, or None.
        ids: of the images, for messages; None counts them.
        basis: of the curvature in whose eigenbasis they are, see `Curvature.basis`; None where it is not known.
    """

    count: int
    shapes: Mapping[str, tuple[int, int]]
    packed: Callable[[int], Iterator[tuple[slice, Tensors]]]
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
        parts = [(slice(0, rows[0]), gradients)]
        return GradientSet(rows[0], shapes, lambda first: from_row(parts, first), some.device, some.dtype)

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
            return {"content": tensor_digest(*(value for _, part in self.packed(0) for value in part.values()))}
        return self.identify()

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return json_digest(plain(self.identity))

    @own_settings
    def shards(
        self, up_to: float | None = None, *, first: int = 0
    ) -> Iterator[tuple[slice, LayerGradients | Projections]]:
        """Which rows, and their gradients, neighbouring shards joined until they hold `up_to` bytes (see `SHARD_BYTES`).

        Args:
            first: the row to begin with; what lies before is neither computed nor read.

        Returns:
            `[n, d_out, d_in]` by block; projected ones `{"projection": [n, k]}`.
        """
        for rows, tensors in self._joined(SHARD_BYTES if up_to is None else up_to, first):
            if self.compression is not None:
                tensors = self.compression.decode(tensors)
            yield rows, tensors
            del tensors  # the next is made without it, here and wherever shards are handed on

    def whole(self) -> Tensors:
        """All gradients, in memory."""
        ((_, gradients),) = self.shards(float("inf"))
        return gradients

    def held(self) -> "GradientSet":
        """The same set, kept in memory as it is packed: what is read again and again while others stream past."""
        parts = list(self._joined(SHARD_BYTES, 0))
        return replace(self, packed=lambda first: from_row(parts, first))

    def at_hand(self) -> "GradientSet":
        """The same set, ready to be read again and again without filling the device.

        Up to `HELD_BYTES` it is held there. A larger one is read from its folder each time, or held in the host's memory where
        it has none.
        """
        if self.fits_device:
            return self.held()
        if self.folder is not None:
            return self
        parts = [
            (rows, {name: value.cpu() for name, value in tensors.items()})
            for rows, tensors in self._joined(SHARD_BYTES, 0)
        ]

        def moved(first: int) -> Iterator[tuple[slice, Tensors]]:
            for rows, tensors in from_row(parts, first):
                yield rows, {name: value.to(self.device) for name, value in tensors.items()}

        return replace(self, packed=moved)

    @property
    def fits_device(self) -> bool:
        """Whether the packed gradients are small enough to stay on the device while others stream past."""
        store_format = StoreFormat() if self.compression is None else self.compression.store_format
        return self.count * stored_bytes(store_format, self.shapes.values(), self.dtype) <= HELD_BYTES

    def packed_as(self, curvature: Curvature, store_format: StoreFormat) -> "GradientSet":
        """What a format leaves of the gradients, packed in memory."""
        compression = Compression(curvature.to(self.device), store_format)
        parts = [(rows, compression.encode(gradients)) for rows, gradients in self.shards()]
        return replace(self, packed=lambda first: from_row(parts, first), compression=compression, identify=None,
                       folder=None)  # fmt: skip

    @property
    def bytes_each(self) -> int:
        """Bytes of one gradient in memory, unpacked."""
        entries = sum(outputs * inputs for outputs, inputs in self.shapes.values())
        if self.projected:
            assert self.compression is not None
            entries = self.compression.store_format.dimension
        return entries * self.dtype.itemsize

    def _joined(self, up_to: float, first: int) -> Iterator[tuple[slice, Tensors]]:
        """Packed shards, neighbours joined as far as `up_to` bytes of gradients."""
        most, joint = int(min(self.count, up_to / self.bytes_each)), None
        for rows, tensors in self.packed(first):
            if joint is not None and rows.stop - joint.start > most:
                yield joint.whole
                joint = None
            if joint is None:
                joint = _Joint(rows, tensors)
            else:
                joint.add(rows, tensors, min(most, self.count - joint.start))
            del tensors
            following = min(rows.stop - rows.start, self.count - rows.stop)
            if rows.stop + following - joint.start > most:  # the next is not computed while this one waits
                yield joint.whole
                joint = None
        if joint is not None:
            yield joint.whole


class _Joint:
    """Neighbouring shards as one, copied into place as they come: there are never two copies of all of them."""

    def __init__(self, rows: slice, tensors: Tensors):
        self.start, self.stop, self.tensors, self.room = rows.start, rows.stop, tensors, 0

    def add(self, rows: slice, tensors: Tensors, room: int) -> None:
        """Take another shard, within `room` rows in all."""
        if not self.room:
            alone, self.room = self.tensors, room
            self.tensors = {name: value.new_empty(room, *value.shape[1:]) for name, value in alone.items()}
            self._copy(self.start, alone)
        self._copy(rows.start, tensors)
        self.stop = rows.stop

    def _copy(self, start: int, tensors: Tensors) -> None:
        for name, value in tensors.items():
            self.tensors[name][start - self.start :][: len(value)] = value

    @property
    def whole(self) -> tuple[slice, Tensors]:
        """Which rows, and their tensors."""
        rows, count = slice(self.start, self.stop), self.stop - self.start
        return rows, {name: value[:count] for name, value in self.tensors.items()} if self.room else self.tensors


def from_row(parts: Iterable[Packed], first: int) -> Iterator[Packed]:
    """Shards from a row on; one that the row falls into is cut. Each is handed on, not held."""
    for part in parts:
        if part[0].stop > first:
            handed = [_cut(part, first)]
            del part
            yield handed.pop()


def _cut(part: Packed, first: int) -> Packed:
    rows, tensors = part
    if rows.start >= first:
        return part
    return slice(first, rows.stop), {name: value[first - rows.start :] for name, value in tensors.items()}


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
