"""Draws: how many (timestep, noise) pairs an expectation is taken over, and how they are spread."""

from dataclasses import dataclass
from typing import Literal

from diffinf_lib.errors import require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt, Share

TimestepRule = Literal["stratified", "uniform", "grid", "signal", "elbo", "importance", "single"]
NoiseRule = Literal["antithetic", "independent"]


@dataclass(frozen=True)
class DrawConfig(Options, called={"count": "draws"}):
    """How many draws an example gets, and how they are spread.

    Attributes:
        count: number of draws S of each example.
        timestep_rule: `stratified` (one uniform timestep in each of equal slices of 0..T−1), `uniform` (independent),
            `grid` (the middle of each slice, the same for every example: the evenly spaced protocol of D-TRAK),
            `signal` (in proportion to ᾱ_t, the share of the image that is left, plus a tenth of uniform timesteps: where
            nothing is left of the image, examples hardly differ), `elbo` (in proportion to the ELBO's weight of the loss at
            t, β_t / (α_t (1 − ᾱ_t)), plus a tenth of uniform timesteps), or `importance` (in proportion to `proposal`). These
            three are stratified as well: one timestep in each of equal slices of their distribution. `single` takes
            `timestep` only: expectations are those at this t.
        noise_rule: `antithetic` (each timestep serves two draws, with ε and −ε) or `independent`.
        proposal: of `importance`: how often timesteps are drawn, as positive numbers for equal slices of 0..T−1, in any
            unit. A draw at t has the weight (1/T) / p(t), so expectations stay those over uniform timesteps.
        timestep: of `single`.
        shared: all examples get the same draws (common random numbers). What the noise does to every example alike then
            drops out of comparisons between examples, and these are what a ranking or an LDS is made of: the variance of a
            difference loses what the two have in common. A single example's gradient is no more exact than without, and a
            mean over examples less: for curvature leave it off.
        drop_condition: chance that a draw leaves the network's condition out, as its training did (Ho & Salimans 2022).
    """

    count: PositiveInt = 250
    timestep_rule: TimestepRule = "stratified"
    noise_rule: NoiseRule = "antithetic"
    proposal: tuple[PositiveFloat, ...] | None = None
    shared: bool = False
    timestep: int | None = None
    drop_condition: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.noise_rule == "independent" or self.count % 2 == 0,
                f"draws={self.count}: antithetic draws come in pairs, give an even number or "
                "noise_rule='independent'")  # fmt: skip
        if self.timestep_rule == "importance":
            require(bool(self.proposal), f"proposal={self.proposal}: importance sampling needs a tuple of positive "
                    "numbers, one for each slice of timesteps; see timestep_proposal")  # fmt: skip
        else:
            require(self.proposal is None, f"proposal with timestep_rule={self.timestep_rule!r}: only 'importance' has one; "
                    "leave it out")  # fmt: skip
        require((self.timestep_rule == "single") == (self.timestep is not None), f"timestep={self.timestep} with "
                f"timestep_rule={self.timestep_rule!r}: 'single' needs one, and nothing else has one")  # fmt: skip

    @property
    def weighted(self) -> bool:
        """Whether some draws count for more than others: timesteps are not drawn alike."""
        return self.timestep_rule in ("signal", "elbo", "importance")


def check_draws(**options: object) -> None:
    """Refuse what is not a `DrawConfig`, by name.

    Raises:
        ConfigurationError: for the first that is not.
    """
    for name, value in options.items():
        require(isinstance(value, DrawConfig), f"{name}={value!r}: give a DrawConfig, such as DrawConfig(64)")
