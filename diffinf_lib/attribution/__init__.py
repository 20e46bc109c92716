"""Attribution: scores of training images for queries."""

from diffinf_lib.attribution.influence import influence, scores_from_gradients
from diffinf_lib.attribution.similarity import (
    gradient_cosine_scores,
    gradient_dot_scores,
    pixel_distance_scores,
    random_scores,
)

__all__ = [
    "gradient_cosine_scores",
    "gradient_dot_scores",
    "influence",
    "pixel_distance_scores",
    "random_scores",
    "scores_from_gradients",
]
