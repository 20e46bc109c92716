"""Labels: the vectors v that turn J into the GGN, E[Jᵀv vᵀJ] = (2/C) E[JᵀJ].

With h(f) = ‖ε − f‖²/C the Hessian of the loss in the network's output is (2/C) I, whatever the target: GGN^model does not
see the noise that was added (Mlodozeniec et al. 2025, section 3.1). Sampling targets from the model's own Gaussian gives
pulled-back vectors v ~ N(0, (2/C) I); running through the scaled basis gives the same matrix exactly, at C times the cost.
"""

import math

import torch
from torch import Tensor

from diffinf_lib.diffusion import DrawBatch
from diffinf_lib.randomness import keyed_generator


def sampled_vectors(batch: DrawBatch, example_ids: Tensor, draws: int, first: int, labels: int, seed: int) -> Tensor:
    """v of each draw and label, `[labels, B, C, H, W]`, from N(0, (2/C) I).

    The vectors of a draw depend on (seed, example id, draw) only: an example's vectors come from one generator.

    Args:
        example_ids: id of every example of the image set, `[N]`.
        draws: draws of an example, S.
        first: place of the batch's first draw among all N·S draws.
    """
    scale = math.sqrt(2 / batch.images[0].numel())
    places = torch.arange(first, first + len(batch.example)) % draws
    vectors = torch.empty(labels, *batch.images.shape)
    for example in batch.example.unique():
        rows = torch.nonzero(batch.example == example).squeeze(1)
        generator = keyed_generator("labels", seed, int(example_ids[example]))
        drawn = torch.randn(draws, labels, *batch.images.shape[1:], generator=generator)
        vectors[:, rows] = drawn[places[rows]].transpose(0, 1)
    return scale * vectors.to(batch.images)


def exact_vectors(images: Tensor) -> Tensor:
    """The scaled basis v_c = √(2/C)·e_c repeated for each draw, `[C, B, C, H, W]`: Σ_c v_c v_cᵀ = (2/C) I."""
    dimension = images[0].numel()
    basis = torch.eye(dimension, dtype=images.dtype, device=images.device) * math.sqrt(2 / dimension)
    return basis.view(dimension, 1, *images.shape[1:]).expand(-1, len(images), -1, -1, -1)
