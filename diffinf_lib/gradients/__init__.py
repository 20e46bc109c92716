"""Gradients: per-example loss gradients averaged over draws, kept in the eigenbasis of the curvature.

In the eigenbasis K-FAC, EK-FAC and every damping divide the same numbers by different ones, so gradients are computed
once and scored many times.
"""

from diffinf_lib.gradients.compute import (
    TRAIN_STAGE,
    GradientConfig,
    LayerGradients,
    example_gradient,
    gradients_in_eigenbasis,
    grouped_gradients,
)
from diffinf_lib.gradients.store import all_gradients, gradient_shards

__all__ = [
    "TRAIN_STAGE",
    "GradientConfig",
    "LayerGradients",
    "all_gradients",
    "example_gradient",
    "gradient_shards",
    "gradients_in_eigenbasis",
    "grouped_gradients",
]
