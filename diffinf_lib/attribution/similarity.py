"""Similarity: baselines that rank training images by likeness; what a method must beat.

All point the way influence on the loss does: a positive score says that leaving the image out makes the query less
likely. Their scale is arbitrary; only ranks mean something.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import in_pairs
from diffinf_lib.attribution.trak import exact_products, gradient_products
from diffinf_lib.data import ImageSet
from diffinf_lib.gradients import GradientSet, LayerGradients, check_blocks
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings


@own_settings
def pixel_distance_scores(train: ImageSet, queries: ImageSet) -> Float[Tensor, "Q N"]:
    """Minus the Euclidean distance between pixels; arbitrary scale."""
    return -torch.cdist(queries.images.flatten(1).double(), train.images.flatten(1).double())


@own_settings
def gradient_dot_scores(queries: GradientSet, train: GradientSet) -> Float[Tensor, "Q N"]:
    """∇m_q · ∇ℓ_n: influence with the identity for a curvature; arbitrary scale; float64, on the CPU.

    A rotation leaves dot products alone, so gradients in the eigenbasis serve as they are.

    Raises:
        ConfigurationError: gradients of different blocks, or projected ones, which have forgotten their directions.
    """
    return gradient_products(queries, train)


@own_settings
def gradient_cosine_scores(queries: GradientSet, train: GradientSet) -> Float[Tensor, "Q N"]:
    """The cosine of the angle between ∇m_q and ∇ℓ_n; arbitrary scale; float64, on the CPU."""
    check_blocks(queries, train, "queries")
    return in_pairs(
        queries, train, lambda mine, its: exact_products(mine, its) / torch.outer(_norms(mine), _norms(its))
    )


def _norms(gradients: LayerGradients) -> Float[Tensor, "n"]:
    squares = [matrix.flatten(1).double().square().sum(1) for matrix in gradients.values()]
    return torch.stack(squares).sum(0).sqrt().cpu()


@own_settings
def random_scores(queries: int, count: int, *, seed: int = 0) -> Float[Tensor, "Q N"]:
    """Standard normal scores: the control whose LDS must be 0 within its interval."""
    return torch.randn(queries, count, generator=keyed_generator("random-scores", seed), dtype=torch.float64)
