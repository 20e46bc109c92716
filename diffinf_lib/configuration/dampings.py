"""Dampings: the numbers λ that a curvature is damped by."""

import math
from collections.abc import Sequence
from numbers import Real

from diffinf_lib.errors import require


def check_dampings(damping: float | Sequence[float]) -> list[float]:
    """One damping or several, as a list.

    Raises:
        ConfigurationError: one is negative or not finite, or there is none.
    """
    dampings = [float(damping)] if isinstance(damping, Real) else [float(value) for value in damping]  # type: ignore[union-attr]
    require(len(dampings) > 0, "damping: give at least one number")
    for value in dampings:
        require(math.isfinite(value) and value >= 0, f"damping={value}: give a number >= 0, such as 1e-8")
    return dampings
