"""Diffusion: the process, the denoiser, the draws, the loss and what else is taken of the network's output."""

from diffinf_lib.diffusion.batches import check_trajectories, conditions_of
from diffinf_lib.diffusion.denoiser import Denoiser, per_draw_loss, require_denoiser
from diffinf_lib.diffusion.draws import (
    DrawBatch,
    DrawConfig,
    Draws,
    check_draws,
    example_draws,
    iterate_draws,
    timestep_probabilities,
)
from diffinf_lib.diffusion.expectation import TRAIN_STAGE, Expectation
from diffinf_lib.diffusion.objectives import Objective, objective_values
from diffinf_lib.diffusion.process import Process, SamplerName

__all__ = [
    "TRAIN_STAGE",
    "Denoiser",
    "DrawBatch",
    "DrawConfig",
    "Draws",
    "Expectation",
    "Objective",
    "Process",
    "SamplerName",
    "check_draws",
    "check_trajectories",
    "conditions_of",
    "example_draws",
    "iterate_draws",
    "objective_values",
    "per_draw_loss",
    "require_denoiser",
    "timestep_probabilities",
]
