"""diffinf: influence functions for diffusion models. Everything public is here: `import diffinf_lib as di`."""

import os

# No library reports usage unasked.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Threads that wait by spinning slow each other down a hundredfold on a busy machine; heeded if torch is not loaded yet.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from diffinf_lib import artifacts, compression, curvature, evaluation, figures, interactive, stages, training
from diffinf_lib.artifacts import Bundle, load_benchmark, load_bundle, show_versions, write_bundle
from diffinf_lib.attribution import (
    METHODS,
    AttributionTask,
    Checkpoint,
    Cost,
    Method,
    Trak,
    average_scores,
    clip_similarity_scores,
    das_scores,
    get_method,
    gradient_cosine_scores,
    gradient_dot_scores,
    influence,
    influence_by_timestep,
    iterative_influence,
    pixel_distance_scores,
    random_scores,
    renormalised_scores,
    scores_by_layer,
    scores_from_gradients,
    self_influence,
    training_norms,
    trak_das_scores,
    trak_scores,
)
from diffinf_lib.compression import StoreFormat
from diffinf_lib.curvature import (
    Curvature,
    CurvatureConfig,
    conjugate_gradient_inverse,
    conjugate_gradient_path,
    curvature_blocks,
    curvature_layers,
    curvature_preconditioner,
    empirical_fisher_operator,
    fit_curvature,
    fit_with_curvlinops,
    ggn_operator,
    hessian_operator,
    neumann_inverse,
    scores_with_inverse,
)
from diffinf_lib.data import Dataset, DatasetConfig, ImageSet, Trajectories, load_dataset
from diffinf_lib.diffusion import (
    Denoiser,
    DrawBatch,
    DrawConfig,
    Draws,
    Objective,
    Process,
    example_draws,
    iterate_draws,
    per_draw_loss,
)
from diffinf_lib.errors import ArtifactError, ConfigurationError, DataError, DiffinfError, DownloadError
from diffinf_lib.evaluation import (
    Estimate,
    GroundTruth,
    LDSResult,
    Power,
    RemovalOutcome,
    TunedLDS,
    ceiling,
    constancy,
    lds,
    load_ground_truth,
    paired_difference,
    power_analysis,
    predicted_changes,
    random_control,
    removal_outcome,
    sampled_lds,
    score_reliability,
    seed_reliability,
    self_consistency,
    signs_of_subsets,
    timestep_proxies,
    tuned_difference,
    tuned_lds,
)
from diffinf_lib.gradients import GradientConfig, all_gradients, example_gradient, gradient_shards
from diffinf_lib.importance import timestep_proposal
from diffinf_lib.likelihood import LikelihoodConfig, log_likelihood
from diffinf_lib.loading import load_model, save_model
from diffinf_lib.measurements import MeasurementConfig, measure, measure_all
from diffinf_lib.models import UNetConfig, build_model, build_unet, count_parameters
from diffinf_lib.planner import Plan, estimate
from diffinf_lib.presets import PRESETS, Preset, get_preset, with_options
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.sampling import SamplingConfig, sample, sample_states, sample_trajectories
from diffinf_lib.stages import (
    CompressionStudy,
    CurvatureChoice,
    CurvatureStudy,
    DrawsCell,
    DrawsStudy,
    LadderStudy,
    MethodCell,
    MethodsStudy,
    RemovalConfig,
    RemovalStudy,
    TimestepStudy,
    as_queries,
    baseline_scores,
    curvature_of_run,
    full_model,
    generated_queries,
    generated_trajectories,
    ground_truth_bundle,
    ground_truth_shard,
    influence_scores,
    lds_of_run,
    measured_queries,
    open_run,
    queries,
    query_gradients,
    query_sets,
    retrained_measurements,
    subset_masks,
    task_of_run,
    train_gradients,
)
from diffinf_lib.training import TrainingConfig, TrainingResult, train
