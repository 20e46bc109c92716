"""Features: what the middle of a denoiser's network holds of an image, and how far images are apart in it.

Two pictures of one digit, a pixel apart, differ in many pixels. The network's narrowest layer sees shapes instead: its
activations at a few timesteps, under the same noise for every image, are the image as the model itself has it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffinf_lib.configuration import DrawConfig, Expectation
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, check_images, require_denoiser
from diffinf_lib.diffusion.denoiser import evaluating
from diffinf_lib.errors import DataError, require
from diffinf_lib.options import check_counts
from diffinf_lib.settings import own_settings

FEATURE_TIMESTEPS = (50, 150, 300)
"""Where features are taken of a process of 1,000 steps: enough noise to blur strokes, and not so much as to hide a shape."""
FEATURE_DRAWS = 8
"""Draws of the noise at each of them."""


@own_settings
@torch.no_grad()
def middle_features(
    model: Denoiser,
    images: ImageSet,
    *,
    timesteps: Sequence[int] | None = None,
    draws: int = FEATURE_DRAWS,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "N F"]:
    """Activations of the middle block, the mean over draws of the noise, one timestep after another; float32, on the CPU.

    The noise is the same for all images.

    Args:
        timesteps: default: those of `FEATURE_TIMESTEPS`, as shares of the process's own.
        draws: of the noise at each timestep, in antithetic pairs: an even number.

    Raises:
        ConfigurationError: the network has no `mid_block`, as diffusers' UNets have, or there are no images.
    """
    process = require_denoiser(model).process
    check_images(images=images)
    check_counts(draws=draws, batch_size=batch_size)
    if timesteps is None:
        timesteps = [step * process.num_train_timesteps // 1000 for step in FEATURE_TIMESTEPS]
    require(len(timesteps) > 0, "timesteps: give at least one")
    parts = []
    for timestep in timesteps:
        config = DrawConfig(draws, timestep_rule="single", timestep=timestep, shared=True)
        total = None
        with evaluating(model), _activations(_middle(model)) as caught:
            for batch in Expectation(config, purpose="features", seed=seed).batches(model, images, batch_size):
                model.predict(batch)
                found = caught.pop().flatten(1).cpu()
                total = torch.zeros(len(images), found.shape[1]) if total is None else total
                total.index_add_(0, batch.example, found)
        assert total is not None
        parts.append(total / draws)
    return torch.cat(parts, 1)


def _middle(model: Denoiser) -> nn.Module:
    """The block between the way down and the way up."""
    middle = getattr(model.network, "mid_block", None)
    require(isinstance(middle, nn.Module), f"{type(model.network).__name__}: it has no mid_block to take features of; give a "
            "model with one, such as a UNet2DModel")  # fmt: skip
    assert isinstance(middle, nn.Module)
    return middle


@contextmanager
def _activations(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module returned, call by call."""
    caught: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: caught.append(output.detach().float()))
    try:
        yield caught
    finally:
        handle.remove()


def distances(
    first: Float[Tensor, "*_A F"], second: Float[Tensor, "*_B F"], reference: Float[Tensor, "N F"]
) -> Float[Tensor, "*_C"]:
    """Euclidean distances between rows, broadcast; the mean distance of two different reference rows is 1; float64.

    Raises:
        DataError: fewer than two reference images, or all of them alike.
    """
    typical = torch.pdist(reference.double()).mean() if len(reference) > 1 else torch.zeros(())
    require(float(typical) > 0, f"reference: {len(reference)} images that are all alike have no distance to measure by; give "
            "at least two that differ", DataError)  # fmt: skip
    return (first.double() - second.double()).norm(dim=-1) / typical
