"""Loss: how well the network guesses the noise that was added (Ho et al. 2020, equation 14)."""

from typing import Any

from torch import Tensor

from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule, noisy_images
from diffinf_lib.shapes import Images, PerDraw, Timesteps

Network = Any
"""A diffusers `UNet2DModel`, or any module called as `module(x_t, t)` that returns ε_θ as a tensor."""


def predict_noise(model: Network, noisy: Images, timesteps: Timesteps) -> Images:
    """ε_θ(x_t, t), `[B, C, H, W]`, of a diffusers model or of a plain module."""
    output = model(noisy, timesteps)
    return output if isinstance(output, Tensor) else output.sample


def per_draw_loss(
    model: Network,
    images: Images,
    timesteps: Timesteps,
    noise: Images,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
) -> PerDraw:
    """‖ε − ε_θ(x_t, t)‖² of each draw, as the mean over the C·H·W output dimensions; `[B]`.

    Dividing by the dimension is the convention of the authors' code; curvature and gradients here follow it.
    """
    predicted = predict_noise(model, noisy_images(images, timesteps, noise, schedule), timesteps)
    return (noise - predicted).square().flatten(1).mean(1)
