"""Choice: how many trainings one device makes at a time, by timing a few steps of each number."""

import time
from copy import deepcopy

import torch

from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.settings import own_settings
from diffinf_lib.training.stacked import StackedTrainer
from diffinf_lib.training.stages import deterministic
from diffinf_lib.training.trainer import Trainer

WIDTHS = (1, 4, 8, 16, 32, 64)
WORTH = 0.9
"""A wider stack has to need at most this share of the time, or the narrower one stays."""


@own_settings
def step_seconds(
    model: Denoiser, images: ImageSet, config: TrainingConfig, *, steps: int = 3, widths: tuple[int, ...] = WIDTHS
) -> dict[int, float]:
    """Seconds of one model's step for each number of models trained together, as far as more is faster and fits.

    Args:
        model: one of those that are to be trained, on their device; it is left alone.
        steps: timed steps of each, after two that are not.
    """
    found: dict[int, float] = {}
    for width in widths:
        try:
            found[width] = _timed(model, images, config, width, steps)
        except (torch.OutOfMemoryError, ConfigurationError):  # too many, or a network that does not stack
            break
        if width > 1 and found[width] > WORTH * min(seconds for other, seconds in found.items() if other != width):
            break
    return found


def fastest(seconds: dict[int, float]) -> int:
    """The number of models with the least time; a larger one only where it is worth it."""
    best = min(seconds)
    for width in sorted(seconds):
        best = width if seconds[width] <= WORTH * seconds[best] else best
    return best


def _timed(model: Denoiser, images: ImageSet, config: TrainingConfig, width: int, steps: int) -> float:
    copies = [deepcopy(model).train() for _ in range(width)]
    trainer: Trainer | StackedTrainer
    if width == 1:
        trainer = Trainer(copies[0], images, config, 0)
    else:
        trainer = StackedTrainer(copies[0], config, width)
        for seed, copy in enumerate(copies):
            trainer.enter(copy, images, seed)
    taken = []
    with deterministic(config.precision):
        for _ in range(2 + steps):
            _wait(model)
            started = time.perf_counter()
            trainer.advance()
            _wait(model)
            taken.append(time.perf_counter() - started)
    return min(taken[2:]) / width


def _wait(model: Denoiser) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
