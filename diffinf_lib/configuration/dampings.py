"""Dampings: the numbers λ that a curvature is damped by."""

from collections.abc import Iterable, Sequence
from typing import Any

from diffinf_lib.errors import require
from diffinf_lib.options import NonNegativeFloat, checked

DEFAULT_DAMPING = 1e-8
"""λ where none is given: the paper's."""
REPORT_DAMPING = 1e-6
"""λ for images that nobody has studied: on the book's datasets it is the largest that costs next to nothing on any."""


def check_dampings(damping: float | Sequence[float]) -> list[float]:
    """One damping or several, as a list.

    Raises:
        ConfigurationError: one is no number, negative or not finite, or there is none.
    """
    several = isinstance(damping, Iterable) and not isinstance(damping, str) and getattr(damping, "ndim", 1) > 0
    values: Any = damping if several else [damping]
    if hasattr(values, "tolist"):  # a tensor or an array
        values = values.tolist()
    dampings = [checked("damping", value, NonNegativeFloat) for value in values]
    require(len(dampings) > 0, "damping: give at least one number")
    return dampings
