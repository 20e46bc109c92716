"""Denoiser: a network together with the process that gives its output a meaning.

A network alone does not say whether it predicts the noise, the image or a velocity, nor in which states; nothing here runs
on one whose meaning was not read. `load_model` reads both from a folder or a hub.
"""

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Real
from torch import Tensor, nn

from diffinf_lib.configuration import Process
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion.conditions import Conditions, condition_names, conditions_of_images
from diffinf_lib.diffusion.draws import DrawBatch
from diffinf_lib.diffusion.identity import config_of, network_identity
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.precision import in_full_precision, matrix_precision
from diffinf_lib.shapes import Condition, ImageBatch, PerDraw, Timesteps


class DrawnWeights(NamedTuple):
    """Weights that were drawn by a seed: their digest, and the seed."""

    digest: str
    seed: int


class Denoiser(nn.Module):
    """A network and its process; called as `model(noisy, timesteps, **conditions)`, it gives the output `[B, C, H, W]`.

    Args:
        network: a diffusers `UNet2DModel`, or any module called as `network(x_t, time)` that returns a tensor, the only one of
            a tuple, or an object with the tensor as `.sample`; in half precision, a copy in float32 is taken (see
            `in_full_precision`). If it returns twice the channels, a variance is predicted beside the target (Nichol &
            Dhariwal 2021): the first half is the output, the other is left alone.
        process: a `Process`, or the diffusers scheduler that describes it; there is no default, for a network does not show
            what it was trained to predict.
        classes: number of classes that a network of one's own is told apart by (`class_labels`); diffusers' say it themselves.
        no_class: the label that stands for no class, where the network was trained to do without (classifier-free guidance,
            Ho & Salimans 2022); draws with `drop_condition` tell it so.
        encoder: what makes the latents of images that the network denoises, by its name in the pipeline; None for pixels.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process | Any,
        *,
        classes: int | None = None,
        no_class: int | None = None,
        encoder: str | None = None,
    ):
        super().__init__()
        require(isinstance(network, nn.Module), f"network: {type(network).__name__} is no torch module; give a network, or a "
                "folder or hub id to di.load_model")  # fmt: skip
        require(
            not isinstance(network, Denoiser),
            "network: it is a Denoiser already; give its .network, or take it as it is",
        )
        self.network, self.process = in_full_precision(network), Process.of(process)
        self.classes = _classes(network) if classes is None else classes
        self.no_class, self.encoder = no_class, encoder
        self.drawn: DrawnWeights | None = None
        require(
            no_class is None or self.classes > 0, f"no_class={no_class}: this network is not told classes; leave it out"
        )
        rows = self.classes + ("num_embeds_ada_norm" in config_of(network))  # a DiT keeps one more, for no class
        require(no_class is None or 0 <= no_class < rows, f"no_class={no_class}: give a label from 0 to {rows - 1}, one that "
                f"the network has a row for")  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self._like.dtype

    @property
    def _like(self) -> Tensor:
        """A tensor of the network's own: its first parameter, else a buffer; a network without any is of float32 on the CPU."""
        own = chain(
            self.network.parameters(), (buffer for buffer in self.network.buffers() if buffer.is_floating_point())
        )
        return next(own, torch.empty(0, dtype=torch.float32, device="cpu"))

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of the conditions that the network must be told."""
        return condition_names(self.classes)

    def conditions_of(self, images: ImageSet) -> dict[str, Condition]:
        """What the network is told of each image, `[N, ...]` by name; see `conditions_of_images`."""
        return conditions_of_images(images, self.classes)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that what is computed with this model depends on of it, as plain values."""
        return network_identity(self.network) | {
            "process": json.loads(json.dumps(asdict(self.process))),
            "classes": [self.classes, self.no_class],
        }

    @property
    def starting_identity(self) -> dict[str, Any]:
        """The same of the model as the start of a training: weights that are still as a seed drew them are told by the seed,
        for processors and versions differ in the last bits of what they draw."""
        identity = self.identity
        if self.drawn is None or identity["weights"] != self.drawn.digest:
            return identity
        return identity | {"weights": f"drawn with seed {self.drawn.seed}"}

    def forward(self, noisy: ImageBatch, timesteps: Timesteps, **conditions: Condition) -> ImageBatch:
        """The output in states `noisy` at timesteps 0..T−1."""
        times = self.process.times
        return self.at_times(noisy, timesteps if times is None else times.to(noisy)[timesteps], **conditions)

    def at_times(self, noisy: ImageBatch, times: Real[Tensor, "B"], **conditions: Condition) -> ImageBatch:
        """The output in states `noisy`, the time as the network knows it, between timesteps as well.

        Raises:
            ConfigurationError: a condition is missing, the network does not take such states, or the output is not shaped as
                they are.
        """
        for name in self.condition_names:
            require(name in conditions, f"{name}: the network is told the class of each image; give images with labels")
        channels, taken = noisy.shape[1], config_of(self.network).get("in_channels")
        require(taken in (None, channels), f"images of {tuple(noisy.shape[1:])}: they have {channels} channel(s), the network "
                f"takes {taken}; give images as it was trained on")  # fmt: skip
        told = {name: conditions[name] for name in self.condition_names}
        try:
            found = self.network(noisy, times, **told)
        except (RuntimeError, ValueError, TypeError) as error:
            line = _why_not_taken(self.network, noisy, told, error)
            if line is None:
                raise
            raise ConfigurationError(line) from error
        output = _output(self.network, found)
        fits = output.ndim == noisy.ndim and (output.shape[0], *output.shape[2:]) == (noisy.shape[0], *noisy.shape[2:])
        require(fits and output.shape[1] in (channels, 2 * channels), f"{type(self.network).__name__}: its output is "
                f"{tuple(output.shape)} for states {tuple(noisy.shape)}; it needs as many channels, or twice as many with a "
                "learned variance")  # fmt: skip
        return output[:, :channels]

    def predict(self, batch: DrawBatch) -> ImageBatch:
        """The output at each draw of a batch."""
        return self(batch.state, batch.timesteps, **batch.conditions)


_ABOUT_SHAPES = re.compile(r"\b(sizes?|shapes?|channels?|dim\w*|divisible)\b", re.IGNORECASE)
"""What torch and diffusers speak of where a tensor does not fit."""


def _why_not_taken(network: nn.Module, noisy: ImageBatch, told: Conditions, error: Exception) -> str | None:
    """In a line why a network failed, if it cannot be called so or cannot take such states; None for reasons of its own."""
    name, reason = type(network).__name__, " ".join(str(error).split())[:200].rstrip(".")
    try:
        inspect.signature(network.forward).bind(noisy, noisy, **told)
    except TypeError as unbound:
        words = ", ".join(["state", "time", *(f"{key}=" for key in told)])
        return f"{name}: it is called as network({words}), which its forward does not take ({unbound}); give a module that does"
    hidden = 0 if told else max((_classes(module) for module in network.modules()), default=0)
    if hidden and "class_labels" in reason:
        return (f"{name}: the network inside is told the class of each image, and {name} hides it; give the network inside, or "
                f"a wrapper that passes class_labels on and di.Denoiser(network, process, classes={hidden})")  # fmt: skip
    if isinstance(error, (TypeError, torch.OutOfMemoryError)) or not _ABOUT_SHAPES.search(reason):
        return None
    config = config_of(network)
    built = [f"{key}={config[key]}" for key in ("in_channels", "sample_size") if key in config]
    made_for = f" (built with {', '.join(built)})" if built else ""
    return (f"images of {tuple(noisy.shape[1:])}: {name} does not take them{made_for}: {reason}; give images as it was trained "
            "on")  # fmt: skip


def _output(network: nn.Module, found: Any) -> Tensor:
    """The tensor of what a network returned: itself, the only one of a tuple, or its `.sample`."""
    if isinstance(found, tuple) and len(found) == 1:
        (found,) = found
    output = found if isinstance(found, Tensor) else getattr(found, "sample", None)
    if isinstance(output, Tensor):
        return output
    what = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
    raise ConfigurationError(f"{type(network).__name__}: it returned {what}, which does not say what the prediction is; let it "
                             "return the tensor alone, or an object with the tensor as .sample")  # fmt: skip


def _classes(network: nn.Module) -> int:
    """Number of classes that a diffusers network is told apart by; 0 where it has none."""
    config = config_of(network)
    counts = (config.get(name) for name in ("num_class_embeds", "num_embeds_ada_norm"))
    return next((int(count) for count in counts if count is not None), 0)


@contextmanager
def evaluating(model: Denoiser) -> Iterator[None]:
    """Eval mode (no dropout) and float32 matrix products; the model's and the caller's settings are put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with matrix_precision("float32", model.device):
            yield
    finally:
        for module, training in modes:
            module.training = training


def require_denoiser(model: Any) -> Denoiser:
    """Refuse a network whose process is not known.

    Raises:
        ConfigurationError: it is no `Denoiser`.
    """
    if isinstance(model, Denoiser):
        return model
    raise ConfigurationError(
        f"model: {type(model).__name__} does not say what it predicts and in which states; give di.Denoiser(network, "
        "scheduler), or di.load_model(folder) for both"
    )


def per_draw_loss(
    model: Denoiser, images: ImageBatch, timesteps: Timesteps, noise: ImageBatch, **conditions: Condition
) -> PerDraw:
    """‖y − y_θ(x_t, t)‖² of each draw, as the mean over the C·H·W output dimensions; `[B]` (Ho et al. 2020, equation 14).

    y is the process's own target: the noise, the image, or a velocity. Dividing by the dimension is the convention of the
    authors' code; curvature and gradients here follow it, and (2/C) I is the curvature in the output for every target.

    Args:
        images: x, `[B, C, H, W]`.
        noise: ε, `[B, C, H, W]`.
    """
    process = model.process
    output = model(process.noisy(images, timesteps, noise), timesteps, **conditions)
    return (process.target_of(images, timesteps, noise) - output).square().flatten(1).mean(1)
