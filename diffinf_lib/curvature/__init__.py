"""Curvature: K-FAC and EK-FAC approximations of the GGN, and exact references."""

from diffinf_lib.curvature.config import Approximation, CurvatureConfig
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.curvature.fit import CURVATURE_FILE, Curvature, fit_curvature
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.curvature.layers import ForwardPass, curvature_layers

__all__ = [
    "CURVATURE_FILE",
    "Approximation",
    "Curvature",
    "CurvatureConfig",
    "ForwardPass",
    "KroneckerFactors",
    "LayerCurvature",
    "curvature_layers",
    "fit_curvature",
]
