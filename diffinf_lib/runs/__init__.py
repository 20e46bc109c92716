"""Runs: the stages of a run, each a folder that is made once and then read.

    runs/<preset>/config.json
                  model/                       the full model, and its weights along the way
                  samples/  trajectories/      queries drawn from it
                  retrained/  measurements/    the ground truth, one folder a retrained model
                  curvature/  gradients/  scores/  trainings/  logs/
                  draws/  methods/  curvatures/  compression/  removal/  timesteps/  ladder/
                  offers/                      studies, one folder a cell

Any stage can be killed and asked for again; it goes on and ends with the same files. But for `model/`, the name of a folder
ends in the digest of all that its content depends on, the model and the images always among it.
"""

from diffinf_lib.runs.attribution import (
    baseline_scores,
    check_training_images,
    curvature_of_run,
    influence_scores,
    lds_of_run,
    query_gradients,
    scores_of_sets,
    train_gradients,
)
from diffinf_lib.runs.ground_truth import (
    collected_measurements,
    ground_truth_bundle,
    ground_truth_shard,
    retrained_measurements,
    retrained_model,
)
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.known import KnownMeasurements, known_measurements
from diffinf_lib.runs.model import (
    QUERY_SETS,
    as_queries,
    full_model,
    generated_queries,
    generated_trajectories,
    measured_queries,
    queries,
    query_sets,
)
from diffinf_lib.runs.run import Run, open_run
from diffinf_lib.runs.subsets import shard_of, subset_mask, subset_masks
from diffinf_lib.runs.tasks import checkpoint, task_of_run

__all__ = [
    "QUERY_SETS",
    "Kept",
    "KnownMeasurements",
    "Run",
    "as_queries",
    "baseline_scores",
    "check_training_images",
    "checkpoint",
    "collected_measurements",
    "curvature_of_run",
    "full_model",
    "generated_queries",
    "generated_trajectories",
    "ground_truth_bundle",
    "ground_truth_shard",
    "influence_scores",
    "known_measurements",
    "lds_of_run",
    "measured_queries",
    "open_run",
    "queries",
    "query_gradients",
    "query_sets",
    "retrained_measurements",
    "retrained_model",
    "scores_of_sets",
    "shard_of",
    "subset_mask",
    "subset_masks",
    "task_of_run",
    "train_gradients",
]
