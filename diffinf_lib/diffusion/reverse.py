"""Reverse process: the Gaussians by which noise is turned back into an image (Ho et al. 2020, section 2 and 3.2).

Timesteps count from 0, so the step at t leads from x_t to x_{t−1}, and the step at t = 0 to the image itself, for which
ᾱ_{−1} = 1. The variances β_t are taken from ᾱ_t, by which images are noised: the two then belong to one process exactly.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.diffusion.schedule import DEFAULT_SCHEDULE, NoiseSchedule
from diffinf_lib.errors import require
from diffinf_lib.shapes import Images, PerDraw, Timesteps


@lru_cache
def posterior_variance(schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> Float[Tensor, "T"]:
    """β̃_t = (1 − ᾱ_{t−1}) / (1 − ᾱ_t) β_t, the variance of x_{t−1} given x_t and the image; `[T]`, float64.

    Ho et al. 2020, equation 7; diffusers calls it `fixed_small`. At t = 0 it is 0, for the image has no variance given
    itself. A density with variance 0 is infinite or zero, so t = 0 takes the value of t = 1, as Ho et al.'s code does.

    Raises:
        ConfigurationError: the schedule has a single timestep.
    """
    require(schedule.timesteps > 1, f"timesteps={schedule.timesteps}: a reverse process needs at least 2")
    kept, before = _kept(schedule)
    variance = (1 - before) / (1 - kept) * betas(schedule)
    variance[0] = variance[1]
    return variance


@lru_cache
def betas(schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> Float[Tensor, "T"]:
    """β_t = 1 − ᾱ_t / ᾱ_{t−1}, the variance that the forward process adds at t; `[T]`, float64."""
    kept, before = _kept(schedule)
    return (before - kept) / before


def _kept(schedule: NoiseSchedule) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """ᾱ_t and ᾱ_{t−1} in float64."""
    kept = schedule.alphas_cumprod.double()
    return kept, torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])


def at_timesteps(values: Float[Tensor, "T"], timesteps: Timesteps, like: Images) -> Float[Tensor, "B 1 1 1"]:
    """The values of the given timesteps, in dtype, device and rank of `like`."""
    return values.to(like)[timesteps].view(-1, *[1] * (like.ndim - 1))


def posterior_mean(x0: Images, x_t: Images, timesteps: Timesteps, schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> Images:
    """μ̃_t(x_t, x_0), the mean of x_{t−1} given x_t and the image x_0 (Ho et al. 2020, equation 7); `[B, C, H, W]`."""
    kept, before = _kept(schedule)
    beta = betas(schedule)
    of_image = at_timesteps(before.sqrt() * beta / (1 - kept), timesteps, x0)
    of_state = at_timesteps((1 - beta).sqrt() * (1 - before) / (1 - kept), timesteps, x0)
    return of_image * x0 + of_state * x_t


def predicted_x0(
    noisy: Images, prediction: Images, timesteps: Timesteps, schedule: NoiseSchedule = DEFAULT_SCHEDULE
) -> Images:
    """The image that a guess of the noise amounts to: (x_t − √(1−ᾱ_t) ε_θ) / √ᾱ_t (equation 4 solved for x_0).

    Args:
        noisy: x_t, `[B, C, H, W]`.
        prediction: ε_θ(x_t, t), `[B, C, H, W]`.
    """
    kept, _ = _kept(schedule)
    share, rest = at_timesteps(kept.sqrt(), timesteps, noisy), at_timesteps((1 - kept).sqrt(), timesteps, noisy)
    return (noisy - rest * prediction) / share


def reverse_mean(
    noisy: Images,
    prediction: Images,
    timesteps: Timesteps,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    clip: bool = False,
) -> Images:
    """μ_θ(x_t, t), the mean of the model's step from x_t (Ho et al. 2020, equation 11); `[B, C, H, W]`.

    Args:
        clip: cut the guessed image off at ±1, as the DDPM sampler of `NoiseSchedule.scheduler` does. Without it, this is
            equation 11.
    """
    image = predicted_x0(noisy, prediction, timesteps, schedule)
    return posterior_mean(image.clamp(-1, 1) if clip else image, noisy, timesteps, schedule)


def reverse_step_log_prob(
    prediction: Images,
    noisy: Images,
    following: Images,
    timesteps: Timesteps,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    clip: bool = True,
) -> PerDraw:
    """log N(x_{t−1}; μ_θ(x_t, t), σ_t² I), how likely the model makes one step of a trajectory; `[B]`, in nats.

    The sum over a trajectory's steps, with the log-density of its first state under N(0, I), which no model changes, is
    the log-probability of the trajectory. σ_t² is `posterior_variance`. At t = 0 the sampler adds no noise, so that the
    density of its step is infinite; the term here is the density of σ_0² = σ_1², that of the ELBO's last step.

    Args:
        prediction: ε_θ(x_t, t), `[B, C, H, W]`.
        noisy: x_t, a state of the trajectory.
        following: x_{t−1}, the state after it; at t = 0 the sample.
        clip: whether the sampler cut the guessed image off at ±1, as `NoiseSchedule.scheduler` does for DDPM.
    """
    deviation = following - reverse_mean(noisy, prediction, timesteps, schedule, clip)
    return normal_log_density(deviation, at_timesteps(posterior_variance(schedule).sqrt(), timesteps, noisy))


def normal_log_density(deviation: Images, scale: Tensor) -> PerDraw:
    """log N(deviation; 0, scale² I), summed over the dimensions of an image; `[B]`, in nats."""
    constant = 0.5 * math.log(2 * math.pi)
    return -(0.5 * (deviation / scale).square() + scale.log() + constant).flatten(1).sum(1)
