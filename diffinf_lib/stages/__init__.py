"""Stages: the steps of a run, each a folder that is made once and then read.

    runs/<preset>/config.json
                  model/  samples/  trajectories/  retrained/k000-r0/  measurements/<what>/k000-r0/
                  curvature/  gradients/  scores/  logs/
                  draws-study/  curvature-study/  methods/  compression/  removal/  timesteps/  ladder/    one folder a cell

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
from diffinf_lib.stages.compression_study import CompressionStudy
from diffinf_lib.stages.curvature_study import CurvatureChoice, CurvatureStudy
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
from diffinf_lib.stages.ladder import LadderStudy, Rung
from diffinf_lib.stages.methods_study import MethodCell, MethodsStudy
from diffinf_lib.stages.model import (
    QUERY_SETS,
    as_queries,
    full_model,
    generated_queries,
    generated_trajectories,
    measured_queries,
    queries,
    query_sets,
)
from diffinf_lib.stages.removal import RemovalConfig, RemovalStudy
from diffinf_lib.stages.run import Run, open_run
from diffinf_lib.stages.tasks import checkpoint, task_of_run
from diffinf_lib.stages.timestep_study import TimestepStudy

__all__ = [
    "QUERY_SETS",
    "CompressionStudy",
    "CurvatureChoice",
    "CurvatureStudy",
    "DrawsCell",
    "DrawsStudy",
    "LadderStudy",
    "MethodCell",
    "MethodsStudy",
    "RemovalConfig",
    "RemovalStudy",
    "Run",
    "Rung",
    "TimestepStudy",
    "as_queries",
    "baseline_scores",
    "checkpoint",
    "collected_measurements",
    "curvature_of_run",
    "full_model",
    "generated_queries",
    "generated_trajectories",
    "ground_truth_bundle",
    "ground_truth_shard",
    "influence_scores",
    "lds_of_run",
    "measured_queries",
    "open_run",
    "queries",
    "query_gradients",
    "query_sets",
    "retrained_measurements",
    "retrained_model",
    "shard_of",
    "subset_mask",
    "subset_masks",
    "task_of_run",
    "train_gradients",
]
