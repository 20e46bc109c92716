"""Shapes: one name for each kind of array, so that signatures say what a tensor holds.

N training images, or images of any set, Q queries, S draws of one example, B draws in a batch, M subsets, K seeds, T timesteps,
D dampings or other options, R resamples; C H W of an image; O I of a layer's gradient matrix or a block of it, P all covered
parameters, L the positions that share a layer's weights, V vectors that are pulled back through the network; T1, D1 one more
than T, D.
An axis that differs from one entry of a mapping or list to the next begins with `_`: it is told, not held to one size.

In the tests all annotations are held against what is given and returned (`tests/conftest.py`).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real, Shaped
from torch import Tensor

Images = Float[Tensor, "N C H W"]
ImageBatch = Float[Tensor, "B C H W"]
"""Images, noise, states, targets or outputs, one row a draw."""
Ids = Int[Tensor, "N"]
Timesteps = Int[Tensor, "B"]
PerDraw = Float[Tensor, "B"]
PerExample = Float[Tensor, "N"]
PerTimestep = Float[Tensor, "T"]
Scores = Float[Tensor, "Q N"]
Masks = Bool[Tensor, "M N"]
Measurements = Float[Tensor, "M K Q"]
AnyScores = Real[Tensor, "Q N"] | Real[np.ndarray, "Q N"]
"""Scores as they come from anywhere: ours are tensors, those read from a bundle arrays."""
ScoresOfOptions = Real[Tensor, "D Q N"] | Real[np.ndarray, "D Q N"] | Sequence[AnyScores]
Condition = Shaped[Tensor, "B ..."]
"""What a network is told of each draw besides state and time."""

ImageShape = tuple[int, int, int]
