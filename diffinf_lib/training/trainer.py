"""Trainer: the steps of one training by itself, with torch's optimizer and diffusers' average of the weights."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, per_draw_loss
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.training.progress import MOMENTS, Progress, State, trainable
from diffinf_lib.training.schedule import learning_rate_factor


class Trainer(Progress):
    """One training by itself; the model's own parameters are the raw weights."""

    def __init__(self, model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int):
        super().__init__(model, images, config, seed)
        self.parameters = trainable(model)
        fused: dict[str, Any] = {"fused": True} if self.device.type in ("cuda", "cpu") else {}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **fused
        )
        from diffusers.training_utils import EMAModel

        self.ema = EMAModel(
            self.parameters, decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power, foreach=True
        )
        self.network = _compiled(model) if config.compile else model

    def advance(self) -> None:
        """One optimizer step."""
        step, config = self.step, self.config
        batch = self.batches.of_step(step)
        torch.manual_seed(keyed_seed("dropout", self.seed, step))
        with torch.enable_grad(), torch.autocast(self.device.type, torch.bfloat16, config.precision == "bfloat16"):
            losses = per_draw_loss(self.network, *batch[:3], **batch.conditions)
            loss = losses.mean()
        if step == 0:
            self.check_first(losses.detach(), batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        self.optimizer.step()
        self.ema.step(self.parameters)
        self.losses.append(loss.detach())

    @property
    def state(self) -> State:
        return {"parameter": self.parameters, "average": self.ema.shadow_params} | {
            key: [self.optimizer.state[parameter][key] for parameter in self.parameters] for key in MOMENTS
        }

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        for parameter in self.parameters:  # torch makes them at the first step
            empty = {key: torch.zeros_like(parameter) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.zeros((), device=self.device), **empty}
        super()._restore(tensors)
        self.ema.optimization_step = self.step
        for parameter in self.parameters:
            self.optimizer.state[parameter]["step"].fill_(self.step)


def _compiled(model: Denoiser) -> Denoiser:
    """The same model, of the same parameters and modules, that compiles itself when it is called; `model` itself does not."""
    shallow = copy(model)
    shallow.compile()
    return shallow
