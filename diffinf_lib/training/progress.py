"""Progress: one training between its steps, checked, saved and loaded, however its steps are made."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from diffinf_lib.artifacts.arrays import read_part, write_part
from diffinf_lib.artifacts.manifest import file_digests
from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError, first_few
from diffinf_lib.finite import all_finite, first_not_finite, not_finite_at
from diffinf_lib.shapes import PerDraw
from diffinf_lib.training.batches import TrainingBatch, TrainingBatches

State = Mapping[str, Sequence[Shaped[Tensor, "..."]]]
"""What a training goes on from, a tensor a parameter: `parameter`, `average`, and the optimizer's `exp_avg`, `exp_avg_sq`."""

MOMENTS = ("exp_avg", "exp_avg_sq")
EMA = "ema"
"""The folder, beside a checkpoint, of averaged weights that are kept along the way."""


def trainable(model: Denoiser) -> list[torch.nn.Parameter]:
    """The parameters that a training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class Progress(ABC):
    """One training: its model, images, options, seed, a loss for each step made, and digests of the averages kept so far."""

    def __init__(self, model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int):
        self.model, self.images, self.config, self.seed = model, images, config, seed
        self.device = model.device
        self.batches = TrainingBatches(model, images, config, seed)
        self.losses: list[Float[Tensor, ""]] = []
        self.kept: dict[str, str] = {}

    @property
    def step(self) -> int:
        """Steps made."""
        return len(self.losses)

    @property
    @abstractmethod
    def state(self) -> State:
        """The tensors themselves, to be read or written in place."""

    def check_first(self, losses: PerDraw, batch: TrainingBatch) -> None:
        """Refuse a model that gives what is not finite before it was trained at all: no learning rate is to blame."""
        place = first_not_finite(losses)
        if place is not None:
            images, timesteps, noise = (part[place[0] : place[0] + 1] for part in batch[:3])
            state = self.model.process.noisy(images, timesteps, noise)
            image = int(self.images.ids[batch.chosen[place].cpu()])
            raise not_finite_at(self.model, image, images, state, float(timesteps))

    def check(self, losses: list[Float[Tensor, ""]], weights: bool = True) -> None:
        """Refuse to go on, or to keep anything, once a loss or a weight is not finite.

        Raises:
            ConfigurationError: the message names the first such step, and the learning rate as what to lower.
        """
        place = first_not_finite(torch.stack(losses))
        state = self.state if weights else {}
        spoilt = not all(all_finite(t) for name in ("parameter", "average") for t in state.get(name, ()))
        if place is not None or spoilt:
            step = self.step if place is None else self.step - len(losses) + place[0] + 1
            what = "weights that are not finite" if place is None else f"loss={float(losses[place[0]]):g}"
            raise ConfigurationError(f"{what} at step {step}: lower learning_rate={self.config.learning_rate:g}, or mend the "
                                     "network where its output is not finite")  # fmt: skip

    def averaged_model(self) -> Denoiser:
        """A copy of the model with the averaged weights, in eval mode."""
        average = deepcopy(self.model)
        _copy(self.state["average"], trainable(average))
        return average.eval()

    def save(self, path: Path, identity: Any) -> None:
        """Keep all that the next step depends on."""
        tensors = {"losses": torch.stack(self.losses)}
        for name, values in self.state.items():
            kept = f"optimizer.{name}" if name in MOMENTS else name
            tensors |= {f"{kept}.{index}": value for index, value in enumerate(values)}
        made = torch.tensor(float(self.step))
        tensors |= {f"optimizer.step.{index}": made.clone() for index in range(len(self.state["parameter"]))}
        write_part(path, tensors, identity, {"kept": self.kept})

    def load(self, path: Path, identity: Any) -> None:
        """Go on from what `save` kept; from the beginning where that is not there, damaged or of another training, or where
        averaged weights of before it are not those that were kept."""
        found = read_part(path, identity, "the training begins again")
        if found is None:
            return
        tensors, kept = found[0], found[1].get("kept", {})
        present = file_digests(path.parent / EMA) if kept else {}
        damaged = sorted(name for name, digest in kept.items() if present.get(name) != digest)
        if damaged:
            where = f"{path.parent / EMA}: {first_few(damaged)}"
            warnings.warn(f"{where} missing or damaged; the training begins again", stacklevel=2)
            return
        self._restore({name: tensor.to(self.device) for name, tensor in tensors.items()})
        self.kept = dict(kept)

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `save` kept."""
        self.losses = list(tensors["losses"])
        for name, values in self.state.items():
            kept = f"optimizer.{name}" if name in MOMENTS else name
            _copy([tensors[f"{kept}.{index}"] for index in range(len(values))], values)


@torch.no_grad()
def _copy(source: Sequence[Shaped[Tensor, "..."]], target: Sequence[Shaped[Tensor, "..."]]) -> None:
    for to, values in zip(target, source, strict=True):
        to.copy_(values)
