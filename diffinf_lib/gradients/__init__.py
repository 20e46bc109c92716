"""Gradients: per-example gradients of an expectation, kept in the eigenbasis of the curvature.

In the eigenbasis K-FAC, EK-FAC and every damping divide the same numbers by different ones, so gradients are computed
once and scored many times.
"""

from diffinf_lib.gradients.compute import example_gradient, gradients_in_eigenbasis, grouped_gradients
from diffinf_lib.gradients.pieces import pieces
from diffinf_lib.gradients.sets import (
    GradientSet,
    LayerGradients,
    Projections,
    QueryGradients,
    check_basis,
    check_blocks,
)
from diffinf_lib.gradients.store import gradients_of

__all__ = [
    "GradientSet",
    "LayerGradients",
    "Projections",
    "QueryGradients",
    "check_basis",
    "check_blocks",
    "example_gradient",
    "gradients_in_eigenbasis",
    "gradients_of",
    "grouped_gradients",
    "pieces",
]
