"""Attribution: scores of training images for queries."""

from diffinf_lib.attribution.influence import (
    influence,
    influence_by_timestep,
    scores_by_layer,
    scores_from_gradients,
    self_influence,
)
from diffinf_lib.attribution.scoring import Inverses, check_dampings
from diffinf_lib.attribution.similarity import (
    gradient_cosine_scores,
    gradient_dot_scores,
    pixel_distance_scores,
    random_scores,
)

__all__ = [
    "Inverses",
    "check_dampings",
    "gradient_cosine_scores",
    "gradient_dot_scores",
    "influence",
    "influence_by_timestep",
    "pixel_distance_scores",
    "random_scores",
    "scores_by_layer",
    "scores_from_gradients",
    "self_influence",
]
