"""Precision: how matrix products are rounded, on the devices that have a choice; weights are never in half precision.

| name | products | sums |
|---|---|---|
| `float32` | float32 | float32 |
| `tf32` | 10 bits of mantissa, on a GPU | float32 |
| `bfloat16` | 7 bits of mantissa; weights stay in float32 | float32 |
"""

from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16"]
