"""Coefficients: the numbers by which a process mixes image and noise at each timestep; the part of it that is tensors."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from diffinf_lib.shapes import ImageBatch, PerTimestep, Timesteps

Coefficient = Float[Tensor, "T"] | Float[Tensor, "B 1 1 1"]


class Coefficients(NamedTuple):
    """s, n, a and b of every timestep, `[T]`, float64, or of some draws, `[B, 1, 1, 1]`."""

    signal: Coefficient
    noise: Coefficient
    target_signal: Coefficient
    target_noise: Coefficient

    @property
    def determinant(self) -> Coefficient:
        """D = s b − n a, by which an error of the target becomes one of the image or the noise."""
        return self.signal * self.target_noise - self.noise * self.target_signal

    def at(self, timesteps: Timesteps, like: ImageBatch) -> "Coefficients":
        """Those of some draws, `[B, 1, 1, 1]`, in the type and on the device of `like`."""
        return Coefficients(*(at_timesteps(values, timesteps, like) for values in self))


def at_timesteps(values: PerTimestep, timesteps: Timesteps, like: ImageBatch) -> Float[Tensor, "B 1 1 1"]:
    """The values of the given timesteps, in dtype, device and rank of `like`."""
    return values.to(like)[timesteps].view(-1, *[1] * (like.ndim - 1))
