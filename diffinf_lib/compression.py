"""Compression: gradients in the eigenbasis in fewer bytes.

Entries of a gradient in the eigenbasis differ by orders of magnitude, and the small ones count as much as the large ones
once they are divided by the curvature. Lossy formats therefore store h = g / √(Λ + λ₀), whose entries are all about one in
size: an error in h is an error in the score, wherever it falls (λ₀ is the format's `whitening`).

| format | bytes an entry | what is lost |
|---|---|---|
| `float32` | 4 | nothing |
| `bfloat16` | 2 | all but 8 bits of each number |
| `int8` | 1, and 4 a row | all but 8 bits of each row's largest number |
| `svd` | 4 · rank · (d_out + d_in) a block | all but the leading singular directions of each block's matrix |
| `projection` | 4 · dimension an example | all but a random projection's inner products |
"""

import math
import typing
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.curvature import Curvature
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_seed

Kind = Literal["float32", "bfloat16", "int8", "svd", "projection"]
Tensors = dict[str, Tensor]

PROJECTION = "projection"
"""The one key of a projected store: all blocks are in it together."""


@dataclass(frozen=True)
class StoreFormat:
    """How gradients are kept.

    Attributes:
        kind: see the table of `diffinf_lib.compression`; `float32` keeps the model's own type.
        rank: of `svd`, singular directions kept of each block.
        dimension: of `projection`, k.
        whitening: λ₀ of the lossy formats; take the damping that scores will be read with.
    """

    kind: Kind = "float32"
    rank: int = 8
    dimension: int = 4096
    whitening: float = 1e-8

    def __post_init__(self) -> None:
        kinds = typing.get_args(Kind)
        require(self.kind in kinds, f"format={self.kind!r}: give {', '.join(kinds[:-1])} or {kinds[-1]}")
        for name in ("rank", "dimension"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)}: give a positive number")
        require(math.isfinite(self.whitening) and self.whitening > 0, f"whitening={self.whitening}: give a number > 0")


class Compression:
    """Encoding and decoding for one curvature.

    Args:
        curvature: its corrected eigenvalues whiten, K-FAC's where there are no others.
        preconditioned: the gradients to come are (F + λI)⁻¹ g already: multiplied by √(Λ + λ₀), they are white.
    """

    def __init__(self, curvature: Curvature, form: StoreFormat, *, preconditioned: bool = False):
        self.form = form
        power = 0.5 if preconditioned else -0.5
        self.whitener = {
            name: (layer.eigenvalues(layer.best) + form.whitening) ** power for name, layer in curvature.layers.items()
        }

    def encode(self, gradients: Tensors) -> Tensors:
        """Gradients `[n, d_out, d_in]` by block as the tensors to store, each with n rows."""
        if self.form.kind == "float32":
            return gradients
        if self.form.kind == "bfloat16":
            return {name: gradient.bfloat16() for name, gradient in gradients.items()}
        whitened = {name: gradient * self.whitener[name] for name, gradient in gradients.items()}
        if self.form.kind == "projection":
            return {PROJECTION: projected(whitened, self.form.dimension)}
        encode = int8_rows if self.form.kind == "int8" else self._svd
        return {f"{name}/{part}": value for name, h in whitened.items() for part, value in encode(h).items()}

    def _svd(self, matrices: Float[Tensor, "n O I"]) -> Tensors:
        return truncated_svd(matrices, self.form.rank)

    def decode(self, stored: Tensors) -> Tensors:
        """Gradients `[n, d_out, d_in]` by block; a projection comes back as it is, `{"projection": [n, k]}`."""
        kind = next(iter(self.whitener.values())).dtype
        if self.form.kind in ("float32", "projection"):
            return stored
        if self.form.kind == "bfloat16":
            return {name: value.to(kind) for name, value in stored.items()}
        first, second = ("values", "scale") if self.form.kind == "int8" else ("left", "right")
        merge = torch.mul if self.form.kind == "int8" else torch.matmul
        return {
            name: merge(stored[f"{name}/{first}"].to(kind), stored[f"{name}/{second}"]) / whitener
            for name, whitener in self.whitener.items()
        }

    def dual(self, preconditioned: Tensors) -> Tensors:
        """What a preconditioned query is to be multiplied with `decode`'s output as: itself, or its own projection."""
        if self.form.kind != "projection":
            return preconditioned
        unwhitened = {name: gradient / self.whitener[name] for name, gradient in preconditioned.items()}
        return {PROJECTION: projected(unwhitened, self.form.dimension)}


def int8_rows(matrices: Float[Tensor, "n O I"]) -> Tensors:
    """Each row as 8-bit integers times the row's largest absolute value / 127; a row of zeros stays one."""
    scale = matrices.abs().amax(-1, keepdim=True) / 127
    steps = torch.where(scale > 0, matrices / scale.clamp(min=torch.finfo(scale.dtype).tiny), 0.0)
    return {"values": steps.round().clamp(-127, 127).to(torch.int8), "scale": scale}


def truncated_svd(matrices: Float[Tensor, "n O I"], rank: int) -> Tensors:
    """The best approximation of each matrix of a rank (Eckart & Young 1936), as left `[n, O, r]` times right `[n, r, I]`."""
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    kept = min(rank, values.shape[-1])
    return {"left": left[..., :kept] * values[:, None, :kept], "right": right[:, :kept]}


def projected(gradients: Tensors, dimension: int, *, seed: int = 0, chunk: int = 1 << 22) -> Float[Tensor, "n k"]:
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


def random_signs(first: int, rows: int, columns: int, key: int, device: torch.device) -> Tensor:
    """±1 for rows `first` … of an endless matrix, `[rows, columns]` int8, each a function of (key, row, column) only.

    32 signs come from one 64-bit hash (the finaliser of SplitMix64, Steele et al. 2014).
    """
    words = -(-columns // 32)
    row = torch.arange(first, first + rows, device=device, dtype=torch.int64).unsqueeze(1)
    place = row * words + torch.arange(words, device=device, dtype=torch.int64)
    hashed = _mixed(place + _signed(key))
    bits = (hashed.unsqueeze(-1) >> torch.arange(32, device=device)) & 1
    return (2 * bits.to(torch.int8) - 1).flatten(1)[:, :columns]


def _mixed(values: Tensor) -> Tensor:
    values = values * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ _shifted(values, shift)) * _signed(factor)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """A logical shift to the right of 64-bit integers; `>>` alone would copy the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """A 64-bit pattern as the integer that torch holds it as."""
    return value - (1 << 64) if value >= 1 << 63 else value
