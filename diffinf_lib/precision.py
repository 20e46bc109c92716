"""Precision: how matrix products are rounded, on the devices that have a choice.

| name | products | sums |
|---|---|---|
| `float32` | float32 | float32 |
| `tf32` | 10 bits of mantissa, on a GPU | float32 |
| `bfloat16` | 7 bits of mantissa; weights stay in float32 | float32 |
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def matrix_precision(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Matrix products and convolutions at a precision; the caller's settings are put back at the end."""
    before, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = allowed
