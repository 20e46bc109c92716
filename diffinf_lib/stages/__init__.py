"""Stages: the steps of a run, each a folder that is made once and then read.

    runs/<preset>/config.json
                  model/  samples/  retrained/k000-r0/  measurements/k000-r0/
                  curvature/  gradients/  scores/  lds/  logs/

Any stage can be killed and asked for again; it goes on and ends with the same files.
"""

from diffinf_lib.stages.attribution import (
    baseline_scores,
    curvature_of_run,
    influence_scores,
    lds_of_run,
    query_gradients,
    train_gradients,
)
from diffinf_lib.stages.draws_study import DrawsCell, DrawsStudy
from diffinf_lib.stages.ground_truth import (
    collected_measurements,
    ground_truth_bundle,
    ground_truth_shard,
    retrained_measurements,
    retrained_model,
    shard_of,
    subset_mask,
    subset_masks,
)
from diffinf_lib.stages.model import QUERY_SETS, as_queries, full_model, generated_queries, queries, query_sets
from diffinf_lib.stages.run import Run, open_run

__all__ = [
    "QUERY_SETS",
    "DrawsCell",
    "DrawsStudy",
    "Run",
    "as_queries",
    "baseline_scores",
    "collected_measurements",
    "curvature_of_run",
    "full_model",
    "generated_queries",
    "ground_truth_bundle",
    "ground_truth_shard",
    "influence_scores",
    "lds_of_run",
    "open_run",
    "queries",
    "query_gradients",
    "query_sets",
    "retrained_measurements",
    "retrained_model",
    "shard_of",
    "subset_mask",
    "subset_masks",
    "train_gradients",
]
