"""Compression: gradients in the eigenbasis in fewer bytes.

Entries of a gradient in the eigenbasis differ by orders of magnitude, and the small ones count as much as the large ones
once they are divided by the curvature. Lossy formats therefore store h = g / √(Λ + λ₀), whose entries are all about one in
size: an error in h is an error in the score, wherever it falls (λ₀ is the format's `whitening`).

| format | bytes an entry | what is lost |
|---|---|---|
| `float32` | 4 | nothing |
| `bfloat16` | 2 | all but 8 bits of each number |
| `int8` | 1, and 4 a row | all but 8 bits of each row's largest number |
| `int4` | 1/2, and 4 a row | all but 4 bits of each row's largest number |
| `int8_tensor` | 1, and 8 a block | all but 8 bits of each block's range |
| `svd` | 4 · rank · (d_out + d_in) a block | all but the leading singular directions of each block's matrix |
| `svd_int8` | rank · (d_out + d_in + 8) a block | the same, and all but 8 bits of each direction's largest number |
| `projection` | 4 · dimension an example | all but a random projection's inner products |

`int8_tensor` is what the authors of the paper packed queries in (Mlodozeniec et al. 2025, appendix F): evenly spaced levels
from the smallest to the largest entry of each block, in the basis of the weights and without whitening. It is here to be
compared with; for use there is `int8`.
"""

import math
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int8, Int64, Shaped
from torch import Tensor

from diffinf_lib.configuration import StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import damped_inverse
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.settings import own_settings

Tensors = dict[str, Shaped[Tensor, "n ..."]]

PROJECTION = "projection"
"""The one key of a projected store: all blocks are in it together."""


class Compression:
    """Encoding and decoding for one curvature.

    Args:
        curvature: its corrected eigenvalues whiten, K-FAC's where there are no others.
        preconditioned: the gradients to come are (F + λI)⁻¹ g already: multiplied by √(Λ + λ₀), they are white.
    """

    def __init__(self, curvature: Curvature, store_format: StoreFormat, *, preconditioned: bool = False):
        self.store_format, self.layers, self.preconditioned = store_format, curvature.layers, preconditioned

    @cached_property
    def _whitening(self) -> tuple[dict[str, Float[Tensor, "_O _I"]], dict[str, Float[Tensor, "_O _I"]]]:
        """What whitens gradients, and what undoes it: √(Λ + λ₀) and its inverse, which is 0 where Λ says nothing."""
        values = {name: layer.eigenvalues(layer.best) for name, layer in self.layers.items()}
        roots = {name: (value + self.store_format.whitening).sqrt() for name, value in values.items()}
        inverses = {name: damped_inverse(value, self.store_format.whitening).sqrt() for name, value in values.items()}
        return (roots, inverses) if self.preconditioned else (inverses, roots)

    def encode(self, gradients: dict[str, Float[Tensor, "n _O _I"]]) -> Tensors:
        """Gradients `[n, d_out, d_in]` by block as the tensors to store, each with n rows.

        They are contiguous, as they will be when read back: strided ones would be multiplied by other kernels, and scores
        from memory would differ from those from a store in the last bits.
        """
        return {name: value.contiguous() for name, value in self._encoded(gradients).items()}

    def _encoded(self, gradients: dict[str, Float[Tensor, "n _O _I"]]) -> Tensors:
        if self.store_format.kind == "float32":
            return gradients
        if self.store_format.kind == "bfloat16":
            return {name: gradient.bfloat16() for name, gradient in gradients.items()}
        # a block at a time: there is no second copy of all gradients
        evened = ((name, self._evened(name, gradient)) for name, gradient in gradients.items())
        if self.store_format.kind == "projection":
            return {PROJECTION: projected(dict(evened), self.store_format.dimension)}
        pack = PACKINGS[self.store_format.kind].pack
        return {
            f"{name}/{part}": value for name, h in evened for part, value in pack(h, self.store_format.rank).items()
        }

    def decode(self, stored: Tensors) -> dict[str, Float[Tensor, "n _O _I"]] | dict[str, Float[Tensor, "n k"]]:
        """Gradients `[n, d_out, d_in]` by block; a projection comes back as it is, `{"projection": [n, k]}`."""
        if self.store_format.kind in ("float32", "projection"):
            return stored
        if self.store_format.kind == "bfloat16":
            kinds = {name: layer.eigenvalues(layer.best).dtype for name, layer in self.layers.items()}
            return {name: value.to(kinds[name]) for name, value in stored.items()}
        unpack, parts = PACKINGS[self.store_format.kind].unpack, _by_block(stored)
        return {name: self._uneven(name, unpack(parts[name], layer.shape[1])) for name, layer in self.layers.items()}

    def _evened(self, name: str, gradient: Float[Tensor, "n O I"]) -> Float[Tensor, "n O I"]:
        """What is packed of a block: whitened entries, or those in the basis of the weights."""
        if self.store_format.kind == "int8_tensor":
            return self.layers[name].from_eigenbasis(gradient)
        return gradient * self._whitening[0][name]

    def _uneven(self, name: str, packed: Float[Tensor, "n O I"]) -> Float[Tensor, "n O I"]:
        if self.store_format.kind == "int8_tensor":
            return self.layers[name].to_eigenbasis(packed)
        return packed * self._whitening[1][name]

    def dual(self, preconditioned: dict[str, Float[Tensor, "n _O _I"]]) -> dict[str, Float[Tensor, "n k"]]:
        """The projection of a preconditioned query that is to be multiplied with those of gradients."""
        unwhitened = {name: gradient * self._whitening[1][name] for name, gradient in preconditioned.items()}
        return {PROJECTION: projected(unwhitened, self.store_format.dimension)}


def _by_block(stored: Tensors) -> dict[str, Tensors]:
    """The parts of each block, from keys `block/part`."""
    blocks: dict[str, Tensors] = {}
    for key, value in stored.items():
        name, _, part = key.rpartition("/")
        blocks.setdefault(name, {})[part] = value
    return blocks


def stored_bytes(
    store_format: StoreFormat, shapes: Iterable[tuple[int, int]], dtype: torch.dtype = torch.float32
) -> int:
    """Bytes of one stored gradient.

    Args:
        shapes: (d_out, d_in) of each block.
        dtype: of the model.
    """
    return _stored_bytes(store_format, tuple(shapes), dtype)


@cache
@own_settings
def _stored_bytes(store_format: StoreFormat, shapes: tuple[tuple[int, int], ...], dtype: torch.dtype) -> int:
    if store_format.kind == "projection":
        return dtype.itemsize * store_format.dimension
    blocks = (torch.empty(1, *shape, device="meta", dtype=dtype) for shape in shapes)
    if store_format.kind in PACKINGS:
        pack = PACKINGS[store_format.kind].pack  # without data it costs nothing, and tells the shapes
        return sum(part.nbytes for block in blocks for part in pack(block, store_format.rank).values())
    return sum(block.numel() for block in blocks) * (2 if store_format.kind == "bfloat16" else dtype.itemsize)


def int8_rows(matrices: Float[Tensor, "n O I"]) -> Tensors:
    """Each row as 8-bit integers times the row's largest absolute value / 127; a row of zeros stays one."""
    steps, scale = _row_steps(matrices, 127)
    return {"values": steps.to(torch.int8), "scale": scale}


def from_int8_rows(stored: Tensors) -> Float[Tensor, "n O I"]:
    """What `int8_rows` packed, each entry to half a scale."""
    return stored["values"] * stored["scale"]


def int4_rows(matrices: Float[Tensor, "n O I"]) -> Tensors:
    """Each row as integers from −7 to 7 times the row's largest absolute value / 7, two of them a byte."""
    steps, scale = _row_steps(matrices, 7)
    nibbles = torch.nn.functional.pad(steps + 8, (0, steps.shape[-1] % 2)).to(torch.uint8)
    return {"values": nibbles[..., ::2] | (nibbles[..., 1::2] << 4), "scale": scale}


def from_int4_rows(stored: Tensors, columns: int) -> Float[Tensor, "n O I"]:
    """What `int4_rows` packed, each entry to half a scale.

    Args:
        columns: d_in; the last byte of an odd row is half full.
    """
    packed, scale = stored["values"], stored["scale"]
    nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)[..., :columns]
    return (nibbles.to(scale.dtype) - 8) * scale


def _row_steps(matrices: Float[Tensor, "n O I"], levels: int) -> tuple[Float[Tensor, "n O I"], Float[Tensor, "n O 1"]]:
    """Entries as whole numbers from −levels to levels, and each row's scale."""
    scale = matrices.abs().amax(-1, keepdim=True) / levels
    return _steps(matrices, scale).clamp(-levels, levels), scale


def _steps(
    values: Float[Tensor, "n O I"], scale: Float[Tensor, "n O 1"] | Float[Tensor, "n 1 1"]
) -> Float[Tensor, "n O I"]:
    """Values in whole multiples of a scale; 0 where the scale is."""
    return torch.where(scale > 0, values / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0).round()


def int8_tensors(matrices: Float[Tensor, "n O I"]) -> Tensors:
    """Each matrix as 8-bit integers on 256 even levels from its smallest to its largest entry.

    A matrix of one value, such as the bias of a layer with one output, has no range: it is its smallest entry.
    """
    lowest, highest = (f(matrices, dim=(1, 2), keepdim=True) for f in (torch.amin, torch.amax))
    scale = (highest - lowest) / 255
    return {"values": _steps(matrices - lowest, scale).clamp(0, 255).to(torch.uint8), "scale": scale, "lowest": lowest}


def from_int8_tensors(stored: Tensors) -> Float[Tensor, "n O I"]:
    """What `int8_tensors` packed, each entry to half a scale."""
    return stored["values"] * stored["scale"] + stored["lowest"]


def truncated_svd(matrices: Float[Tensor, "n O I"], rank: int) -> Tensors:
    """The best approximation of each matrix of a rank (Eckart & Young 1936), as left `[n, O, r]` times right `[n, r, I]`."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    kept = min(rank, values.shape[-1])
    return {"left": left[..., :kept] * values[:, None, :kept], "right": right[:, :kept]}


def int8_svd(matrices: Float[Tensor, "n O I"], rank: int) -> Tensors:
    """The factors of `truncated_svd` in 8-bit rows, `[n, r, O]` and `[n, r, I]`: a scale for each direction and side."""
    factors = truncated_svd(matrices, rank)
    rows = {"left": factors["left"].mT.contiguous(), "right": factors["right"]}
    return {f"{side}_{part}": value for side, factor in rows.items() for part, value in int8_rows(factor).items()}


def from_int8_svd(stored: Tensors) -> Float[Tensor, "n O I"]:
    """What `int8_svd` packed."""
    left, right = (
        from_int8_rows({part: stored[f"{side}_{part}"] for part in ("values", "scale")}) for side in ("left", "right")
    )
    return left.mT @ right


class Packing(NamedTuple):
    """How a block's matrices are packed, given the format's rank, and unpacked, given d_in."""

    pack: Callable[[Float[Tensor, "n O I"], int], Tensors]
    unpack: Callable[[Tensors, int], Float[Tensor, "n O I"]]


PACKINGS: dict[str, Packing] = {
    "int8": Packing(lambda h, _: int8_rows(h), lambda stored, _: from_int8_rows(stored)),
    "int4": Packing(lambda h, _: int4_rows(h), from_int4_rows),
    "int8_tensor": Packing(lambda h, _: int8_tensors(h), lambda stored, _: from_int8_tensors(stored)),
    "svd": Packing(truncated_svd, lambda stored, _: stored["left"] @ stored["right"]),
    "svd_int8": Packing(int8_svd, lambda stored, _: from_int8_svd(stored)),
}
"""The formats that pack each block for itself."""


def projected(
    gradients: dict[str, Float[Tensor, "n _O _I"]], dimension: int, *, seed: int = 0, chunk: int = 1 << 22
) -> Float[Tensor, "n k"]:
    """R h / √k with R of independent random signs (Achlioptas 2003): inner products are kept in expectation.

    R is never stored: its signs are a hash of their place, the same on every device and in every chunk.

    Args:
        gradients: blocks `[n, d_out, d_in]`, taken as one long vector an example.
        chunk: entries of R in memory at a time.
    """
    total: Tensor | None = None
    for name, gradient in gradients.items():
        flat = gradient.flatten(1)
        rows = max(1, chunk // dimension)
        for start in range(0, flat.shape[1], rows):
            part = flat[:, start : start + rows]
            signs = random_signs(start, part.shape[1], dimension, keyed_seed("projection", seed, name), flat.device)
            share = part @ signs.to(flat.dtype)
            total = share if total is None else total.add_(share)
    assert total is not None
    return total / math.sqrt(dimension)


def random_signs(
    first: int, rows: int, columns: int, key: int, device: torch.device
) -> Int8[Tensor, "{rows} {columns}"]:
    """±1 for rows `first` … of an endless matrix, `[rows, columns]` int8, each a function of (key, row, column) only.

    32 signs come from one 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014).
    """
    words = -(-columns // 32)
    row = torch.arange(first, first + rows, device=device, dtype=torch.int64).unsqueeze(1)
    place = row * words + torch.arange(words, device=device, dtype=torch.int64)
    hashed = _mixed(place + _signed(key))
    bytes_of_words = (hashed.unsqueeze(-1) >> torch.arange(0, 32, 8, device=device)) & 255
    bits = (torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device)) & 1
    signs_of_byte = 2 * bits.to(torch.int8) - 1  # eight signs at a time: one look-up instead of eight shifts
    return signs_of_byte[bytes_of_words].flatten(1)[:, :columns]


def _mixed(values: Int64[Tensor, "*n"]) -> Int64[Tensor, "*n"]:
    values = values * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * _signed(factor)
    return values ^ _shifted(values, 31)


def _shifted(values: Int64[Tensor, "*n"], bits: int) -> Int64[Tensor, "*n"]:
    """A logical shift to the right of 64-bit integers; `>>` alone would copy the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """A 64-bit pattern as the integer that torch holds it as."""
    return value - (1 << 64) if value >= 1 << 63 else value
