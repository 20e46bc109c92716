"""Shapes: one name for each kind of array, so that signatures say what a tensor holds.

N training images, Q queries, S draws of one example, B draws in a batch, M subsets, K seeds, T timesteps.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Images = Float[Tensor, "N C H W"]
Timesteps = Int[Tensor, "B"]
PerDraw = Float[Tensor, "B"]
PerExample = Float[Tensor, "N"]
PerTimestep = Float[Tensor, "T"]
Scores = Float[Tensor, "Q N"]
Masks = Bool[Tensor, "M N"]
Measurements = Float[Tensor, "M K Q"]

ImageShape = tuple[int, int, int]
