"""Diffusion: the noise schedule, the draws, the loss and what else is taken of the network's output."""

from diffinf_lib.diffusion.batches import check_trajectories, objective_batches
from diffinf_lib.diffusion.draws import (
    DrawBatch,
    DrawConfig,
    Draws,
    check_draws,
    example_draws,
    iterate_draws,
    timestep_probabilities,
)
from diffinf_lib.diffusion.loss import Network, per_draw_loss, predict_noise
from diffinf_lib.diffusion.objectives import Objective, objective_values
from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule, noisy_images

__all__ = [
    "DEFAULT_SCHEDULE",
    "DrawBatch",
    "DrawConfig",
    "Draws",
    "Network",
    "NoiseSchedule",
    "Objective",
    "check_draws",
    "check_trajectories",
    "example_draws",
    "iterate_draws",
    "noisy_images",
    "objective_batches",
    "objective_values",
    "per_draw_loss",
    "predict_noise",
    "timestep_probabilities",
]
