"""Reverse process: the Gaussians by which noise is turned back into an image (Ho et al. 2020, section 2 and 3.2).

Timesteps count from 0, so the step at t leads from x_t to x_{t−1}, and the step at t = 0 to the image itself, for which
s = 1 and n = 0. Between two states x_t = (s_t / s_{t−1}) x_{t−1} + noise, whose variance is taken from the two, by which
images are noised: steps and states then belong to one process exactly.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Process
from diffinf_lib.configuration.coefficients import at_timesteps
from diffinf_lib.errors import require
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, PerDraw, PerTimestep, Timesteps


def _before(process: Process) -> tuple[PerTimestep, PerTimestep]:
    """s_{t−1} and n_{t−1} of every timestep; before the first there is the image itself."""
    signal, noise = process.coefficients[:2]
    return torch.cat([signal.new_ones(1), signal[:-1]]), torch.cat([noise.new_zeros(1), noise[:-1]])


@lru_cache
@own_settings
def added_variances(process: Process) -> PerTimestep:
    """n_t² − (s_t / s_{t−1})² n_{t−1}², the variance that the forward process adds at t, β_t in DDPM; `[T]`, float64."""
    (signal, noise), (signal_before, noise_before) = process.coefficients[:2], _before(process)
    return noise.square() - (signal / signal_before * noise_before).square()


@lru_cache
@own_settings
def posterior_variance(process: Process) -> PerTimestep:
    """β̃_t = β_t n_{t−1}² / n_t², the variance of x_{t−1} given x_t and the image; `[T]`, float64.

    Ho et al. 2020, equation 7; diffusers calls it `fixed_small`. At t = 0 it is 0, for the image has no variance given
    itself. A density with variance 0 is infinite or zero, so t = 0 takes the value of t = 1, as Ho et al.'s code does.

    Raises:
        ConfigurationError: the process has a single timestep.
    """
    require(
        process.num_train_timesteps > 1,
        f"num_train_timesteps={process.num_train_timesteps}: a reverse process needs at least 2",
    )
    variance = added_variances(process) * (_before(process)[1] / process.coefficients.noise).square()
    variance[0] = variance[1]
    return variance


def posterior_mean(x0: ImageBatch, x_t: ImageBatch, timesteps: Timesteps, process: Process) -> ImageBatch:
    """μ̃_t(x_t, x_0), the mean of x_{t−1} given x_t and the image x_0 (Ho et al. 2020, equation 7); `[B, C, H, W]`."""
    (signal, noise), (signal_before, noise_before) = process.coefficients[:2], _before(process)
    of_image = at_timesteps(signal_before * added_variances(process) / noise.square(), timesteps, x0)
    of_state = at_timesteps(signal / signal_before * (noise_before / noise).square(), timesteps, x0)
    return of_image * x0 + of_state * x_t


def reverse_mean(
    noisy: ImageBatch, prediction: ImageBatch, timesteps: Timesteps, process: Process, *, clip: bool = False
) -> ImageBatch:
    """μ_θ(x_t, t), the mean of the model's step from x_t (Ho et al. 2020, equation 11); `[B, C, H, W]`.

    Args:
        prediction: the network's output.
        clip: cut the guessed image off where the process's DDPM sampler does. Without it, this is equation 11.
    """
    image, bound = process.solved(noisy, prediction, timesteps)[0], process.clip_sample
    return posterior_mean(image.clamp(-bound, bound) if clip and bound else image, noisy, timesteps, process)


def reverse_step_log_prob(
    prediction: ImageBatch,
    noisy: ImageBatch,
    following: ImageBatch,
    timesteps: Timesteps,
    process: Process,
    clip: bool = True,
) -> PerDraw:
    """log N(x_{t−1}; μ_θ(x_t, t), σ_t² I), how likely the model makes one step of a trajectory; `[B]`, in nats.

    The sum over a trajectory's steps, with the log-density of its first state under N(0, I), which no model changes, is
    the log-probability of the trajectory. σ_t² is `posterior_variance`. At t = 0 the sampler adds no noise, so that the
    density of its step is infinite; the term here is the density of σ_0² = σ_1², that of the ELBO's last step.

    Args:
        prediction: the network's output, `[B, C, H, W]`.
        noisy: x_t, a state of the trajectory.
        following: x_{t−1}, the state after it; at t = 0 the sample.
        clip: whether the sampler cut the guessed image off, as `Process.scheduler` does for DDPM.
    """
    deviation = following - reverse_mean(noisy, prediction, timesteps, process, clip=clip)
    return normal_log_density(deviation, at_timesteps(posterior_variance(process).sqrt(), timesteps, noisy))


def normal_log_density(deviation: ImageBatch, scale: Float[Tensor, ""] | Float[Tensor, "B 1 1 1"]) -> PerDraw:
    """log N(deviation; 0, scale² I), summed over the dimensions of an image; `[B]`, in nats."""
    constant = 0.5 * math.log(2 * math.pi)
    return -(0.5 * (deviation / scale).square() + scale.log() + constant).flatten(1).sum(1)
