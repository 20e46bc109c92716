"""Stores: in which format gradients are kept."""

from dataclasses import dataclass
from typing import Literal

from diffinf_lib.configuration.dampings import DEFAULT_DAMPING
from diffinf_lib.errors import require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt

StoreKind = Literal["float32", "bfloat16", "int8", "int4", "int8_tensor", "svd", "svd_int8", "projection"]


@dataclass(frozen=True)
class StoreFormat(Options, called={"kind": "format"}):
    """How gradients are kept.

    Attributes:
        kind: see the table of `diffinf_lib.compression`; `float32` keeps the model's own type.
        rank: of `svd` and `svd_int8`, singular directions kept of each block.
        dimension: of `projection`, k.
        whitening: λ₀ of the lossy formats but `int8_tensor`; take the damping that scores will be read with.
    """

    kind: StoreKind = "float32"
    rank: PositiveInt = 8
    dimension: PositiveInt = 4096
    whitening: PositiveFloat = DEFAULT_DAMPING


def check_formats(**options: object) -> None:
    """Refuse what is neither a `StoreFormat` nor None, by name.

    Raises:
        ConfigurationError: for the first that is not.
    """
    for name, value in options.items():
        require(value is None or isinstance(value, StoreFormat), f"{name}={value!r}: give a StoreFormat, such as "
                "StoreFormat('int8'), or None")  # fmt: skip
