"""Noise schedule: how much of an image is left after t steps of noising (Ho et al. 2020, equations 2 and 4)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from diffinf_lib.errors import require

BetaSchedule = Literal["linear", "scaled_linear"]
SamplerName = Literal["ddpm", "ddim"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The variances β_t of the forward process; timesteps are counted from 0 to `timesteps` − 1, as diffusers does.

    The default is that of Ho et al. 2020, which the paper uses for images; Stable Diffusion's latents take
    `scaled_linear` from 0.00085 to 0.012.
    """

    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: BetaSchedule = "linear"
    timesteps: int = 1000

    def __post_init__(self) -> None:
        require(0 < self.beta_start <= self.beta_end < 1, f"beta_start={self.beta_start}, beta_end={self.beta_end}: "
                "give 0 < beta_start <= beta_end < 1")  # fmt: skip
        require(self.timesteps > 0, f"timesteps={self.timesteps}: give a positive number")

    def scheduler(self, method: SamplerName = "ddpm") -> Any:
        """The diffusers scheduler that steps backwards along this schedule.

        `fixed_small` is the posterior variance β̃_t (Ho et al. 2020, equation 7).
        """
        shared = {
            "num_train_timesteps": self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": "epsilon",
            "clip_sample": True,
        }
        if method == "ddpm":
            return DDPMScheduler(variance_type="fixed_small", **shared)
        require(method == "ddim", f"method={method!r}: give 'ddpm' or 'ddim'")
        # Clipping the guessed image but not the guessed noise would leave the deterministic path that DDIM follows
        return DDIMScheduler(**shared | {"clip_sample": False})

    @property
    def alphas_cumprod(self) -> Tensor:
        """ᾱ_t for every timestep, `[T]`, float32: the share of the image's variance that is left."""
        return _alphas_cumprod(self)


@lru_cache
def _alphas_cumprod(schedule: NoiseSchedule) -> Tensor:
    return schedule.scheduler().alphas_cumprod


DEFAULT_SCHEDULE = NoiseSchedule()
"""Linear β over 1,000 steps (Ho et al. 2020)."""


def noisy_images(
    images: Tensor, timesteps: Tensor, noise: Tensor, schedule: NoiseSchedule = DEFAULT_SCHEDULE
) -> Tensor:
    """x_t = √ᾱ_t x + √(1 − ᾱ_t) ε (Ho et al. 2020, equation 4).

    Args:
        images: x, `[B, C, H, W]`.
        timesteps: t, `[B]`.
        noise: ε, `[B, C, H, W]`.
    """
    kept = schedule.alphas_cumprod.to(images)[timesteps].view(-1, *[1] * (images.ndim - 1))
    return kept.sqrt() * images + (1 - kept).sqrt() * noise
