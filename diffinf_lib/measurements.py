"""Measurements: a number that says how well a model likes a query, the same draws for every model.

Common random numbers matter twice: models are compared on the same noise, and influence can take the gradient of the
very function that is measured.
"""

from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, DrawConfig, Network, NoiseSchedule, per_example_loss
from diffinf_lib.errors import require

MEASUREMENT_STAGE = "measurement"
"""The stage under which every measurement's draws are keyed."""


@dataclass(frozen=True)
class MeasurementConfig:
    """What is measured of a query, and over which draws.

    Attributes:
        name: `loss`, the mean-dim squared error averaged over t and ε. Higher means less likely.
        draws: the draws of each query.
    """

    name: Literal["loss"] = "loss"
    draws: DrawConfig = field(default_factory=lambda: DrawConfig(count=256))

    def __post_init__(self) -> None:
        require(self.name == "loss", f"measurement={self.name!r}: give 'loss'")


def measure(
    model: Network,
    images: ImageSet,
    config: MeasurementConfig | None = None,
    *,
    seed: int = 0,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 512,
) -> Float[Tensor, "Q"]:
    """m_q(θ) of every query, `[Q]`, float64.

    The draws of a query are keyed by its id, so models are compared on the same noise and a query's value does not
    depend on which other queries are measured with it.

    Args:
        images: the queries.
        seed: of the draws, not of the model.
    """
    config = config or MeasurementConfig()
    device = next(model.parameters()).device
    return per_example_loss(
        model, images.images.to(device), images.ids, config.draws,
        seed=seed, stage=MEASUREMENT_STAGE, schedule=schedule, batch_size=batch_size,
    )  # fmt: skip
