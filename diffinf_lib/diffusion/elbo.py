"""ELBO: a bound from below on the log-likelihood of an image (Ho et al. 2020, equation 5).

log p_θ(x) ≥ log p_θ(x_0 | x at t = 0) − Σ_{t≥1} KL_t − KL_T: how well the last step hits the image, how far every other
step is from the true one, and what noising leaves of the image. All terms are in nats and summed over the dimensions.
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Process
from diffinf_lib.configuration.coefficients import at_timesteps
from diffinf_lib.diffusion.reverse import normal_log_density, posterior_variance
from diffinf_lib.errors import require
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, Images, PerDraw, PerExample, PerTimestep, Timesteps


def elbo_terms(
    prediction: ImageBatch,
    images: ImageBatch,
    timesteps: Timesteps,
    target: ImageBatch,
    process: Process,
    levels: int | None = 256,
) -> PerDraw:
    """What one draw says about the ELBO: its mean over uniform t and ε is the ELBO without the prior's term; `[B]`, nats.

    T times −KL(q(x_{t−1} | x_t, x_0) ‖ p_θ(x_{t−1} | x_t)) for t ≥ 1, and T times log p_θ(x_0 | x_t) at t = 0. Subtract
    `prior_kl` for the whole ELBO. Both Gaussians have the variance β̃_t, so KL_t is a weight times ‖y − y_θ‖² (equation 12
    for noise), which is how it is calculated: no difference of two large means. Higher means more likely.

    Args:
        prediction: the network's output y_θ(x_t, t), `[B, C, H, W]`.
        images: x_0, in [−1, 1]; on the levels if there are levels (`nearest_levels`).
        timesteps: t, `[B]`.
        target: y_t, `[B, C, H, W]`.
        levels: number of values of a pixel, evenly spaced on [−1, 1]: 17 for digits, 256 for images of 8 bits. None for
            what is continuous (latents, dequantised images): the last step then counts by its density.
    """
    process.check_solvable()
    error = target - prediction
    weights = process.num_train_timesteps * kl_weights(process).to(error)[timesteps]
    terms = -weights * error.square().flatten(1).sum(1)
    last = timesteps == 0
    if not bool(last.any()):
        return terms
    # The step at t = 0 leads to the guessed image, which misses x_0 by n/D (y − y_θ)
    here, wrong = process.coefficients, error[last]
    miss = wrong * at_timesteps(here.noise / here.determinant, timesteps[last], wrong)
    scale = float(posterior_variance(process)[0].sqrt())
    reconstruction = last_step_log_prob(images[last], miss, scale, levels)
    return terms.index_put((last,), process.num_train_timesteps * reconstruction)


@lru_cache
@own_settings
def kl_weights(process: Process) -> PerTimestep:
    """½ (SNR_{t−1} − SNR_t) n_t² / D_t², the weight of ‖y − y_θ‖² in KL_t, with SNR = s² / n²; `[T]`, float64.

    An error of the target is n/D times as large in the image, and KL_t is half the loss of signal-to-noise ratio times the
    squared error of the image (Kingma et al. 2021, equation 13); for noise it is Ho et al. 2020, equation 12. Index 0 is 0:
    the step at t = 0 has no KL.
    """
    here = process.coefficients
    ratios = (here.signal / here.noise).square()
    lost = torch.cat([ratios.new_zeros(1), ratios[:-1] - ratios[1:]])
    return 0.5 * lost * (here.noise / here.determinant).square()


def last_step_log_prob(images: ImageBatch, miss: ImageBatch, scale: float, levels: int | None) -> PerDraw:
    """log p(x_0) under a Gaussian around x_0 + miss, the product over pixels; `[B]`, in nats.

    With levels, the probability that the Gaussian gives to the bin around the pixel's level, of which the two outermost
    are open to infinity (Ho et al. 2020, equation 13), so that the levels' probabilities sum to 1.

    Args:
        miss: mean of the Gaussian less the image, `[B, C, H, W]`.
        scale: standard deviation of the Gaussian.
        levels: number of levels on [−1, 1], or None for the density.

    Raises:
        ConfigurationError: fewer than two levels.
    """
    if levels is None:
        return normal_log_density(miss, torch.tensor(scale).to(miss))
    half = _half_bin(levels)
    # In float64: far in the tail, the derivative of log_ndtr is an exponential of differences between large squares
    distance = miss.double()
    inner = _log_bin(distance.abs(), half, scale)
    # Open outwards: only the inner edge counts
    outer = torch.special.log_ndtr((half + distance * images.sign()) / scale)
    return torch.where(images.abs() > 1 - half, outer, inner).flatten(1).sum(1).to(miss.dtype)


def _log_bin(distance: ImageBatch, half: float, scale: float) -> ImageBatch:
    """log of the Gaussian mass between distance ± half from its mean.

    The bin is looked at from its far side, in the lower tail, where log Φ keeps all its digits; the difference of the
    two masses is taken between their logarithms.
    """
    near = torch.special.log_ndtr((half - distance) / scale)
    far = torch.special.log_ndtr((-half - distance) / scale)
    return near + torch.log(-torch.expm1(far - near))


def _half_bin(levels: int) -> float:
    require(levels > 1, f"levels={levels}: give the number of values of a pixel, at least 2, or None")
    return 1 / (levels - 1)


def nearest_levels(images: Float[Tensor, "*shape"], levels: int) -> Float[Tensor, "*shape"]:
    """Each pixel moved to the nearest of `levels` values evenly spaced on [−1, 1]; images of a model need it."""
    half = _half_bin(levels)
    return ((images.clamp(-1, 1) + 1) / (2 * half)).round() * (2 * half) - 1


def prior_kl(images: Images, process: Process) -> PerExample:
    """KL(q(x_T | x_0) ‖ N(0, I)), what is left of an image after all noising; `[N]`, in nats. No model changes it."""
    signal, noise = (float(values[-1]) for values in process.coefficients[:2])
    per_pixel = 0.5 * ((signal * images).square() + (noise**2 - 1) - 2 * math.log(noise))
    return per_pixel.flatten(1).sum(1)


def nats_to_bits_per_dimension(nats: Float[Tensor, "*n"], dimensions: int) -> Float[Tensor, "*n"]:
    """Nats of a whole image as bits per dimension; the sign stays: higher still means more likely."""
    return nats / (dimensions * math.log(2))
