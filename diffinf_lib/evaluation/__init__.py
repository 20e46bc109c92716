"""Evaluation: how well scores predict what retraining does."""

from diffinf_lib.evaluation.claims import Claim, Difference, Judged, counted, judged
from diffinf_lib.evaluation.ground_truth import GroundTruth, load_ground_truth
from diffinf_lib.evaluation.lds import (
    LDSResult,
    ceiling,
    lds,
    mean_measurements,
    paired_difference,
    predicted_changes,
    sampled_lds,
)
from diffinf_lib.evaluation.observations import (
    Constancy,
    SignStudy,
    TimestepProxies,
    constancy,
    signs,
    signs_of_subsets,
    timestep_proxies,
)
from diffinf_lib.evaluation.power import Power, power_analysis
from diffinf_lib.evaluation.rectification import (
    EffectSpread,
    effect_spread,
    effects_by_score,
    image_effects,
    rectified,
    slopes_of_signs,
)
from diffinf_lib.evaluation.reliability import (
    SelfConsistency,
    random_control,
    retraining_lds,
    score_reliability,
    seed_reliability,
    self_consistency,
)
from diffinf_lib.evaluation.removal import Change, RemovalOutcome, removal_outcome
from diffinf_lib.evaluation.resampling import Estimate, Resampled
from diffinf_lib.evaluation.statistics import (
    holm,
    interval_p_value,
    spearman,
    spearman_brown,
    split_half_reliability,
)
from diffinf_lib.evaluation.tuning import TunedLDS, tuned_difference, tuned_lds

__all__ = [
    "Change",
    "Claim",
    "Constancy",
    "Difference",
    "EffectSpread",
    "Estimate",
    "GroundTruth",
    "Judged",
    "LDSResult",
    "Power",
    "RemovalOutcome",
    "Resampled",
    "SelfConsistency",
    "SignStudy",
    "TimestepProxies",
    "TunedLDS",
    "ceiling",
    "constancy",
    "counted",
    "effect_spread",
    "effects_by_score",
    "holm",
    "image_effects",
    "interval_p_value",
    "judged",
    "lds",
    "load_ground_truth",
    "mean_measurements",
    "paired_difference",
    "power_analysis",
    "predicted_changes",
    "random_control",
    "rectified",
    "removal_outcome",
    "retraining_lds",
    "sampled_lds",
    "score_reliability",
    "seed_reliability",
    "self_consistency",
    "signs",
    "signs_of_subsets",
    "slopes_of_signs",
    "spearman",
    "spearman_brown",
    "split_half_reliability",
    "timestep_proxies",
    "tuned_difference",
    "tuned_lds",
]
