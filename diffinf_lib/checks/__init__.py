"""Checks: exercises that say what is wrong. `di.checks.NAME(function)` tries a reader's function where the answer is known.

What the function is called with and returns is in the docstring of each check: `help(di.checks.kfac)`. A right function gets
one line that says what was tried; a wrong one raises `CheckFailed` with one line that names the mistake, if it is a known one.
"""

from diffinf_lib.checks.assembled import kfac_influence
from diffinf_lib.checks.claims import holm
from diffinf_lib.checks.curvature import ggn, sampled_fisher
from diffinf_lib.checks.diffusion import antithetic_pairs, noisy, posterior_mean
from diffinf_lib.checks.eigenvalues import batched_correction, corrected_eigenvalues
from diffinf_lib.checks.evaluating import keeps_lds, lds, spearman, spearman_brown
from diffinf_lib.checks.exercise import CheckFailed, Passed
from diffinf_lib.checks.kernels import woodbury
from diffinf_lib.checks.kronecker import kfac, kfac_score
from diffinf_lib.checks.measuring import draws_needed, elbo_weights, importance_mean, irreducible_loss
from diffinf_lib.checks.proximal import proximal
from diffinf_lib.checks.removal import block_leverage, influence, leave_one_out
from diffinf_lib.checks.sharing import shard_of
from diffinf_lib.checks.spending import Shop, Spent, budget, open_shop
from diffinf_lib.checks.stored import accumulated_score, int8_rows, shared_draw_bias

__all__ = [
    "CheckFailed",
    "Passed",
    "Shop",
    "Spent",
    "accumulated_score",
    "antithetic_pairs",
    "batched_correction",
    "block_leverage",
    "budget",
    "corrected_eigenvalues",
    "draws_needed",
    "elbo_weights",
    "ggn",
    "holm",
    "importance_mean",
    "influence",
    "int8_rows",
    "irreducible_loss",
    "keeps_lds",
    "kfac",
    "kfac_influence",
    "kfac_score",
    "lds",
    "leave_one_out",
    "noisy",
    "open_shop",
    "posterior_mean",
    "proximal",
    "sampled_fisher",
    "shard_of",
    "shared_draw_bias",
    "spearman",
    "spearman_brown",
    "woodbury",
]
