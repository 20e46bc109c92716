"""Denoiser: a network together with the process that gives its output a meaning.

A network alone does not say whether it predicts the noise, the image or a velocity, nor in which states; nothing here runs
on one whose meaning was not read. `load_model` reads both from a folder or a hub.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from diffinf_lib.artifacts.files import tensor_digest
from diffinf_lib.configuration import Process
from diffinf_lib.diffusion.draws import DrawBatch
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.precision import in_full_precision, matrix_precision
from diffinf_lib.shapes import Images, PerDraw, Timesteps

Conditions = Mapping[str, Tensor]
"""What a network is told besides state and time, one row a draw: `class_labels`."""


class Denoiser(nn.Module):
    """A network and its process; called as `model(noisy, timesteps, **conditions)`, it gives the output `[B, C, H, W]`.

    Args:
        network: a diffusers `UNet2DModel`, or any module called as `network(x_t, time)` that returns a tensor, or an object
            with the tensor as `.sample`; in half precision, a copy in float32 is taken (see `in_full_precision`). If it
            returns twice the channels, a variance is predicted beside the target (Nichol & Dhariwal 2021): the first half is
            the output, the other is left alone.
        process: a `Process`, or the diffusers scheduler that describes it.
        classes: number of classes that a network of one's own is told apart by (`class_labels`); diffusers' say it themselves.
        no_class: the label that stands for no class, where the network was trained to do without (classifier-free guidance,
            Ho & Salimans 2022); draws with `drop_condition` tell it so.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Process | Any = Process(),
        *,
        classes: int | None = None,
        no_class: int | None = None,
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
        self.no_class = no_class
        rows = self.classes + ("num_embeds_ada_norm" in _config(network))  # a DiT keeps one more, for no class
        require(no_class is None or 0 <= no_class < rows, f"no_class={no_class}: give a label from 0 to {rows - 1}, one that "
                f"the network has a row for")  # fmt: skip

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return next(self.network.parameters()).dtype

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the conditions that the network must be told."""
        return () if self.classes == 0 else ("class_labels",)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that what is computed with this model depends on of it, as plain values."""
        config, tensors = _config(self.network), self.network.state_dict()
        tensors |= {name: buffer for name, buffer in self.network.named_buffers() if name not in tensors}
        return ({} if config else {"settings": _settings(self.network)}) | {
            "network": type(self.network).__name__,
            "structure": str(self.network),
            "config": json.loads(json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, default=str)),
            "process": json.loads(json.dumps(asdict(self.process))),
            "classes": [self.classes, self.no_class],
            "weights": tensor_digest(*tensors.values()),
        }

    def forward(self, noisy: Images, timesteps: Timesteps, **conditions: Tensor) -> Images:
        """The output in states `noisy` at timesteps 0..T−1."""
        times = self.process.times
        return self.at_times(noisy, timesteps if times is None else times.to(noisy)[timesteps], **conditions)

    def at_times(self, noisy: Images, times: Tensor, **conditions: Tensor) -> Images:
        """The output in states `noisy`, the time as the network knows it, between timesteps as well.

        Raises:
            ConfigurationError: a condition is missing, or the output is not shaped as the states.
        """
        for name in self.needs:
            require(name in conditions, f"{name}: the network is told the class of each image; give images with labels")
        found = self.network(noisy, times, **{name: conditions[name] for name in self.needs})
        output = found if isinstance(found, Tensor) else found.sample
        channels = noisy.shape[1]
        fits = (output.shape[0], *output.shape[2:]) == (noisy.shape[0], *noisy.shape[2:])
        require(fits and output.shape[1] in (channels, 2 * channels), f"{type(self.network).__name__}: its output is "
                f"{tuple(output.shape)} for states {tuple(noisy.shape)}; it needs as many channels, or twice as many with a "
                "learned variance")  # fmt: skip
        return output[:, :channels]

    def predict(self, batch: DrawBatch) -> Images:
        """The output at each draw of a batch."""
        return self(batch.state, batch.timesteps, **(batch.conditions or {}))


def _config(network: nn.Module) -> Mapping[str, Any]:
    """What a network of diffusers was built from; empty for others, whose `config` may be anything."""
    config = getattr(network, "config", None)
    return config if isinstance(config, Mapping) else {}


def _settings(network: nn.Module) -> dict[str, str]:
    """Plain attributes of a network of one's own, which its output may depend on as on its weights."""
    plain = (bool, int, float, complex, str, tuple, list, dict, type(None))
    return {
        f"{name}.{key}": repr(value)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if not key.startswith("_") and key != "training" and isinstance(value, plain)
    }


def _classes(network: nn.Module) -> int:
    """Number of classes that a diffusers network is told apart by; 0 where it has none."""
    config = _config(network)
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
    model: Denoiser, images: Images, timesteps: Timesteps, noise: Images, **conditions: Tensor
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
