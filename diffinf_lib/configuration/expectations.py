"""Expectations: means of an objective over draws, written down: what gradients are taken of, and what measurements are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffinf_lib.configuration.draws import DrawConfig
from diffinf_lib.configuration.objectives import Objective
from diffinf_lib.errors import require
from diffinf_lib.options import Options

if TYPE_CHECKING:
    from diffinf_lib.data import ImageSet
    from diffinf_lib.diffusion.denoiser import Denoiser
    from diffinf_lib.diffusion.draws import DrawBatch

TRAIN_PURPOSE = "train-gradients"
"""The purpose under which the draws of training gradients are keyed."""

MEASUREMENT_PURPOSE = "measurement"
"""The purpose under which every measurement's draws are keyed."""

QUERY_PURPOSE = "query-gradients"
"""The purpose under which draws of query gradients are keyed, where they are not the measurement's own."""


@dataclass(frozen=True)
class Expectation(Options):
    """The mean of an objective over each image's draws; by default the training loss.

    Attributes:
        draws: the draws of each image.
        purpose: what the draws are for; they are keyed by it, so different purposes have independent draws. The library's own:
            `train-gradients`, `measurement` (query gradients too), `query-gradients` (where queries are given other draws),
            `factors` and `corrections` (the passes of a curvature).
        seed: of the draws.
        timestep_range: take only the draws with low ≤ t < high, still dividing by all: the expectations of a partition of 0..T
            add up to the whole. None takes all.
        objective: what is averaged.
    """

    draws: DrawConfig = DrawConfig(250)
    purpose: str = TRAIN_PURPOSE
    seed: int = 0
    timestep_range: tuple[int, int] | None = None
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        super().__post_init__()
        low_high = self.timestep_range
        require(low_high is None or 0 <= low_high[0] < low_high[1], f"timestep_range={low_high}: give (low, high) with "
                "0 <= low < high")  # fmt: skip

    def batches(self, model: "Denoiser", images: "ImageSet", batch_size: int = 512) -> "Iterator[DrawBatch]":
        """All draws of all images, as the model's process makes them, ready for the objective; in its type, on its device.

        The value at an image is the sum over its draws of weight · objective, divided by `draws.count`.

        Args:
            batch_size: draws a batch; batches of which `timestep_range` leaves nothing are left out.

        Raises:
            ConfigurationError: the objective needs the states of trajectories, and `images` has none; or the network needs
                labels, and they are none of its classes.
        """
        from diffinf_lib.diffusion.batches import expectation_batches  # it loads torch

        return expectation_batches(self, model, images, batch_size)
