"""Likelihood: how the probability-flow ODE is solved."""

from dataclasses import dataclass
from typing import Literal

from diffinf_lib.options import Options, PositiveFloat, PositiveInt

Solver = Literal["rk4", "heun3", "midpoint", "dopri5"]
Divergence = Literal["hutchinson", "exact"]


@dataclass(frozen=True)
class LikelihoodConfig(Options):
    """How the ODE is solved, and how often.

    Attributes:
        method: `rk4`, `heun3` or `midpoint` with a fixed number of steps: every model and image gets the same arithmetic,
            so that errors are shared and cancel where models are compared. `dopri5` chooses its steps for a whole batch.
        steps: of a fixed-step method, which asks the network 4, 3 or 2 times a step.
        tolerance: of `dopri5`, relative and absolute.
        divergence: `hutchinson`, zᵀ (∂v/∂x) z with random signs z (Hutchinson 1990; Grathwohl et al. 2019), or `exact`, one
            backward pass for each of the C·H·W dimensions. Fixed steps take another z whenever the network is asked, which
            averages over many and remains unbiased; `dopri5` needs a smooth integrand and keeps one z for the trajectory.
        probes: number of z at a time; each costs a backward pass.
        draws: how often an image with levels is spread over its bins, in pairs of u and −u; each is a trajectory of its own.
    """

    method: Solver = "rk4"
    steps: PositiveInt = 8
    tolerance: PositiveFloat = 1e-5
    divergence: Divergence = "hutchinson"
    probes: PositiveInt = 1
    draws: PositiveInt = 4

    @property
    def network_passes(self) -> int:
        """About how many forward passes one image takes, each backward pass to the input counted as one.

        The exact divergence is counted as if it were one probe, `dopri5` as if it took 30 steps of six.
        """
        asked = {"rk4": 4 * self.steps, "heun3": 3 * self.steps, "midpoint": 2 * self.steps, "dopri5": 180}[self.method]
        return self.draws * asked * (1 + self.probes)
