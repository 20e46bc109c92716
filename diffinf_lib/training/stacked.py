"""Stacked trainings: one step for several models at once, each at a step of its own.

A stack has places. Each place holds one training with its images, draws, dropout, learning rate and average; a finished one
makes room for the next. The stack always has the same width, whatever is in it, so that a model's numbers do not depend on
its company. They agree with those of the model trained by itself to rounding: a checkpoint of either goes on as the other.

Weights, moments and averages are one row a model, so that the optimizer takes a few operations for all of them.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.stack import DropoutCall, ModelStack, dropout_masks
from diffinf_lib.shapes import ImageBatch, Timesteps
from diffinf_lib.training.batches import TrainingBatch
from diffinf_lib.training.progress import Progress, State, trainable
from diffinf_lib.training.schedule import average_decay, learning_rate_factor

BETAS, EPS = (0.9, 0.999), 1e-8
"""AdamW's constants, torch's own defaults."""


class Place(Progress):
    """One training in a stack, which has its tensors."""

    def __init__(
        self, stack: "StackedTrainer", place: int, model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int
    ):
        super().__init__(model, images, config, seed)
        self.stack, self.place = stack, place

    @property
    def state(self) -> State:
        rows = self.stack.rows
        return {name: list(self.stack.models.pieces(row[self.place]).values()) for name, row in rows.items()}

    def leave(self) -> None:
        """Free the place; the model passed in is left at its last raw weights, as `Trainer` leaves it."""
        with torch.no_grad():
            for parameter, value in zip(trainable(self.model), self.state["parameter"], strict=True):
                parameter.copy_(value)
        self.stack.taken[self.place] = None


class StackedTrainer:
    """The places of several trainings of one network with the same options.

    Args:
        model: one of the models to be trained, in training mode, on the device.
        places: how many are trained at once.
    """

    def __init__(self, model: Denoiser, config: TrainingConfig, places: int):
        self.models, self.config = ModelStack(model, places), config
        weights = self.models.row(model).expand(places, -1).clone()
        self.rows = {"parameter": weights, "average": weights.clone()}
        self.rows |= {name: torch.zeros_like(weights) for name in ("exp_avg", "exp_avg_sq")}
        self.taken: list[Place | None] = [None] * places
        self._dropouts: list[DropoutCall] | None = None

    def enter(self, model: Denoiser, images: ImageSet, seed: int) -> Place:
        """Begin another training in a free place."""
        place = self.taken.index(None)
        row = self.models.put(place, model)
        for name, values in self.rows.items():
            values[place] = row if name in ("parameter", "average") else 0
        entered = self.taken[place] = Place(self, place, model, images, self.config, seed)
        return entered

    def advance(self) -> None:
        """One optimizer step of every training."""
        running = [place for place in self.taken if place is not None]
        batches = [one.batches.of_step(one.step) for one in running]
        masks = self._masks(running, batches[0])
        factors = self._factors(running)
        # a free place computes along with a copy of another's images and a learning rate of 0; nobody reads it
        held = {one.place: number for number, one in enumerate(running)}
        order = [held.get(place, 0) for place in range(len(self.taken))]
        losses = self._step([batches[number] for number in order], [masks[number] for number in order], factors)
        for one, batch in zip(running, batches, strict=True):
            if one.step == 0:
                one.check_first(losses[one.place], batch)
            one.losses.append(losses[one.place].mean())

    def _masks(self, running: Sequence[Place], batch: TrainingBatch) -> list[list[Tensor]]:
        if self._dropouts is None:
            with self._autocast():
                self._dropouts = self.models.dropouts(batch.images, batch.timesteps, batch.conditions)
        return [dropout_masks(self._dropouts, one.seed, one.step, one.device) for one in running]

    def _autocast(self) -> torch.autocast:
        device = self.rows["parameter"].device.type
        return torch.autocast(device, torch.bfloat16, self.config.precision == "bfloat16", cache_enabled=False)

    def _factors(self, running: Sequence[Place]) -> Float[Tensor, "4 G 1"]:
        """Learning rate, bias corrections of both moments, and 1 − decay of the average, of each place."""
        factors = torch.tensor([[0.0], [1.0], [1.0], [0.0]], dtype=torch.float64).repeat(1, len(self.taken))
        for one in running:
            rate = self.config.learning_rate * learning_rate_factor(one.step, self.config)
            corrections = [1 - beta ** (one.step + 1) for beta in BETAS]
            values = [rate, *corrections, 1 - average_decay(one.step, self.config)]
            factors[:, one.place] = torch.tensor(values, dtype=torch.float64)
        return factors.to(self.rows["parameter"]).unsqueeze(2)

    def _step(
        self, batches: Sequence[TrainingBatch], masks: Sequence[Sequence[Tensor]], factors: Float[Tensor, "4 G 1"]
    ) -> Float[Tensor, "G B"]:
        """Losses of each draw, their gradients, and the step."""
        images, timesteps, noise = (torch.stack(part) for part in list(zip(*batches, strict=True))[:3])
        told = {name: torch.stack([batch.conditions[name] for batch in batches]) for name in batches[0].conditions}
        weights = self.rows["parameter"].requires_grad_()
        with torch.enable_grad(), self._autocast():
            losses = self._losses(
                weights, images, timesteps, noise, told, [torch.stack(m) for m in zip(*masks, strict=True)]
            )
            (gradient,) = torch.autograd.grad(losses.mean(1).sum(), weights)
        weights.requires_grad_(False)
        self._update(gradient, *factors)
        return losses.detach()

    def _losses(
        self,
        weights: Float[Tensor, "G P"],
        images: Float[Tensor, "G B C H W"],
        timesteps: Int[Tensor, "G B"],
        noise: Float[Tensor, "G B C H W"],
        told: dict[str, Tensor],
        masks: Sequence[Tensor],
    ) -> Float[Tensor, "G B"]:
        """`per_draw_loss` of every model."""
        process = self.models.model.process
        flat: tuple[ImageBatch, Timesteps, ImageBatch] = (
            images.flatten(0, 1),
            timesteps.flatten(),
            noise.flatten(0, 1),
        )
        noisy, target = (made(*flat).unflatten(0, images.shape[:2]) for made in (process.noisy, process.target_of))
        output = self.models.outputs(weights, noisy, timesteps, told, masks)
        return (target - output).square().flatten(2).mean(2)

    @torch.no_grad()
    def _update(
        self,
        gradient: Float[Tensor, "G P"],
        rate: Float[Tensor, "G 1"],
        first_correction: Float[Tensor, "G 1"],
        second_correction: Float[Tensor, "G 1"],
        renewed: Float[Tensor, "G 1"],
    ) -> None:
        """Clipping, AdamW (Loshchilov & Hutter 2019) and the average, as torch and diffusers compute them."""
        weights, average, first, second = self.rows.values()
        norm = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient = gradient * (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1)
        first.lerp_(gradient, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        weights.mul_(1 - rate * self.config.weight_decay)
        weights.sub_(rate / first_correction * first / ((second / second_correction).sqrt_() + EPS))
        average.lerp_(weights, renewed)
