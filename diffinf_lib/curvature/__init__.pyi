"""What the package holds, and in which module; each is loaded when it is first asked for."""

from .blocks import Block as Block, curvature_blocks as curvature_blocks, split_into_blocks as split_into_blocks
from .curvlinops_backend import fit_with_curvlinops as fit_with_curvlinops
from .ekfac import LayerCurvature as LayerCurvature
from .exact import (
    dense_empirical_fisher as dense_empirical_fisher,
    dense_ggn as dense_ggn,
    dense_hessian as dense_hessian,
)
from .fit import CURVATURE_FILE as CURVATURE_FILE, fit_curvature as fit_curvature, fit_to_draws as fit_to_draws
from .fitted import Curvature as Curvature
from .inverses import (
    Solution as Solution,
    conjugate_gradient_inverse as conjugate_gradient_inverse,
    conjugate_gradient_path as conjugate_gradient_path,
    curvature_preconditioner as curvature_preconditioner,
    neumann_inverse as neumann_inverse,
)
from .kfac import KroneckerFactors as KroneckerFactors
from .layers import (
    Coverage as Coverage,
    Covers as Covers,
    ForwardPass as ForwardPass,
    coverage as coverage,
    curvature_layers as curvature_layers,
)
from .operators import (
    empirical_fisher_operator as empirical_fisher_operator,
    example_gradients as example_gradients,
    flatten_layers as flatten_layers,
    ggn_operator as ggn_operator,
    hessian_operator as hessian_operator,
    split_layers as split_layers,
    to_dense as to_dense,
)
from .spectra import (
    eigenvalue_density as eigenvalue_density,
    extreme_eigenvalues as extreme_eigenvalues,
    trace as trace,
)
