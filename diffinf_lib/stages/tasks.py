"""Tasks of a run: its model, checkpoints and seeds as methods take them, each with its curvature."""

from dataclasses import replace
from pathlib import Path

from diffinf_lib.artifacts import read_json
from diffinf_lib.attribution.task import AttributionTask, Checkpoint, Cost
from diffinf_lib.attribution.trajectory import split_draws
from diffinf_lib.curvature import CurvatureConfig, fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.loading import load_model
from diffinf_lib.measurements import MeasurementConfig
from diffinf_lib.models import build_model
from diffinf_lib.stages.attribution import curvature_of_run
from diffinf_lib.stages.model import full_model
from diffinf_lib.stages.run import Run
from diffinf_lib.training import learning_rate_factor, train

ENSEMBLE = 4
"""Models of an ensemble, the run's own among them."""


def checkpoint(
    run: Run,
    model: Denoiser,
    name: str,
    config: CurvatureConfig | None = None,
    *,
    step: int | None = None,
    curvature: str = "",
) -> Checkpoint:
    """A model of the run with its curvature, fitted once and kept in `curvatures/<name>`.

    Args:
        step: the optimizer step its weights are from; default the last.
        curvature: distinguishes fits of the same model.
    """
    config = config or run.preset.curvature
    name = f"{name}-{curvature}" if curvature else name
    folder = run.path("curvatures", name)
    fitted = fit_curvature(
        model, run.data.train, config, seed=run.seed, out=folder, checkpoint_seconds=5.0,
        progress=run.progress,
    )  # fmt: skip
    return Checkpoint(name, model, fitted, *_price(run, config, folder), _learning_rate(run, step))


def final_checkpoint(run: Run) -> Checkpoint:
    """The full model with the run's own curvature."""
    fitted, price = curvature_of_run(run), _price(run, run.preset.curvature, run.path("curvature"))
    return Checkpoint("final", full_model(run).model, fitted, *price, _learning_rate(run))


def _price(run: Run, config: CurvatureConfig, folder: Path) -> Cost:
    """What fitting a curvature took."""
    draws = config.drawn_for_factors.count * config.needs_factors + config.draws.count * config.needs_corrections
    return Cost(draws * len(run.data.train), _seconds(folder))


def _learning_rate(run: Run, step: int | None = None) -> float:
    """The learning rate at an optimizer step, by default the last."""
    training = run.preset.training
    return training.learning_rate * learning_rate_factor((step or training.steps) - 1, training)


def _seconds(folder: Path) -> float:
    """What a stage took, by its manifest."""
    return float(read_json(folder / "manifest.json")["measured"]["wall_seconds"])


def checkpoint_steps(run: Run, parts: int) -> tuple[int, ...]:
    """The steps of `parts` kept checkpoints, evenly spaced, the last one kept among them.

    Raises:
        ConfigurationError: fewer were kept.
    """
    kept = [step for step in run.preset.training.keep_ema_at if step <= run.preset.training.steps]
    require(0 < parts <= len(kept), f"checkpoints={parts}: the run keeps {len(kept)}; ask for as many or fewer, or train "
            "with more in training.keep_ema_at")  # fmt: skip
    return tuple(kept[round((index + 1) * len(kept) / parts) - 1] for index in range(parts))


def checkpoints_along(run: Run, steps: tuple[int, ...], *, split: bool = True) -> list[Checkpoint]:
    """Averaged weights of some steps of the run, each with its own curvature.

    Args:
        split: share the curvature's draws out over the checkpoints.
    """
    full_model(run)
    config = run.preset.curvature
    if split:
        config = replace(config, draws=split_draws(config.draws, len(steps)))
    models = [load_model(run.path("model", "ema", f"step-{step:06d}"), device=run.device) for step in steps]
    return [
        checkpoint(run, model, f"step-{step:06d}", config, step=step, curvature=f"{config.draws.count}-draws")
        for step, model in zip(steps, models, strict=True)
    ]


def ensemble_of_run(run: Run, count: int = ENSEMBLE) -> list[Checkpoint]:
    """Models trained on everything with seeds of their own, each with its curvature; the run's own first.

    The trainings of the others are charged, the run's own is there already.
    """
    preset, found = run.preset, [final_checkpoint(run)]
    passes = preset.training.steps * preset.training.batch_size
    for seed in range(run.seed + 1, run.seed + count):
        folder = run.path("ensemble", f"r{seed}")
        model = train(
            build_model(preset.unet, preset.process, seed=seed), run.data.train, replace(preset.training, keep_ema_at=()),
            seed=seed, out=folder, device=run.device, progress=run.progress,
        ).model  # fmt: skip
        at = checkpoint(run, model, f"seed-{seed}")
        found.append(replace(at, training_draws=passes, training_seconds=_seconds(folder)))
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
        at or final_checkpoint(run), run.data.train, queries, measurement or preset.measurement,
        preset.gradient_draws, run.seed,
        along=lambda parts: checkpoints_along(run, checkpoint_steps(run, parts)),
        ensemble=lambda: ensemble_of_run(run), folder=run.path("methods-gradients"), form=preset.store_format,
        clip_source=clip_source,
    )  # fmt: skip
