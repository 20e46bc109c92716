"""Measurements: numbers that say how well a model likes a query, the same draws for every model.

Common random numbers matter twice: models are compared on the same noise, and influence can take the gradient of the
very function that is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawConfig, Expectation, Objective, require_denoiser
from diffinf_lib.diffusion.denoiser import evaluating
from diffinf_lib.errors import require
from diffinf_lib.finite import check_draws_finite
from diffinf_lib.likelihood import LikelihoodConfig, log_likelihood
from diffinf_lib.options import Options
from diffinf_lib.precision import require_full_precision
from diffinf_lib.settings import own_settings

MEASUREMENT_STAGE = "measurement"
"""The stage under which every measurement's draws are keyed."""

QUERY_STAGE = "query-gradients"
"""The stage under which draws of query gradients are keyed, where they are not the measurement's own."""

MeasurementName = Literal[
    "loss", "loss_at_time", "weighted_loss", "simplified_elbo", "elbo", "square_norm", "trajectory_log_prob",
    "log_likelihood",
]  # fmt: skip
Direction = Literal["less likely", "more likely", "neither"]

LESS_LIKELY = ("loss", "loss_at_time", "weighted_loss", "simplified_elbo")


@dataclass(frozen=True)
class MeasurementConfig(Options, called={"name": "measurement"}):
    """What is measured of a query, and over which draws.

    Attributes:
        name: `loss`, the mean-dim squared error averaged over t and ε; `loss_at_time`, the same at `timestep`;
            `weighted_loss`, with w_t = `weights`; `simplified_elbo`, with the ELBO's w_t; `elbo`, all its terms;
            `square_norm`, the mean of ε_θ²; `trajectory_log_prob`, the log-probability of the stored sampling trajectory per
            step; `log_likelihood`, by the probability-flow ODE, for evaluation only. The last two and `elbo` are in bits
            per dimension, higher for more likely queries.
        draws: the draws of each query. Of `trajectory_log_prob` their timesteps count, noise is the trajectory's own.
        timestep: of `loss_at_time`.
        weights: of `weighted_loss`: w_t, constant on equal slices of 0..T−1.
        levels: of `elbo` and `log_likelihood`: number of values a pixel can take, evenly spaced on [−1, 1]: 256, or 17 for
            digits; None for latents and other continuous data. The ELBO of an image whose pixels lie between the levels, a
            sample, is the probability of the bins around them.
        likelihood: of `log_likelihood`: how the ODE is solved; None for the defaults of `LikelihoodConfig`.
        dequantised: of `log_likelihood`: the images have been spread over their levels already, as those of `cifar2deq`.
    """

    name: MeasurementName = "loss"
    draws: DrawConfig = field(default_factory=lambda: DrawConfig(count=256))
    timestep: int | None = None
    weights: tuple[float, ...] | None = None
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
        if self.differentiable:
            _ = self.objective

    @property
    def label(self) -> str:
        """The name under which results are filed: `loss`, `loss_at_time-100`."""
        return self.name if self.timestep is None else f"{self.name}-{self.timestep}"

    @property
    def differentiable(self) -> bool:
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
        require(self.differentiable, "measurement='log_likelihood': it is for evaluation only; attribute it with 'elbo' or "
                "'loss'")  # fmt: skip
        name = "loss" if self.name == "loss_at_time" else self.name
        return Objective(name, self.weights, self.levels if name == "elbo" else None)  # type: ignore[arg-type]

    def expectation(self, seed: int = 0, draws: DrawConfig | None = None) -> Expectation:
        """The mean that the measurement is, all at one timestep for `loss_at_time`: what a query's gradient is taken of.

        Args:
            seed: of the draws.
            draws: take the same mean over these draws, keyed apart from the measurement's own.

        Raises:
            ConfigurationError: the measurement is no such mean.
        """
        taken, stage = (self.draws, MEASUREMENT_STAGE) if draws is None else (draws, QUERY_STAGE)
        if self.timestep is not None:
            taken = replace(taken, timesteps="single", timestep=self.timestep, proposal=None)
        return Expectation(taken, stage, seed, objective=self.objective)


def forward_passes(configs: Sequence[MeasurementConfig]) -> int:
    """Forward passes of the network that `measure_all` takes for one query, shared draws counted once."""
    shared = {_passes(config.expectation()) for config in configs if config.differentiable}
    solved = [config.likelihood or LikelihoodConfig() for config in configs if not config.differentiable]
    return sum(draws.count for draws, _ in shared) + sum(config.network_passes for config in solved)


def _passes(expectation: Expectation) -> tuple[DrawConfig, bool]:
    """What the network is called with; expectations in which it is equal share passes."""
    return expectation.draws, expectation.objective.on_trajectories


def proxy_sign(attributed: MeasurementConfig, measured: MeasurementConfig) -> int:
    """What scores of one measurement are multiplied by to stand for changes of another: −1 where one of them rises as a query
    becomes less likely and the other falls."""
    both = {attributed.direction, measured.direction}
    return -1 if both == {"less likely", "more likely"} else 1


def as_measurement(measurement: "MeasurementConfig | MeasurementName | None") -> MeasurementConfig:
    """A configuration from a name, or the loss from nothing."""
    return MeasurementConfig(measurement) if isinstance(measurement, str) else measurement or MeasurementConfig()


def measure(
    model: Denoiser,
    images: ImageSet,
    config: MeasurementConfig | MeasurementName | None = None,
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "Q"]:
    """m_q(θ) of every query, `[Q]`, float64.

    The draws of a query are keyed by its id, so models are compared on the same noise and a query's value does not
    depend on which other queries are measured with it.

    Args:
        images: the queries; `Trajectories` for `trajectory_log_prob`.
        seed: of the draws, not of the model.

    Raises:
        ConfigurationError: a value is not finite; the message names the query and the timestep.
    """
    return measure_all(model, images, [as_measurement(config)], seed=seed, batch_size=batch_size)[0]


@own_settings
@torch.no_grad()
def measure_all(
    model: Denoiser,
    images: ImageSet,
    configs: Sequence[MeasurementConfig],
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "m Q"]:
    """Several measurements `[m, Q]`, float64, on the CPU; those that take the same draws share the network's passes."""
    require_full_precision(require_denoiser(model))
    values = torch.zeros(len(configs), len(images), dtype=torch.float64)
    together: dict[tuple[DrawConfig, bool], list[int]] = {}
    for place, config in enumerate(configs):
        if config.differentiable:
            together.setdefault(_passes(config.expectation()), []).append(place)
            continue
        values[place] = log_likelihood(
            model, images, config.likelihood, levels=config.levels, dequantised=config.dequantised, seed=seed,
            batch_size=batch_size,
        )  # fmt: skip
    for places in together.values():
        values[places] = _means(model, images, [configs[place].expectation(seed) for place in places], batch_size)
    return values


def _means(
    model: Denoiser,
    images: ImageSet,
    expectations: Sequence[Expectation],
    batch_size: int,
) -> Float[Tensor, "e Q"]:
    """The weighted mean of each objective over the draws that all share."""
    totals = torch.zeros(len(expectations), len(images), dtype=torch.float64)
    for batch in expectations[0].batches(model, images, batch_size):
        with evaluating(model):
            prediction = model.predict(batch)
        for total, expectation in zip(totals, expectations, strict=True):
            values = expectation.objective.per_draw(prediction, batch, model.process)
            shares = batch.weights.double() * values.double()
            check_draws_finite(shares, model, batch, images.ids)
            total.index_add_(0, batch.example, shares.cpu())
    return totals / expectations[0].draws.count
