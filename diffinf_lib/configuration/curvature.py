"""What curvature to fit, and from how many draws."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from diffinf_lib.configuration.draws import DrawConfig
from diffinf_lib.configuration.precision import Precision
from diffinf_lib.errors import require
from diffinf_lib.options import Options, PositiveInt

Approximation = Literal["ekfac", "kfac", "diagonal", "identity"]
Partition = Literal["model", "loss_per_draw", "loss_per_example"]
Sharing = Literal["expand", "reduce"]
Correction = Literal["batched", "per_draw"]
BiasRule = Literal["joint", "separate"]


@dataclass(frozen=True)
class CurvatureConfig(Options):
    """Curvature F of the mean loss; every choice has the same scale, so one damping means one thing for all.

    Attributes:
        approximation: `ekfac` (George et al. 2018), `kfac` (Martens & Grosse 2015), `diagonal` (EK-FAC without a change of
            basis), or `identity` (the best multiple of the identity for each block). Scores read the last three, as far
            as they are there, from one fit: K-FAC from a fit of EK-FAC.
        draws: draws of each training image for the corrected eigenvalues.
        partition: which matrix (Mlodozeniec et al. 2025, section 3.1): `model`, GGN^model = (2/C) E[JᵀJ];
            `loss_per_draw`, GGN^loss = E[∇ℓ ∇ℓᵀ] with an outer product for each draw (t, ε); or `loss_per_example`, the
            same with an outer product for each example of its gradient averaged over draws (TRAK's Gram matrix).
        sampled_labels: of partition `model`: how many labels are sampled for each draw from the model's own outputs (a
            Monte Carlo estimate). Labels in the sense of the Fisher matrix: targets, not classes.
        exact_labels: of partition `model`: run through all C output dimensions instead; C times the cost.
        sharing: how K-FAC treats the positions that share weights, `expand` or `reduce` (Eschenhagen et al. 2023).
        bias: `joint`, as one more input of its layer, or `separate`, a block of its own.
        correction: `batched` squares the rotated gradient of a random-sign sum of `draws_per_sum` draws, whose
            expectation is the sum of the squares; `per_draw` squares each draw's. The same expectation, a fraction of the cost.
        draws_per_sum: draws that are summed before squaring.
        factor_draws: draws of each image for the Kronecker factors; None for a third of `draws`, or for all of them where
            an outer product is taken of a mean over draws.
        input_positions: positions of each draw that the input factor is averaged over, drawn at random, one in each of as
            many equal slices; None takes all.
        precision: of the matrix products, see `diffinf_lib.configuration.precision`.
    """

    approximation: Approximation = "ekfac"
    draws: DrawConfig = field(default_factory=lambda: DrawConfig(count=30))
    partition: Partition = "model"
    sampled_labels: PositiveInt = 1
    exact_labels: bool = False
    sharing: Sharing = "expand"
    bias: BiasRule = "joint"
    correction: Correction = "batched"
    draws_per_sum: PositiveInt = 100
    factor_draws: DrawConfig | None = None
    input_positions: PositiveInt | None = 4
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        sampled = self.partition == "model" and not self.exact_labels
        require(sampled or self.sampled_labels == 1, f"sampled_labels={self.sampled_labels}: only "
                "partition='model' with sampled labels has several; give sampled_labels=1")  # fmt: skip
        require(self.partition == "model" or not self.exact_labels, f"exact_labels with partition={self.partition!r}: GGN^loss "
                "has no labels; leave it out")  # fmt: skip
        same = self.drawn_for_factors == self.draws
        require(self.partition != "loss_per_example" or same, f"factor_draws={self.factor_draws}: draw-averaged gradients "
                "depend on the number of draws; with partition='loss_per_example' leave factor_draws=None")  # fmt: skip

    @property
    def drawn_for_factors(self) -> DrawConfig:
        """The draws of each image for the Kronecker factors."""
        if self.factor_draws is not None:
            return self.factor_draws
        if self.partition == "loss_per_example" or self.draws.count < 3:
            return self.draws
        pairs = 2 if self.draws.noise_rule == "antithetic" else 1
        return replace(self.draws, count=pairs * math.ceil(self.draws.count / pairs / 3))

    @property
    def has_factors(self) -> bool:
        """Whether there is a basis to be found."""
        return self.approximation in ("ekfac", "kfac")

    @property
    def has_corrections(self) -> bool:
        """Whether eigenvalues are measured in the basis."""
        return self.approximation != "kfac"
