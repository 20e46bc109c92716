"""Trajectories: generated images with the states that the sampler went through on its way to them."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffinf_lib.data.images import ImageSet, Selection
from diffinf_lib.errors import DataError, require


@dataclass(frozen=True, eq=False)
class Trajectories(ImageSet):
    """Samples and how they came about, a state for each timestep of the process.

    Attributes:
        states: x_T, …, x_0 as the sampler stepped, `[N, T + 1, C, H, W]`: the network was asked at timestep T − 1 − k in
            state k, and state k + 1 is what the sampler drew next.
        guesses: the image that the sampler guessed in each state, x̂_0(x_t), `[N, T, C, H, W]`.
    """

    states: Float[Tensor, "N T1 C H W"]
    guesses: Float[Tensor, "N T1-1 C H W"]

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = (len(self.images), self.states.shape[1] - 1, *self.shape)
        require(self.states.ndim == 5 and self.states.shape[0] == len(self.images) and tuple(self.guesses.shape) == wanted,
                f"states {tuple(self.states.shape)}, guesses {tuple(self.guesses.shape)}: give [N, T + 1, C, H, W] and "
                "[N, T, C, H, W] of the same images", DataError)  # fmt: skip

    @property
    def steps(self) -> int:
        """T, the number of sampling steps."""
        return self.guesses.shape[1]

    def subset(self, index: Selection) -> "Trajectories":
        """The samples at these positions, or where a mask is True, with their states."""
        return Trajectories(
            self.images[index], self.labels[index], self.ids[index], self.states[index], self.guesses[index],
            names=self.names_at(index),
        )  # fmt: skip
