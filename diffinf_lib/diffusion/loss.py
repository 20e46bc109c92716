"""Loss: how well the network guesses the noise that was added (Ho et al. 2020, equation 14)."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.diffusion.draws import DrawConfig, iterate_draws
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


@torch.no_grad()
def per_example_loss(
    model: Network,
    images: Images,
    ids: Int[Tensor, "N"],
    draws: DrawConfig,
    *,
    seed: int,
    stage: str,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 512,
) -> Float[Tensor, "N"]:
    """ℓ(θ, x_n): the weighted mean of each example's loss over its draws, `[N]`, float64, on the CPU."""
    total = torch.zeros(len(ids), dtype=torch.float64)
    batches = iterate_draws(images, ids, draws, seed=seed, stage=stage, schedule=schedule, batch_size=batch_size)
    for batch in batches:
        losses = per_draw_loss(model, batch.images, batch.timesteps, batch.noise, schedule)
        total.index_add_(0, batch.example, (batch.weights.double() * losses.double()).cpu())
    return total / draws.count
