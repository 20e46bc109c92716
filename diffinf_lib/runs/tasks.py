"""Tasks of a run: its model, checkpoints and seeds as methods take them, each with its curvature."""

from dataclasses import replace

from diffinf_lib.attribution.checkpoints import split_draws
from diffinf_lib.attribution.task import AttributionTask, Checkpoint
from diffinf_lib.configuration import CurvatureConfig, MeasurementConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.loading import load_model
from diffinf_lib.runs.attribution import fitted, keeps_training_gradients
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.run import Run
from diffinf_lib.training import TrainingResult, learning_rate_factor
from diffinf_lib.training.progress import EMA

ENSEMBLE = 4
"""Models of an ensemble, the run's own among them."""


def checkpoint(
    run: Run,
    model: Denoiser | None = None,
    name: str = "final",
    config: CurvatureConfig | None = None,
    *,
    step: int | None = None,
) -> Checkpoint:
    """A model of the run with its curvature over the training images, fitted once and kept, and its price.

    Args:
        model: default the full one.
        config: default the preset's.
        step: the optimizer step its weights are from; default the last.
    """
    config, model = config or run.preset.curvature, model or run.model.model
    curvature, kept = fitted(run, model, config, name)
    draws = config.drawn_for_factors.count * config.has_factors + config.draws.count * config.has_corrections
    return Checkpoint(name, model, curvature, draws * len(run.data.train), kept.seconds, _learning_rate(run, step))


def _learning_rate(run: Run, step: int | None = None) -> float:
    """The learning rate at an optimizer step, by default the last."""
    training = run.preset.training
    return training.learning_rate * learning_rate_factor((step or training.steps) - 1, training)


def kept_steps(run: Run) -> list[int]:
    """The steps of the run's training whose weights are kept."""
    return [step for step in run.preset.training.keep_ema_at if step <= run.preset.training.steps]


def checkpoint_steps(run: Run, parts: int) -> tuple[int, ...]:
    """The steps of `parts` kept checkpoints, evenly spaced, the last one kept among them.

    Raises:
        ConfigurationError: fewer were kept.
    """
    kept = kept_steps(run)
    require(0 < parts <= len(kept), f"checkpoints={parts}: the run keeps {len(kept)}; ask for as many or fewer, or train "
            "with more in training.keep_ema_at")  # fmt: skip
    return tuple(kept[round((index + 1) * len(kept) / parts) - 1] for index in range(parts))


def checkpoint_at(
    run: Run, step: int, config: CurvatureConfig | None = None, *, parts: int = 1, model_seed: int | None = None
) -> Checkpoint:
    """The averaged weights of one step of a training on all images, with a curvature of their own.

    Args:
        config: of the curvature; default the preset's.
        parts: share the curvature's draws out over so many checkpoints.
        model_seed: of the training; default the run's own.

    Raises:
        ConfigurationError: the training keeps no weights of that step.
    """
    kept, config = run.preset.training.keep_ema_at, config or run.preset.curvature
    require(step in kept, f"checkpoint={step}: the run keeps {kept}; keep this step too")
    folder, name = run.path("model"), f"step-{step:06d}"
    if model_seed in (None, run.seed):
        _ = run.model
    else:
        place, _ = other_seed(run, int(model_seed or 0))
        folder, name = place.folder, f"seed-{model_seed}-{name}"
    model = load_model(folder / EMA / f"step-{step:06d}", device=run.device)
    return checkpoint(run, model, name, replace(config, draws=split_draws(config.draws, parts)), step=step)


def other_seed(run: Run, seed: int) -> tuple[Kept, TrainingResult]:
    """A training on all images with a seed of its own."""
    config = run.preset.training
    kept, training = run.training("trainings", f"r{seed}", run.data.train, config, seed)
    return kept, training.alone(config, device=run.device, progress=run.progress)


def checkpoints_along(run: Run, parts: int) -> list[Checkpoint]:
    """Averaged weights of some steps of the run, which share the curvature's draws out."""
    return [checkpoint_at(run, step, parts=parts) for step in checkpoint_steps(run, parts)]


def ensemble_of_run(run: Run, count: int = ENSEMBLE) -> list[Checkpoint]:
    """Models trained on everything with seeds of their own, each with its curvature; the run's own first.

    The trainings of the others are charged, the run's own is there already.
    """
    found, passes = [checkpoint(run)], run.preset.training.steps * run.preset.training.batch_size
    for seed in range(run.seed + 1, run.seed + count):
        kept, trained = other_seed(run, seed)
        at = checkpoint(run, trained.model, f"seed-{seed}")
        found.append(replace(at, training_draws=passes, training_seconds=kept.seconds))
    return found


def task_of_run(
    run: Run,
    queries: ImageSet,
    measurement: MeasurementConfig | None = None,
    *,
    at: Checkpoint | None = None,
    clip_source: str = "",
) -> AttributionTask:
    """What any method needs to score the run's training images for `queries`.

    Args:
        measurement: what is attributed; default the preset's.
        at: the model and its curvature; default the final one with the preset's.
    """
    preset = run.preset
    return AttributionTask(
        at or checkpoint(run), run.data.train, queries, measurement or preset.measurement,
        preset.gradient_draws, run.seed,
        along=lambda parts: checkpoints_along(run, parts),
        ensemble=lambda: ensemble_of_run(run), folder=run.path("gradients"), store_format=preset.store_format,
        keep_train=keeps_training_gradients(run), query_format=preset.query_format, clip_source=clip_source,
        pictures=None if run.data.autoencoder is None else run.data.pictures,
    )  # fmt: skip
