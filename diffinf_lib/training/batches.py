"""Batches: the images, draws and conditions of each step of a training, a function of (seed, step).

They are drawn on the CPU, where the same seed gives the same numbers whatever the device. For a GPU the next step is drawn
beside the present one, from pinned memory, so that the device does not wait.
"""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.conditions import drop_conditions
from diffinf_lib.diffusion.draws import independent_draws
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Condition, ImageBatch, Timesteps
from diffinf_lib.training.schedule import Order


class TrainingBatch(NamedTuple):
    """What one step of a training sees, one row an image, on the device; `chosen` is its place among the images."""

    images: ImageBatch
    timesteps: Timesteps
    noise: ImageBatch
    conditions: Mapping[str, Condition]
    chosen: Int[Tensor, "B"]


class _Drawn(NamedTuple):
    """What a step draws, still on the CPU."""

    images: ImageBatch
    timesteps: Timesteps
    noise: ImageBatch
    dropped: Bool[Tensor, "B"]
    chosen: Int[Tensor, "B"]


class TrainingBatches:
    """The batches of one training, by step."""

    def __init__(self, model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int):
        self.model, self.images, self.config, self.seed = model, images, config, seed
        self.device = model.device
        told: dict[str, Shaped[Tensor, "N ..."]] = model.conditions_of(images)
        self.told = {name: values.to(self.device) for name, values in told.items()}
        self._order = Order(len(images), config.batch_size, seed)
        self._ahead: dict[int, Future[_Drawn]] = {}
        self._worker = ThreadPoolExecutor(1) if self.device.type == "cuda" else None

    def of_step(self, step: int) -> TrainingBatch:
        """What the step sees."""
        images, timesteps, noise, dropped, chosen = (self._moved(part) for part in self._drawn(step))
        told = {name: values[chosen] for name, values in self.told.items()}
        told = drop_conditions(told, dropped, self.model.no_class)
        return TrainingBatch(images.to(self.model.dtype), timesteps, noise, told, chosen)

    def _moved(self, part: Tensor) -> Tensor:
        return part.to(self.device, non_blocking=self._worker is not None)

    def _drawn(self, step: int) -> _Drawn:
        """What the step draws; the next step is begun where another thread can make it meanwhile."""
        if self._worker is None:
            return self._draw(step)
        made = self._ahead.pop(step, None) or self._worker.submit(self._pinned, step)
        self._ahead = {step + 1: self._worker.submit(self._pinned, step + 1)}
        return made.result()

    @own_settings
    def _pinned(self, step: int) -> _Drawn:
        return _Drawn(*(part.pin_memory() for part in self._draw(step)))

    def _draw(self, step: int) -> _Drawn:
        config, generator = self.config, keyed_generator("training", self.seed, step)
        chosen, size = self._order.of_step(step), config.batch_size
        drawn = independent_draws(
            size, self.images.shape, self.model.process, generator, drop_condition=config.drop_condition
        )
        mirror = torch.rand(size, generator=generator) < 0.5 if config.horizontal_flip else None
        images = self.images.for_training(chosen, mirror, generator)
        return _Drawn(images, drawn.timesteps, drawn.noise, drawn.dropped, chosen)
