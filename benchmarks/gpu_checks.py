"""Checks: what a device computes in true float32 against the CPU, and what less precision costs.

Every check gives errors with the tolerance that each has to keep: the norm of the difference over the norm of the CPU's. A
basis of eigenvectors is no number (signs, eigenvalues that are alike), so curvatures are compared by what they multiply.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

import diffinf_lib as di
from benchmarks.fit import random_images
from diffinf_lib.attribution import iterative
from diffinf_lib.configuration import Precision, StoreKind
from diffinf_lib.evaluation import spearman

TOLERANCES = {
    "output": 1e-5, "curvature": 1e-3, "gradients": 1e-3, "scores": 1e-2, "conjugate gradients": 2e-2, "training": 1e-3,
    "measurements": 1e-4, "sampling": 1e-3, "log-likelihood": 1e-3,
}  # fmt: skip
FORMAT_TOLERANCES = {"bfloat16": 5e-3, "int8": 1e-2, "int4": 5e-2, "int8_tensor": 1e-2, "svd": 2e-2, "svd_int8": 3e-2}
"""Where a number lies between two levels, rounding decides: some entries are a level apart."""

KEPT_BITS = "resumed bits"


class OutOfTime(BaseException):
    """A part has used up its limit; no ordinary failure, so that nothing goes on after it."""


class Bench:
    """A device, a model with its data on the CPU and there, and a curvature of the CPU's.

    Attributes:
        ends: when the part that runs has to be done, by `time.monotonic`.
    """

    ends = math.inf

    def __init__(self, device: str, smoke: bool):
        self.device, self.smoke = device, smoke
        self.preset = di.get_preset("smoke" if smoke else "digits")
        self.draws = di.DrawConfig(4 if smoke else 20)
        data = di.load_dataset(self.preset.dataset)
        self.train, self.queries = (part.subset(slice(0, 4 if smoke else 12)) for part in (data.train, data.queries))

    @cached_property
    def models(self) -> tuple[di.Denoiser, di.Denoiser]:
        """Slightly trained weights, so that no gradient vanishes: on the CPU, and the same on the device."""
        model = di.build_model(self.preset.unet, self.preset.process)
        config = replace(self.preset.training, steps=2 if self.smoke else 30, keep_ema_at=())
        trained = di.train(model, self.train, config, progress=False).model
        return trained, deepcopy(trained).to(self.device)

    @cached_property
    def curvature(self) -> di.curvature.Curvature:
        return di.fit_curvature(self.models[0], self.train, di.CurvatureConfig(draws=self.draws))

    def both(self, work: Callable[[di.Denoiser], Any]) -> tuple[Any, Any]:
        """What a function of the model gives on the device and on the CPU."""
        return work(self.models[1]), work(self.models[0])


def off(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


def judged(errors: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Errors beside their tolerances, and whether all keep them (NaN does not)."""
    rows = {
        name: {"error": error, "tolerance": limit, "right": error <= limit} for name, (error, limit) in errors.items()
    }
    return {"right": all(row["right"] for row in rows.values()), "errors": rows}


def check_curvature(bench: Bench) -> dict[str, Any]:
    """Output, and what the fitted blocks multiply, for every approximation, partition and sharing."""
    noisy = random_images(4, bench.train.shape).images
    times = torch.arange(4) * 100
    here, expected = bench.both(lambda m: m(noisy.to(m.device), times.to(m.device)))
    errors = {"output": (off(here, expected), TOLERANCES["output"])}
    configs = {
        "ekfac": {}, "kfac": {"approximation": "kfac"}, "diagonal": {"approximation": "diagonal"},
        "loss per example": {"partition": "loss_per_example"}, "reduce": {"sharing": "reduce"},
        "per draw": {"correction": "per_draw", "input_positions": None}, "separate": {"bias": "separate"},
    }  # fmt: skip
    for name, options in configs.items():
        config = di.CurvatureConfig(draws=bench.draws, **options)  # type: ignore[arg-type]
        found = bench.both(lambda m, c=config: _multiplied(di.fit_curvature(m, bench.train, c)))
        errors[name] = (off(*found), TOLERANCES["curvature"])
    found = bench.both(lambda m: _multiplied(di.curvature.fit_with_curvlinops(m, bench.train, _exact(bench.draws))))
    errors["through curvlinops"] = (off(*found), TOLERANCES["curvature"])
    return judged(errors)


def _exact(draws: di.DrawConfig) -> di.CurvatureConfig:
    return di.CurvatureConfig(
        draws=draws, factor_draws=draws, partition="loss_per_draw", input_positions=None, correction="per_draw"
    )


def _multiplied(curvature: di.curvature.Curvature) -> Tensor:
    """Each block times the same matrix, and its trace."""
    parts = []
    for layer in curvature.to("cpu").layers.values():
        values = layer.eigenvalues("kfac" if layer.kfac_eigenvalues is not None else layer.best).double()
        basis = [None if v is None else v.double() for v in (layer.input_eigenvectors, layer.output_eigenvectors)]
        exact = replace(layer, input_eigenvectors=basis[0], output_eigenvectors=basis[1])
        given = torch.randn(values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        product = exact.from_eigenbasis(values * exact.to_eigenbasis(given))
        trace = layer.eigenvalues(layer.best).double().sum()
        parts.append(
            torch.cat([product.flatten() / product.norm().clamp(min=1e-300), (trace / trace.clamp(min=1e-300)).view(1)])
        )
        parts.append(torch.stack([product.norm(), trace]))
    sizes = torch.cat(parts[1::2])
    return torch.cat([*parts[::2], sizes / sizes.norm()])


def check_gradients(bench: Bench) -> dict[str, Any]:
    """Per-example gradients, grouped and each in a batch of its own, and in every store format."""
    errors = {}
    for name, count in (("grouped", 4), ("separate", 20)):
        config = di.Expectation(di.DrawConfig(count))
        found = bench.both(lambda m, c=config: _gradients(bench, m, c, di.StoreFormat()))
        errors[name] = (off(*found), TOLERANCES["gradients"])
    for kind in get_args(StoreKind):
        form, config = di.StoreFormat(kind, rank=4, dimension=512), di.Expectation(di.DrawConfig(4))
        found = bench.both(lambda m, f=form, c=config: _gradients(bench, m, c, f))
        errors[f"kept as {kind}"] = (off(*found), FORMAT_TOLERANCES.get(kind, TOLERANCES["gradients"]))
    return judged(errors)


def _gradients(bench: Bench, model: di.Denoiser, expectation: di.Expectation, form: di.StoreFormat) -> Tensor:
    """What is read back of a store, as one vector."""
    with tempfile.TemporaryDirectory() as folder:
        found = di.gradients_of(
            model, bench.curvature, bench.train, expectation, store=Path(folder) / "g", store_format=form
        )
        return torch.cat([value.flatten().cpu() for value in found.whole().values()])


def check_scores(bench: Bench) -> dict[str, Any]:
    """Influence at several dampings, of encoded queries too, by timestep, on oneself, and by conjugate gradients."""
    shared: dict[str, Any] = {"measurement": di.MeasurementConfig(draws=bench.draws), "draws": bench.draws}
    inputs = (bench.curvature, bench.train, bench.queries)
    measured, few = shared["measurement"].expectation(), di.Expectation(bench.draws)
    work: dict[str, Callable[[di.Denoiser], Tensor]] = {
        "influence": lambda m: di.influence(m, *inputs, **shared, damping=[1e-6, 1e-4, 1e-2]),
        "kfac": lambda m: di.influence(m, *inputs, **shared, damping=[1e-4], approximation="kfac"),
        "queries in int8": lambda m: di.influence(
            m, *inputs, **shared, damping=[1e-4], query_format=di.StoreFormat("int8")
        ),
        "self-influence": lambda m: di.self_influence(
            di.gradients_of(m, bench.curvature, bench.train, few), bench.curvature, damping=[1e-4]
        ),
        "conjugate gradients": lambda m: iterative.solved_scores(
            list(iterative.solution_path(
                m, bench.curvature.to(m.device), iterative.training_ggn(m, bench.train, di.DrawConfig(2)),
                di.gradients_of(m, bench.curvature, bench.queries, measured), damping=1e-2, iterations=3,
            )),
            di.gradients_of(m, bench.curvature, bench.train, few),
        ),
    }  # fmt: skip
    return judged({name: (off(*bench.both(f)), TOLERANCES.get(name, TOLERANCES["scores"])) for name, f in work.items()})


def check_training(bench: Bench) -> dict[str, Any]:
    """Losses of some steps, and the bits of a run that was killed and goes on, on the device itself."""
    steps = 4 if bench.smoke else 40
    config = replace(bench.preset.training, steps=steps, keep_ema_at=(), checkpoint_every=steps // 2)
    start = di.build_model(bench.preset.unet, bench.preset.process)
    results = [di.train(deepcopy(start), bench.train, config, device=d, progress=False) for d in (bench.device, "cpu")]
    losses = [torch.from_numpy(result.losses) for result in results]
    resumed = _resumed(deepcopy(start), bench, config)
    same = all(
        torch.equal(a, b)
        for a, b in zip(resumed.state_dict().values(), results[0].model.state_dict().values(), strict=True)
    )
    return judged({"losses": (off(*losses), TOLERANCES["training"]), KEPT_BITS: (0.0 if same else 1.0, 0.0)})


class _Killed(Exception):
    pass


def _resumed(model: di.Denoiser, bench: Bench, config: di.TrainingConfig) -> di.Denoiser:
    """The model of a training that ended at its first checkpoint and was asked for again."""
    trainer = di.training.Trainer
    save = trainer.save

    def killed(*arguments: Any) -> None:
        save(*arguments)
        raise _Killed

    with tempfile.TemporaryDirectory() as folder:
        trainer.save = killed  # type: ignore[method-assign]
        try:
            di.train(deepcopy(model), bench.train, config, device=bench.device, out=Path(folder) / "m", progress=False)
        except _Killed:
            pass
        finally:
            trainer.save = save  # type: ignore[method-assign]
        return di.train(model, bench.train, config, device=bench.device, out=Path(folder) / "m", progress=False).model


def check_measurements(bench: Bench) -> dict[str, Any]:
    """Every measurement, the likelihood included, and samples."""
    few, steps = bench.draws, 3 if bench.smoke else 20
    measured = {
        "loss": di.MeasurementConfig("loss", few), "elbo": di.MeasurementConfig("elbo", few, levels=17),
        "simplified elbo": di.MeasurementConfig("simplified_elbo", few),
        "square norm": di.MeasurementConfig("square_norm", few),
        "log-likelihood": di.MeasurementConfig(
            "log_likelihood", levels=17, likelihood=di.configuration.LikelihoodConfig(steps=2 if bench.smoke else 4, draws=2)
        ),
    }  # fmt: skip
    errors = {}
    for name, config in measured.items():
        found = bench.both(lambda m, c=config: di.measure(m, bench.queries, c))
        errors[name] = (off(*found), TOLERANCES.get(name, TOLERANCES["measurements"]))
    for method in ("ddpm", "ddim"):
        found = bench.both(lambda m, k=method: di.sample(m, 4, bench.train.shape, method=k, steps=steps))  # type: ignore[misc]
        errors[f"samples by {method}"] = (off(*found), TOLERANCES["sampling"])
    return judged(errors)


def precision_costs(bench: Bench) -> dict[str, Any]:
    """How far outputs and scores are off at less precision, in another memory format and compiled; LDS on digits of each.

    The model of the LDS is trained on the device; its subsets are those of the ground truth that ships with the book.
    """
    preset = di.get_preset("digits")
    if bench.smoke:
        few = di.DrawConfig(2)
        preset = replace(
            preset, training=replace(preset.training, steps=2), curvature=di.CurvatureConfig(draws=few), gradient_draws=few,
            measurement=replace(preset.measurement, draws=few),
        )  # fmt: skip
    truth = di.load_ground_truth("digits-ground-truth")
    train = di.load_dataset(preset.dataset).train
    start = di.build_model(preset.unet, preset.process)
    model = di.train(start, train, replace(preset.training, keep_ema_at=()), device=bench.device, progress=False).model
    results: dict[str, Any] = {}
    reference: Tensor | None = None
    for name in (
        ("float32", "bfloat16") if bench.smoke else ("float32", "tf32", "bfloat16", "channels last", "compiled")
    ):
        try:
            with _changed(model, name) as (changed, precision):
                scores = _scores_at(changed, train, truth.queries, preset, precision)
        except Exception as error:
            results[name] = {"failed": f"{type(error).__name__}: {error}"}
            continue
        reference = scores if reference is None else reference
        ranks = spearman(scores.numpy(), reference.numpy()).mean()
        results[name] = {
            "lds": di.lds(scores, truth, bootstrap=50 if bench.smoke else 1000).mean,
            "off": off(scores, reference),
            "ranks": float(ranks),
        }
    return results


@contextmanager
def _changed(model: di.Denoiser, name: str) -> Iterator[tuple[di.Denoiser, Precision]]:
    copied = deepcopy(model)
    if name == "channels last":
        copied = copied.to(memory_format=torch.channels_last)
    if name == "compiled":
        copied.compile()
    precision: Precision = name if name in get_args(Precision) else "float32"  # type: ignore[assignment]
    yield copied, precision


def _scores_at(
    model: di.Denoiser, train: di.ImageSet, queries: di.ImageSet, preset: di.presets.Preset, precision: Precision
) -> Tensor:
    """The preset's scores, everything before them computed at a precision."""
    curvature = di.fit_curvature(model, train, replace(preset.curvature, precision=precision))
    asked, given = (
        di.gradients_of(model, curvature, images, expectation, precision=precision)
        for images, expectation in (
            (queries, preset.measurement.expectation()), (train, di.Expectation(preset.gradient_draws))
        )
    )  # fmt: skip
    return di.scores_from_gradients(asked, given, curvature, damping=preset.damping)[0]


CHECKS = {
    "curvature": check_curvature, "gradients": check_gradients, "scores": check_scores, "training": check_training,
    "measurements": check_measurements,
}  # fmt: skip
