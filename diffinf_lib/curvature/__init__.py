"""Curvature: K-FAC, EK-FAC and simpler approximations of the GGN, and exact references."""

from diffinf_lib.curvature.blocks import Block, curvature_blocks, split_into_blocks
from diffinf_lib.curvature.config import Approximation, CurvatureConfig
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.curvature.fit import CURVATURE_FILE, fit_curvature
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.curvature.layers import ForwardPass, curvature_layers

__all__ = [
    "CURVATURE_FILE",
    "Approximation",
    "Block",
    "Curvature",
    "CurvatureConfig",
    "ForwardPass",
    "KroneckerFactors",
    "LayerCurvature",
    "curvature_blocks",
    "curvature_layers",
    "fit_curvature",
    "split_into_blocks",
]
