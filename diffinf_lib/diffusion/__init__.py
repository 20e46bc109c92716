"""Diffusion: the process, the denoiser, the draws, the loss and what else is taken of the network's output."""

from diffinf_lib.diffusion.batches import check_images, check_trajectories
from diffinf_lib.diffusion.denoiser import Denoiser, per_draw_loss, require_denoiser
from diffinf_lib.diffusion.draws import DrawBatch, Draws, example_draws, iterate_draws, timestep_probabilities
from diffinf_lib.diffusion.objectives import objective_of_prediction, objective_values

__all__ = [
    "Denoiser",
    "DrawBatch",
    "Draws",
    "check_images",
    "check_trajectories",
    "example_draws",
    "iterate_draws",
    "objective_of_prediction",
    "objective_values",
    "per_draw_loss",
    "require_denoiser",
    "timestep_probabilities",
]
