"""Methods: the names of the table in `diffinf_lib.attribution.methods`, for what refuses others before anything is loaded."""

from typing import Literal

MethodName = Literal[
    "ekfac", "kfac", "ekfac-along", "kfac-along", "ekfac-along-lr", "ekfac-ensemble", "cg", "cg-along", "neumann", "relative",
    "self-relative", "renormalised", "trak", "trak-projected", "d-trak", "d-trak-mean-output", "d-trak-l1-norm",
    "d-trak-l2-norm", "d-trak-max-norm", "d-trak-simplified-elbo", "journey-trak", "das", "tracin", "gradient-dot",
    "gradient-cosine", "clip", "pixel", "random",
]  # fmt: skip
