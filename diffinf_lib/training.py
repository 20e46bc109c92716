"""Training: a diffusion model from images, the same bits whether or not the run was interrupted.

Everything random in step s (which images, which draws, flips, dropout) is a function of (seed, s), so a checkpoint needs
no generator state and the step after a resume is the step that would have been.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts.arrays import (
    read_arrays,
    read_tensor_metadata,
    read_tensors,
    tensor_digest,
    write_arrays,
    write_tensors,
)
from diffinf_lib.artifacts.comparison import check_same, plain
from diffinf_lib.artifacts.files import ensure_writable
from diffinf_lib.artifacts.manifest import stage
from diffinf_lib.configuration import Precision, TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.devices import usable_device
from diffinf_lib.diffusion import Denoiser, per_draw_loss, require_denoiser
from diffinf_lib.diffusion.conditions import drop_conditions
from diffinf_lib.diffusion.draws import independent_draws
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.finite import all_finite, first_not_finite, not_finite_at
from diffinf_lib.loading import check_savable, load_model, save_model
from diffinf_lib.precision import product_rounding, require_full_precision
from diffinf_lib.randomness import keyed_generator, keyed_seed
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, PerDraw, Timesteps

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "losses.npz"


@dataclass
class TrainingResult:
    """A trained model: `model` holds the averaged (EMA) weights in eval mode; `losses` is one batch loss a step."""

    model: Denoiser
    losses: Float[np.ndarray, "steps"]  # noqa: F821


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """The share of the full learning rate used in `step` (counted from 0)."""
    warmup = int(config.warmup_fraction * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    if config.lr_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def batch_indices(step: int, count: int, batch_size: int, seed: int) -> Int[Tensor, "{batch_size}"]:  # noqa: F821
    """The positions of the images of one step, `[B]`: consecutive pieces of one shuffle per epoch."""
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = positions // count, positions % count
    shuffles = {
        int(e): torch.randperm(count, generator=keyed_generator("shuffle", seed, int(e))) for e in epochs.unique()
    }
    return torch.stack([shuffles[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)])


class _Trainer:
    """The state of one training run: network, average, optimizer, step."""

    def __init__(self, model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int):
        self.model, self.images, self.config, self.seed = model, images, config, seed
        self.device = model.device
        self.pixels, self.told = images.images.to(self.device, model.dtype), model.conditions_of(images)
        self.parameters = _trainable(model)
        fused: dict[str, Any] = {"fused": True} if self.device.type in ("cuda", "cpu") else {}
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay, **fused
        )
        from diffusers.training_utils import EMAModel

        self.ema = EMAModel(
            self.parameters, decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power, foreach=True
        )
        self.network: Any = torch.compile(model) if config.compile else model
        self.losses: list[Float[Tensor, ""]] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    def advance(self) -> None:
        """One optimizer step."""
        step, config = self.step, self.config
        index = batch_indices(step, len(self.images), config.batch_size, self.seed).to(self.device)
        batch, told = self.pixels[index], {name: values.to(self.device)[index] for name, values in self.told.items()}
        generator = keyed_generator("training", self.seed, step)
        drawn = independent_draws(
            len(batch), self.images.shape, self.model.process, generator, drop_condition=config.drop_condition
        )
        timesteps, noise = drawn.timesteps.to(self.device), drawn.noise.to(self.device)
        told = drop_conditions(told, drawn.dropped, self.model.no_class)
        if config.horizontal_flip:
            flip = (torch.rand(len(batch), generator=generator) < 0.5).to(self.device)
            batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
        torch.manual_seed(keyed_seed("dropout", self.seed, step))
        with torch.enable_grad(), torch.autocast(self.device.type, torch.bfloat16, config.precision == "bfloat16"):
            losses = per_draw_loss(self.network, batch, timesteps, noise, **told)
            loss = losses.mean()
        if step == 0:
            self._check_first(losses.detach(), index, batch, timesteps, noise)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * learning_rate_factor(step, config)
        self.optimizer.step()
        self.ema.step(self.parameters)
        self.losses.append(loss.detach())

    def _check_first(
        self, losses: PerDraw, index: Tensor, batch: ImageBatch, timesteps: Timesteps, noise: ImageBatch
    ) -> None:
        """Refuse a model that gives what is not finite before it was trained at all: no learning rate is to blame."""
        place = first_not_finite(losses)
        if place is not None:
            row = slice(place[0], place[0] + 1)
            state = self.model.process.noisy(batch[row], timesteps[row], noise[row])
            image = int(self.images.ids[index[place].cpu()])
            raise not_finite_at(self.model, image, batch[row], state, float(timesteps[place]))

    def check(self, losses: list[Float[Tensor, ""]], weights: bool = True) -> None:
        """Refuse to go on, or to keep anything, once a loss or a weight is not finite.

        Raises:
            ConfigurationError: the message names the first such step, and the learning rate as what to lower.
        """
        place = first_not_finite(torch.stack(losses))
        spoilt = weights and not all(all_finite(t) for t in (*self.parameters, *self.ema.shadow_params))
        if place is not None or spoilt:
            step = self.step if place is None else self.step - len(losses) + place[0] + 1
            what = "weights that are not finite" if place is None else f"loss={float(losses[place[0]]):g}"
            raise ConfigurationError(f"{what} at step {step}: lower learning_rate={self.config.learning_rate:g}, or mend the "
                                     "network where its output is not finite")  # fmt: skip

    def averaged_model(self) -> Denoiser:
        """A copy of the model with the averaged weights, in eval mode."""
        average = deepcopy(self.model)
        self.ema.copy_to(_trainable(average))
        return average.eval()

    def save(self, path: Path, identity: Any) -> None:
        tensors = {"losses": torch.stack(self.losses)}
        for index, parameter in enumerate(self.parameters):
            tensors[f"parameter.{index}"] = parameter
            tensors[f"average.{index}"] = self.ema.shadow_params[index]
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{index}"] = value
        write_tensors(path, tensors, metadata=identity)

    def load(self, path: Path, identity: Any) -> None:
        check_same(read_tensor_metadata(path), identity, path)
        tensors = {name: tensor.to(self.device) for name, tensor in read_tensors(path).items()}
        self.losses = list(tensors["losses"])
        self.ema.optimization_step = self.step
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{index}"])
                self.ema.shadow_params[index].copy_(tensors[f"average.{index}"])
                keys = ("exp_avg", "exp_avg_sq", "step")
                self.optimizer.state[parameter] = {key: tensors[f"optimizer.{key}.{index}"] for key in keys}


def _trainable(model: Denoiser) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def training_identity(model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int) -> dict[str, Any]:
    """Everything the trained weights depend on, as plain values."""
    told = model.conditions_of(images)
    frozen = [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]
    return ({"frozen": frozen} if frozen else {}) | {
        "training": plain(config),
        "seed": seed,
        "initial_model": model.starting_identity,
        "images": tensor_digest(images.images, images.ids, *told.values()),
    }


@own_settings
def train(
    model: Denoiser,
    images: ImageSet,
    config: TrainingConfig,
    *,
    seed: int = 0,
    out: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    force: bool = False,
) -> TrainingResult:
    """Train `model` by the loss of its own target (Ho et al. 2020, algorithm 1) and return its averaged weights.

    The model passed in is the starting point and is left at the last raw weights; without `out` nothing is written.
    With `out`, the folder becomes a pipeline folder of the averaged model, with `losses.npz`, `ema/step-…/` for each step of
    `keep_ema_at`, and a manifest. A finished folder is read back instead of trained again; a killed run goes on from its last
    checkpoint and ends with the same bits.

    Args:
        out: folder of this stage.
        device: where to train; default: where the model is.
        force: redo even if the folder holds something else.

    Raises:
        ArtifactError: `out` holds a run of another configuration.
        ConfigurationError: no images, labels that the network does not know, nothing to train, weights in half precision,
            something that is not finite, or `out` cannot be written or could not give the network back.
    """
    require_full_precision(require_denoiser(model))
    require(len(images) > 0, "training needs at least one image; the set given is empty")
    broken = first_not_finite(images.images)
    if broken is not None:
        raise ConfigurationError(f"image {int(images.ids[broken[0]])}: some of its pixels are not finite; mend it or leave it "
                                 "out")  # fmt: skip
    require(config.drop_condition == 0 or model.no_class is not None, f"drop_condition={config.drop_condition}: this network "
            "has no label for no class; give di.Denoiser(network, process, no_class=...)")  # fmt: skip
    require(
        bool(_trainable(model)),
        "training: no parameter of the network is trainable; unfreeze some with requires_grad_(True)",
    )
    device = model.device if device is None else usable_device(device)
    identity = training_identity(model, images, config, seed)
    if out is None:
        with _deterministic(config.precision):
            return _run(model, images, config, seed, None, identity, device, progress)
    check_savable(model)
    folder = ensure_writable(out)
    with stage(folder, identity, name="model", force=force) as needed, _deterministic(config.precision):
        if needed:
            _run(model, images, config, seed, folder, identity, device, progress)
    return load_training(folder, device, model.no_class)


@own_settings
def load_training(
    folder: Path | str, device: torch.device | str | None = None, no_class: int | None = None
) -> TrainingResult:
    """Read what `train` left in a folder."""
    return TrainingResult(
        load_model(folder, device=device or "cpu", no_class=no_class), read_arrays(Path(folder) / LOSSES)["losses"]
    )


@contextmanager
def _deterministic(precision: Precision) -> Iterator[None]:
    """Deterministic convolutions at the asked precision; the caller's random state and flags are left as they were."""
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(), flags, product_rounding(precision):
        yield


def _run(
    model: Denoiser,
    images: ImageSet,
    config: TrainingConfig,
    seed: int,
    folder: Path | None,
    identity: Any,
    device: torch.device | str,
    progress: bool,
) -> TrainingResult:
    trainer = _Trainer(model.to(device).train(), images, config, seed)
    checkpoint = folder / CHECKPOINT if folder else None
    if checkpoint and checkpoint.exists():
        trainer.load(checkpoint, identity)
    bar = tqdm(total=config.steps, initial=trainer.step, desc="train", unit="step", disable=not progress)
    while trainer.step < config.steps:
        trainer.advance()
        _after_step(trainer, folder, identity, bar)
    bar.close()
    trainer.check(trainer.losses)
    result = TrainingResult(trainer.averaged_model(), torch.stack(trainer.losses).float().cpu().numpy())
    if folder and checkpoint:
        save_model(result.model, folder)
        write_arrays(folder / LOSSES, losses=result.losses)
        checkpoint.unlink(missing_ok=True)
    return result


def _after_step(trainer: _Trainer, folder: Path | None, identity: Any, bar: Any) -> None:
    step, config = trainer.step, trainer.config
    bar.update()
    if step % 50 == 0:
        recent = torch.stack(trainer.losses[-50:]).mean().item()
        bar.set_postfix(loss=f"{recent:.4f}")
        trainer.check(trainer.losses[-50:], weights=False)
    if folder and step in config.keep_ema_at:
        trainer.check(trainer.losses)
        save_model(trainer.averaged_model(), folder / "ema" / f"step-{step:06d}")
    if folder and step % config.checkpoint_every == 0 and step < config.steps:
        trainer.check(trainer.losses)
        trainer.save(folder / CHECKPOINT, identity)
