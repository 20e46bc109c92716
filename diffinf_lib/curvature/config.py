"""What curvature to fit, and from how many draws."""

from dataclasses import dataclass, field
from typing import Literal

from diffinf_lib.diffusion import DrawConfig
from diffinf_lib.errors import require

Approximation = Literal["ekfac", "kfac"]


@dataclass(frozen=True)
class CurvatureConfig:
    """Curvature F of the mean loss: GGN^model, (2/C) E[JᵀJ], by sampled labels.

    Attributes:
        approximation: `ekfac` (George et al. 2018) or `kfac` (Martens & Grosse 2015); scores read either from one fit
            of `ekfac`.
        draws: draws of each training image, for each of the two passes.
        labels: sampled labels a draw (Monte Carlo estimate of the expectation over the model's own outputs).
    """

    approximation: Approximation = "ekfac"
    draws: DrawConfig = field(default_factory=lambda: DrawConfig(count=30))
    labels: int = 1

    def __post_init__(self) -> None:
        require(
            self.approximation in ("ekfac", "kfac"), f"approximation={self.approximation!r}: give 'ekfac' or 'kfac'"
        )
        require(self.labels > 0, f"labels={self.labels}: give a positive number")
