"""Coefficients: the numbers by which a process mixes image and noise at each timestep; the part of it that is tensors."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from diffinf_lib.shapes import Images, PerTimestep, Timesteps


class Coefficients(NamedTuple):
    """s, n, a and b of every timestep, `[T]`, float64, or of some draws, `[B, 1, 1, 1]`."""

    signal: Tensor
    noise: Tensor
    target_signal: Tensor
    target_noise: Tensor

    @property
    def determinant(self) -> Tensor:
        """D = s b − n a, by which an error of the target becomes one of the image or the noise."""
        return self.signal * self.target_noise - self.noise * self.target_signal

    def at(self, timesteps: Timesteps, like: Images) -> "Coefficients":
        """Those of some draws, `[B, 1, 1, 1]`, in the type and on the device of `like`."""
        return Coefficients(*(at_timesteps(values, timesteps, like) for values in self))


def at_timesteps(values: PerTimestep, timesteps: Timesteps, like: Images) -> Float[Tensor, "B 1 1 1"]:
    """The values of the given timesteps, in dtype, device and rank of `like`."""
    return values.to(like)[timesteps].view(-1, *[1] * (like.ndim - 1))
