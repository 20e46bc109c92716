"""Schedule: what a step of a training takes by its number alone: its images, the learning rate, the decay of the average."""

import math

import torch
from jaxtyping import Int
from torch import Tensor

from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.randomness import keyed_generator


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """The share of the full learning rate used in `step` (counted from 0)."""
    warmup = int(config.warmup_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def average_decay(step: int, config: TrainingConfig) -> float:
    """The share of the running average that `step` (counted from 0) leaves: min(max, 1 − (1 + s)^−power), as in diffusers."""
    return 0.0 if step == 0 else max(0.0, min(config.ema_max_decay, 1 - (1 + step) ** -config.ema_power))


class Order:
    """Which of `count` images each step is shown: consecutive pieces of one shuffle per epoch, which is made once."""

    def __init__(self, count: int, batch_size: int, seed: int):
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._shuffles: dict[int, Tensor] = {}

    def of_step(self, step: int) -> Int[Tensor, "B"]:
        """Their positions, `[B]`."""
        start = step * self.batch_size
        epochs = range(start // self.count, (start + self.batch_size - 1) // self.count + 1)
        self._shuffles = {epoch: self._shuffle(epoch) for epoch in epochs}
        shuffled = torch.cat([*self._shuffles.values()])
        return shuffled[start - epochs[0] * self.count :][: self.batch_size]

    def _shuffle(self, epoch: int) -> Tensor:
        known = self._shuffles.get(epoch)
        generator = keyed_generator("shuffle", self.seed, epoch)
        return torch.randperm(self.count, generator=generator) if known is None else known


def batch_indices(step: int, count: int, batch_size: int, seed: int) -> Int[Tensor, "{batch_size}"]:  # noqa: F821
    """The positions of the images of one step, `[B]`; see `Order`."""
    return Order(count, batch_size, seed).of_step(step)
