"""Measurements: which number of a query is meant, over which draws, and what a higher one says."""

from dataclasses import dataclass, field, replace
from typing import Literal

from diffinf_lib.configuration.draws import DrawConfig
from diffinf_lib.configuration.expectations import MEASUREMENT_PURPOSE, QUERY_PURPOSE, Expectation
from diffinf_lib.configuration.likelihood import LikelihoodConfig
from diffinf_lib.configuration.objectives import Objective
from diffinf_lib.errors import require
from diffinf_lib.options import Options

MeasurementName = Literal[
    "loss", "loss_at_time", "weighted_loss", "simplified_elbo", "elbo", "square_norm", "trajectory_log_prob",
    "log_likelihood",
]  # fmt: skip
Direction = Literal["less likely", "more likely", "neither"]
QuerySet = Literal["held-out", "generated"]


LESS_LIKELY = ("loss", "loss_at_time", "weighted_loss", "simplified_elbo")


@dataclass(frozen=True)
class MeasurementConfig(Options, called={"name": "measurement"}):
    """What is measured of a query, and over which draws.

    Attributes:
        name: `loss`, the mean-dim squared error averaged over t and ε; `loss_at_time`, the same at `timestep`;
            `weighted_loss`, with w_t = `loss_weights`; `simplified_elbo`, with the ELBO's w_t; `elbo`, all its terms;
            `square_norm`, the mean of ε_θ²; `trajectory_log_prob`, the log-probability of the stored sampling trajectory per
            step; `log_likelihood`, by the probability-flow ODE, for evaluation only. The last two and `elbo` are in bits
            per dimension, higher for more likely queries.
        draws: the draws of each query. Of `trajectory_log_prob` their timesteps count, noise is the trajectory's own.
        timestep: of `loss_at_time`.
        loss_weights: of `weighted_loss`: w_t, constant on equal slices of 0..T−1.
        levels: of `elbo` and `log_likelihood`: number of values a pixel can take, evenly spaced on [−1, 1]: 256, or 17 for
            digits; None for latents and other continuous data. The ELBO of an image whose pixels lie between the levels, a
            sample, is the probability of the bins around them.
        likelihood: of `log_likelihood`: how the ODE is solved; None for the defaults of `LikelihoodConfig`.
        dequantised: of `log_likelihood`: the images have been spread over their levels already, as those of `cifar2deq`.
    """

    name: MeasurementName = "loss"
    draws: DrawConfig = field(default_factory=lambda: DrawConfig(count=256))
    timestep: int | None = None
    loss_weights: tuple[float, ...] | None = None
    levels: int | None = None
    likelihood: LikelihoodConfig | None = None
    dequantised: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.name == "loss_at_time") == (self.timestep is not None), f"timestep={self.timestep} with measurement="
                f"{self.name!r}: 'loss_at_time' needs one, and nothing else has one")  # fmt: skip
        for option in ("likelihood", "dequantised"):
            value = getattr(self, option)
            require(not value or self.name == "log_likelihood", f"{option}={value} with measurement={self.name!r}: only "
                    "'log_likelihood' has one")  # fmt: skip
        if self.attributable:
            _ = self.objective

    @property
    def label(self) -> str:
        """The name under which results are filed: `loss`, `loss_at_time-100`."""
        return self.name if self.timestep is None else f"{self.name}-{self.timestep}"

    @property
    def attributable(self) -> bool:
        """Whether influence can be taken on it."""
        return self.name != "log_likelihood"

    @property
    def direction(self) -> Direction:
        """What a higher value means for the query."""
        if self.name == "square_norm":
            return "neither"
        return "less likely" if self.name in LESS_LIKELY else "more likely"

    @property
    def objective(self) -> Objective:
        """The function of the network's output whose mean over draws the measurement is.

        Raises:
            ConfigurationError: the measurement is no such mean.
        """
        require(self.attributable, "measurement='log_likelihood': it is for evaluation only; attribute it with 'elbo' or "
                "'loss'")  # fmt: skip
        name = "loss" if self.name == "loss_at_time" else self.name
        return Objective(name, self.loss_weights, self.levels if name == "elbo" else None)  # type: ignore[arg-type]

    def expectation(self, seed: int = 0, draws: DrawConfig | None = None) -> Expectation:
        """The mean that the measurement is, all at one timestep for `loss_at_time`: what a query's gradient is taken of.

        Args:
            seed: of the draws.
            draws: take the same mean over these draws, keyed apart from the measurement's own.

        Raises:
            ConfigurationError: the measurement is no such mean.
        """
        taken, purpose = (self.draws, MEASUREMENT_PURPOSE) if draws is None else (draws, QUERY_PURPOSE)
        if self.timestep is not None:
            taken = replace(taken, timestep_rule="single", timestep=self.timestep, proposal=None)
        return Expectation(taken, purpose, seed, objective=self.objective)


def proxy_sign(attributed: MeasurementConfig, measured: MeasurementConfig) -> int:
    """What scores of one measurement are multiplied by to stand for changes of another: −1 where one of them rises as a query
    becomes less likely and the other falls."""
    both = {attributed.direction, measured.direction}
    return -1 if both == {"less likely", "more likely"} else 1


def as_measurement(measurement: "MeasurementConfig | MeasurementName | None") -> MeasurementConfig:
    """A configuration from a name, or the loss from nothing.

    Raises:
        ConfigurationError: it is something else, or there is no measurement of that name.
    """
    if measurement is None:
        return MeasurementConfig()
    if isinstance(measurement, str):
        return MeasurementConfig(measurement)
    require(isinstance(measurement, MeasurementConfig), f"measurement={measurement!r}: give a name, such as 'loss', or a "
            "MeasurementConfig")  # fmt: skip
    return measurement
