"""Sampling: how many samples, and how they are made."""

from dataclasses import dataclass

from diffinf_lib.configuration.process import SamplerName
from diffinf_lib.options import Options, PositiveInt


@dataclass(frozen=True)
class SamplingConfig(Options, called={"count": "samples"}):
    """How many samples a run keeps as queries, and how they are made.

    Attributes:
        count: number of samples.
        method: `ddpm` (Ho et al. 2020, algorithm 2), `ddim` (Song et al. 2021, η = 0), or `euler` for flow matching.
        steps: number of denoising steps, at most the process's timesteps.
    """

    count: PositiveInt = 64
    method: SamplerName = "ddpm"
    steps: PositiveInt = 1000
