"""Objective: which function of the network's output at one draw is meant."""

from dataclasses import dataclass
from typing import Literal

from diffinf_lib.errors import require
from diffinf_lib.options import Options

ObjectiveName = Literal[
    "loss", "weighted_loss", "simplified_elbo", "elbo", "square_norm", "mean_output", "l1_norm", "l2_norm", "max_norm",
    "trajectory_log_prob", "journey_loss", "output_probe",
]  # fmt: skip


ON_TRAJECTORIES = ("trajectory_log_prob", "journey_loss")
"""Objectives that need the states a sample went through."""


@dataclass(frozen=True)
class Objective(Options, called={"name": "objective"}):
    """A function of the network's output at one draw.

    Attributes:
        name: `loss`, ‖y − y_θ‖² as the mean over dimensions, y the process's target (Ho et al. 2020, eq. 14);
            `weighted_loss`, w_t times it; `simplified_elbo`, the same with the ELBO's w_t (`elbo_weights`);
            `elbo`, whose mean over uniform t and ε is the ELBO in bits per dimension, all its terms included;
            `square_norm`, `mean_output`, `l1_norm`, `l2_norm`, `max_norm`: ‖ε_θ‖² as a mean over dimensions, the mean of
            ε_θ, and its norms (the output functions of D-TRAK, Zheng et al. 2024);
            `trajectory_log_prob`, whose mean over uniform t is the log-probability of the stored sampling trajectory in bits
            per dimension and step; `journey_loss`, the loss at what the sampler guessed the image to be at step t
            (Georgiev et al. 2023); `output_probe`, ε_θ in a random direction (for DAS).
        loss_weights: of `weighted_loss`: w_t, constant on equal slices of 0..T−1.
        levels: of `elbo`: number of values a pixel can take, evenly spaced on [−1, 1]; None for latents.
    """

    name: ObjectiveName = "loss"
    loss_weights: tuple[float, ...] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.name == "weighted_loss") == bool(self.loss_weights), f"loss_weights={self.loss_weights} with "
                f"objective={self.name!r}: 'weighted_loss' needs a tuple of numbers, one for each slice of t, and nothing else "
                "has one")  # fmt: skip
        require(self.levels is None or self.levels > 1, f"levels={self.levels}: give the number of values of a pixel, at least "
                "2, or None for latents")  # fmt: skip

    @property
    def on_trajectories(self) -> bool:
        """Whether the states of a sample's trajectory are needed."""
        return self.name in ON_TRAJECTORIES
