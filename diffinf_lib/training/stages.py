"""Stages: a training in a folder of its own, which can be killed and asked for again."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from diffinf_lib.artifacts.arrays import read_arrays, tensor_digest, write_arrays
from diffinf_lib.artifacts.comparison import plain
from diffinf_lib.artifacts.files import ensure_writable
from diffinf_lib.artifacts.manifest import file_digests, stage
from diffinf_lib.configuration import Precision, TrainingConfig
from diffinf_lib.data import ImageSet, Latents
from diffinf_lib.devices import usable_device
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.finite import first_not_finite
from diffinf_lib.loading import check_savable, load_model, save_model
from diffinf_lib.precision import product_rounding, require_full_precision
from diffinf_lib.settings import own_settings
from diffinf_lib.training.progress import EMA, Progress, trainable
from diffinf_lib.training.trainer import Trainer

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "losses.npz"


@dataclass
class TrainingResult:
    """A trained model: `model` holds the averaged (EMA) weights in eval mode; `losses` is one batch loss a step."""

    model: Denoiser
    losses: Float[np.ndarray, "steps"]  # noqa: F821


def training_identity(model: Denoiser, images: ImageSet, config: TrainingConfig, seed: int) -> dict[str, Any]:
    """Everything the trained weights depend on, as plain values."""
    seen = [images.images, images.ids, *model.conditions_of(images).values()]
    seen += images.parts[1:] if isinstance(images, Latents) else []
    frozen = [name for name, parameter in model.network.named_parameters() if not parameter.requires_grad]
    return ({"frozen": frozen} if frozen else {}) | {
        "training": plain(config),
        "seed": seed,
        "initial_model": model.starting_identity,
        "images": tensor_digest(*seen),
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
    check_training(model, images, config)
    device = model.device if device is None else usable_device(device)
    identity = training_identity(model, images, config, seed)
    if out is None:
        with deterministic(config.precision):
            return _run(model, images, config, seed, None, identity, device, progress)
    check_savable(model)
    folder = ensure_writable(out)
    begun = stage(folder, identity, name="model", force=force, how={"together": 1})
    with begun as needed, deterministic(config.precision):
        if needed:
            _run(model, images, config, seed, folder, identity, device, progress)
    return load_training(folder, device, model.no_class)


def check_training(model: Denoiser, images: ImageSet, config: TrainingConfig) -> None:
    """Refuse what cannot be trained, before any work; see `train`."""
    require_full_precision(require_denoiser(model))
    require(len(images) > 0, "training needs at least one image; the set given is empty")
    broken = first_not_finite(images.images)
    if broken is not None:
        raise ConfigurationError(f"image {int(images.ids[broken[0]])}: some of its pixels are not finite; mend it or leave it "
                                 "out")  # fmt: skip
    require(config.drop_condition == 0 or model.no_class is not None, f"drop_condition={config.drop_condition}: this network "
            "has no label for no class; give di.Denoiser(network, process, no_class=...)")  # fmt: skip
    require(
        bool(trainable(model)),
        "training: no parameter of the network is trainable; unfreeze some with requires_grad_(True)",
    )


@own_settings
def load_training(
    folder: Path | str, device: torch.device | str | None = None, no_class: int | None = None
) -> TrainingResult:
    """Read what `train` left in a folder."""
    return TrainingResult(
        load_model(folder, device=device or "cpu", no_class=no_class), read_arrays(Path(folder) / LOSSES)["losses"]
    )


@contextmanager
def deterministic(precision: Precision) -> Iterator[None]:
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
    trainer = Trainer(model.to(device).train(), images, config, seed)
    checkpoint = folder / CHECKPOINT if folder else None
    if checkpoint:
        trainer.load(checkpoint, identity)
    bar = tqdm(total=config.steps, initial=trainer.step, desc="train", unit="step", disable=not progress)
    while trainer.step < config.steps:
        trainer.advance()
        after_step(trainer, folder, identity, bar)
    bar.close()
    return finished(trainer, folder)


def after_step(training: Progress, folder: Path | None, identity: Any, bar: Any) -> None:
    """Whatever is to be said, checked and kept between two steps."""
    step, config = training.step, training.config
    bar.update()
    if step % 50 == 0:
        recent = torch.stack(training.losses[-50:]).mean().item()
        bar.set_postfix(loss=f"{recent:.4f}")
        training.check(training.losses[-50:], weights=False)
    if folder and step in config.keep_ema_at:
        training.check(training.losses)
        kept = folder / EMA / f"step-{step:06d}"
        save_model(training.averaged_model(), kept)
        training.kept |= {f"{kept.name}/{name}": digest for name, digest in file_digests(kept).items()}
    if folder and step % config.checkpoint_every == 0 and step < config.steps:
        training.check(training.losses)
        training.save(folder / CHECKPOINT, identity)


def finished(training: Progress, folder: Path | None) -> TrainingResult:
    """The result after the last step, kept in `folder`."""
    training.check(training.losses)
    result = TrainingResult(training.averaged_model(), torch.stack(training.losses).float().cpu().numpy())
    if folder:
        save_model(result.model, folder)
        write_arrays(folder / LOSSES, losses=result.losses)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return result
