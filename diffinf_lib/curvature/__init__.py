"""Curvature: K-FAC, EK-FAC and simpler approximations of the GGN, and exact references."""

import warnings

with warnings.catch_warnings():
    # Its first import compiles something in a way that torch calls deprecated; that is not the reader's concern
    warnings.simplefilter("ignore", FutureWarning)
    import curvlinops  # noqa: F401

from diffinf_lib.curvature.blocks import Block, curvature_blocks, split_into_blocks
from diffinf_lib.curvature.config import Approximation, CurvatureConfig
from diffinf_lib.curvature.curvlinops_backend import fit_with_curvlinops
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.curvature.exact import dense_empirical_fisher, dense_ggn, dense_hessian
from diffinf_lib.curvature.fit import CURVATURE_FILE, fit_curvature
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.curvature.inverses import (
    Solution,
    conjugate_gradient_inverse,
    conjugate_gradient_path,
    curvature_preconditioner,
    neumann_inverse,
    scores_with_inverse,
)
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.curvature.layers import Coverage, Covers, ForwardPass, coverage, curvature_layers
from diffinf_lib.curvature.operators import (
    empirical_fisher_operator,
    example_gradients,
    flatten_layers,
    ggn_operator,
    hessian_operator,
    split_layers,
    to_dense,
)
from diffinf_lib.curvature.spectra import eigenvalue_density, extreme_eigenvalues, trace

__all__ = [
    "CURVATURE_FILE",
    "Approximation",
    "Block",
    "Coverage",
    "Covers",
    "Curvature",
    "CurvatureConfig",
    "ForwardPass",
    "KroneckerFactors",
    "LayerCurvature",
    "Solution",
    "conjugate_gradient_inverse",
    "conjugate_gradient_path",
    "coverage",
    "curvature_blocks",
    "curvature_layers",
    "curvature_preconditioner",
    "dense_empirical_fisher",
    "dense_ggn",
    "dense_hessian",
    "eigenvalue_density",
    "empirical_fisher_operator",
    "example_gradients",
    "extreme_eigenvalues",
    "fit_curvature",
    "fit_with_curvlinops",
    "flatten_layers",
    "ggn_operator",
    "hessian_operator",
    "neumann_inverse",
    "scores_with_inverse",
    "split_into_blocks",
    "split_layers",
    "to_dense",
    "trace",
]
