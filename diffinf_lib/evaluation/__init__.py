"""Evaluation: how well scores predict what retraining does."""

from diffinf_lib.evaluation.ground_truth import GroundTruth, load_ground_truth
from diffinf_lib.evaluation.lds import LDSResult, ceiling, lds, paired_difference, predicted_changes
from diffinf_lib.evaluation.statistics import spearman, split_half_reliability

__all__ = [
    "GroundTruth",
    "LDSResult",
    "ceiling",
    "lds",
    "load_ground_truth",
    "paired_difference",
    "predicted_changes",
    "spearman",
    "split_half_reliability",
]
