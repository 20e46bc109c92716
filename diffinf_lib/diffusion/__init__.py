"""Diffusion: the noise schedule, the draws and the loss."""

from diffinf_lib.diffusion.draws import (
    DrawBatch,
    DrawConfig,
    Draws,
    check_draws,
    example_draws,
    iterate_draws,
    timestep_probabilities,
)
from diffinf_lib.diffusion.loss import Network, per_draw_loss, per_example_loss, predict_noise
from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule, noisy_images

__all__ = [
    "DEFAULT_SCHEDULE",
    "DrawBatch",
    "DrawConfig",
    "Draws",
    "Network",
    "NoiseSchedule",
    "check_draws",
    "example_draws",
    "iterate_draws",
    "noisy_images",
    "per_draw_loss",
    "per_example_loss",
    "predict_noise",
    "timestep_probabilities",
]
