"""The public names of the package and where they live; each is loaded when it is first asked for."""

from . import (
    artifacts as artifacts,
    compression as compression,
    curvature as curvature,
    evaluation as evaluation,
    figures as figures,
    interactive as interactive,
    report as report,
    runs as runs,
    studies as studies,
    training as training,
)
from .artifacts import (
    Bundle as Bundle,
    load_benchmark as load_benchmark,
    load_bundle as load_bundle,
    show_versions as show_versions,
    write_bundle as write_bundle,
)
from .attribution import (
    METHODS as METHODS,
    AttributionTask as AttributionTask,
    Checkpoint as Checkpoint,
    Cost as Cost,
    Method as Method,
    Trak as Trak,
    average_scores as average_scores,
    clip_similarity_scores as clip_similarity_scores,
    das_scores as das_scores,
    get_method as get_method,
    gradient_cosine_scores as gradient_cosine_scores,
    gradient_dot_scores as gradient_dot_scores,
    influence as influence,
    influence_by_timestep as influence_by_timestep,
    iterative_influence as iterative_influence,
    pixel_distance_scores as pixel_distance_scores,
    random_scores as random_scores,
    renormalised_scores as renormalised_scores,
    scores_by_layer as scores_by_layer,
    scores_from_gradients as scores_from_gradients,
    self_influence as self_influence,
    training_norms as training_norms,
    trak_das_scores as trak_das_scores,
    trak_scores as trak_scores,
)
from .compression import StoreFormat as StoreFormat
from .curvature import (
    Curvature as Curvature,
    CurvatureConfig as CurvatureConfig,
    conjugate_gradient_inverse as conjugate_gradient_inverse,
    conjugate_gradient_path as conjugate_gradient_path,
    curvature_blocks as curvature_blocks,
    curvature_layers as curvature_layers,
    curvature_preconditioner as curvature_preconditioner,
    empirical_fisher_operator as empirical_fisher_operator,
    fit_curvature as fit_curvature,
    fit_with_curvlinops as fit_with_curvlinops,
    ggn_operator as ggn_operator,
    hessian_operator as hessian_operator,
    neumann_inverse as neumann_inverse,
    scores_with_inverse as scores_with_inverse,
)
from .data import (
    Dataset as Dataset,
    DatasetConfig as DatasetConfig,
    FolderImages as FolderImages,
    ImageSet as ImageSet,
    Trajectories as Trajectories,
    load_dataset as load_dataset,
    read_image_folder as read_image_folder,
)
from .diffusion import (
    Denoiser as Denoiser,
    DrawBatch as DrawBatch,
    DrawConfig as DrawConfig,
    Draws as Draws,
    Objective as Objective,
    Process as Process,
    example_draws as example_draws,
    iterate_draws as iterate_draws,
    per_draw_loss as per_draw_loss,
)
from .errors import (
    ArtifactError as ArtifactError,
    ConfigurationError as ConfigurationError,
    DataError as DataError,
    DiffinfError as DiffinfError,
    DownloadError as DownloadError,
)
from .evaluation import (
    Estimate as Estimate,
    GroundTruth as GroundTruth,
    LDSResult as LDSResult,
    Power as Power,
    RemovalOutcome as RemovalOutcome,
    TunedLDS as TunedLDS,
    ceiling as ceiling,
    constancy as constancy,
    lds as lds,
    load_ground_truth as load_ground_truth,
    paired_difference as paired_difference,
    power_analysis as power_analysis,
    predicted_changes as predicted_changes,
    random_control as random_control,
    removal_outcome as removal_outcome,
    sampled_lds as sampled_lds,
    score_reliability as score_reliability,
    seed_reliability as seed_reliability,
    self_consistency as self_consistency,
    signs_of_subsets as signs_of_subsets,
    timestep_proxies as timestep_proxies,
    tuned_difference as tuned_difference,
    tuned_lds as tuned_lds,
)
from .gradients import (
    GradientConfig as GradientConfig,
    all_gradients as all_gradients,
    example_gradient as example_gradient,
    gradient_shards as gradient_shards,
)
from .importance import timestep_proposal as timestep_proposal
from .likelihood import LikelihoodConfig as LikelihoodConfig, log_likelihood as log_likelihood
from .loading import load_model as load_model, save_model as save_model
from .measurements import MeasurementConfig as MeasurementConfig, measure as measure, measure_all as measure_all
from .models import (
    UNetConfig as UNetConfig,
    build_model as build_model,
    build_unet as build_unet,
    count_parameters as count_parameters,
)
from .options import with_options as with_options
from .planner import Plan as Plan, estimate as estimate
from .presets import PRESETS as PRESETS, Preset as Preset, get_preset as get_preset
from .randomness import keyed_generator as keyed_generator
from .report import Report as Report, attribute as attribute
from .runs import (
    as_queries as as_queries,
    baseline_scores as baseline_scores,
    curvature_of_run as curvature_of_run,
    full_model as full_model,
    generated_queries as generated_queries,
    generated_trajectories as generated_trajectories,
    ground_truth_bundle as ground_truth_bundle,
    ground_truth_shard as ground_truth_shard,
    influence_scores as influence_scores,
    lds_of_run as lds_of_run,
    measured_queries as measured_queries,
    open_run as open_run,
    queries as queries,
    query_gradients as query_gradients,
    query_sets as query_sets,
    retrained_measurements as retrained_measurements,
    subset_masks as subset_masks,
    task_of_run as task_of_run,
    train_gradients as train_gradients,
)
from .sampling import (
    SamplingConfig as SamplingConfig,
    sample as sample,
    sample_states as sample_states,
    sample_trajectories as sample_trajectories,
)
from .studies import (
    CompressionStudy as CompressionStudy,
    CurvatureChoice as CurvatureChoice,
    CurvatureStudy as CurvatureStudy,
    DrawsCell as DrawsCell,
    DrawsStudy as DrawsStudy,
    LadderStudy as LadderStudy,
    MethodCell as MethodCell,
    MethodsStudy as MethodsStudy,
    RemovalConfig as RemovalConfig,
    RemovalStudy as RemovalStudy,
    TimestepStudy as TimestepStudy,
)
from .training import TrainingConfig as TrainingConfig, TrainingResult as TrainingResult, train as train
