"""Curvature: K-FAC and EK-FAC approximations of the GGN, and exact references."""

from diffinf_lib.curvature.config import CurvatureConfig

__all__ = ["CurvatureConfig"]
