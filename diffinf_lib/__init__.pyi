"""The public names of the package and where they live; each is loaded when it is first asked for."""

from . import (
    artifacts as artifacts,
    attribution as attribution,
    checks as checks,
    compression as compression,
    configuration as configuration,
    curvature as curvature,
    data as data,
    diffusion as diffusion,
    errors as errors,
    evaluation as evaluation,
    figures as figures,
    gradients as gradients,
    importance as importance,
    interactive as interactive,
    likelihood as likelihood,
    loading as loading,
    measurements as measurements,
    models as models,
    options as options,
    planner as planner,
    presets as presets,
    randomness as randomness,
    report as report,
    runs as runs,
    sampling as sampling,
    studies as studies,
    tables as tables,
    training as training,
)
from .artifacts import (
    load_benchmark as load_benchmark,
    load_bundle as load_bundle,
    show_versions as show_versions,
)
from .attribution import (
    METHODS as METHODS,
    get_method as get_method,
    influence as influence,
    scores_from_gradients as scores_from_gradients,
    self_influence as self_influence,
)
from .configuration import (
    CurvatureConfig as CurvatureConfig,
    DatasetConfig as DatasetConfig,
    DrawConfig as DrawConfig,
    Expectation as Expectation,
    MeasurementConfig as MeasurementConfig,
    Process as Process,
    StoreFormat as StoreFormat,
    TrainingConfig as TrainingConfig,
)
from .curvature import (
    fit_curvature as fit_curvature,
)
from .data import (
    ImageSet as ImageSet,
    load_dataset as load_dataset,
    read_image_folder as read_image_folder,
)
from .diffusion import (
    Denoiser as Denoiser,
    per_draw_loss as per_draw_loss,
)
from .errors import (
    ConfigurationError as ConfigurationError,
    DiffinfError as DiffinfError,
)
from .evaluation import (
    ceiling as ceiling,
    lds as lds,
    load_ground_truth as load_ground_truth,
    paired_difference as paired_difference,
    tuned_lds as tuned_lds,
)
from .gradients import (
    GradientSet as GradientSet,
    gradients_of as gradients_of,
)
from .loading import (
    load_model as load_model,
    save_model as save_model,
)
from .measurements import (
    measure as measure,
)
from .models import (
    build_model as build_model,
    build_unet as build_unet,
)
from .options import (
    with_options as with_options,
)
from .presets import (
    get_preset as get_preset,
)
from .randomness import (
    keyed_generator as keyed_generator,
)
from .report import (
    Report as Report,
    attribute as attribute,
)
from .runs import (
    influence_scores as influence_scores,
    open_run as open_run,
    task_of_run as task_of_run,
)
from .sampling import (
    sample as sample,
)
from .training import (
    train as train,
)
