"""Attribution: scores of training images for queries."""

from diffinf_lib.attribution.checkpoints import average_scores
from diffinf_lib.attribution.clip import clip_similarity_scores
from diffinf_lib.attribution.das import das_scores
from diffinf_lib.attribution.influence import (
    influence,
    influence_by_timestep,
    scores_by_layer,
    scores_from_gradients,
    self_influence,
)
from diffinf_lib.attribution.methods import METHODS, Method, get_method
from diffinf_lib.attribution.renormalised import renormalised_scores, training_norms
from diffinf_lib.attribution.similarity import (
    gradient_cosine_scores,
    gradient_dot_scores,
    pixel_distance_scores,
    random_scores,
)
from diffinf_lib.attribution.task import AttributionTask, Checkpoint, Cost
from diffinf_lib.attribution.trak import Trak, trak_scores

__all__ = [
    "METHODS",
    "AttributionTask",
    "Checkpoint",
    "Cost",
    "Method",
    "Trak",
    "average_scores",
    "clip_similarity_scores",
    "das_scores",
    "get_method",
    "gradient_cosine_scores",
    "gradient_dot_scores",
    "influence",
    "influence_by_timestep",
    "pixel_distance_scores",
    "random_scores",
    "renormalised_scores",
    "scores_by_layer",
    "scores_from_gradients",
    "self_influence",
    "training_norms",
    "trak_scores",
]
