"""Speed: what a device does a second, at the sizes that fit it: fits, gradients, training, many small trainings at once."""

import multiprocessing as mp
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

import diffinf_lib as di
from benchmarks import fit, harness, peers, training as training_ways
from benchmarks.gpu_checks import Bench, OutOfTime
from diffinf_lib.configuration import Precision
from diffinf_lib.errors import require
from diffinf_lib.gradients import compute
from diffinf_lib.planner.network import NetworkCount
from diffinf_lib.precision import matrix_precision

PEAKS = {"H100": (67e12, 495e12, 989e12), "H200": (67e12, 495e12, 989e12), "A100": (19.5e12, 156e12, 312e12)}
"""FLOPs a second of dense products in float32, TF32 and bfloat16, from the data sheets (SXM)."""

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
CASES = {
    "digits": fit.Case("digits", 64, 32, 512), "cifar2-small": fit.Case("cifar2-small", 16, 32, 128),
    "cifar2": fit.Case("cifar2", 8, 32, 64),
}  # fmt: skip
SMOKE = fit.Case("smoke", 2, 4, 4)


def peak_flops(precision: Precision) -> float | None:
    """The card's own figure, where it is known."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    known = next((peaks for card, peaks in PEAKS.items() if card in name), None)
    return None if known is None else known[PRECISIONS.index(precision)]


def _case(bench: Bench, name: str) -> fit.Case:
    return SMOKE if bench.smoke else CASES[name]


def _throughput(seconds: float, draws: int, flops: float, precision: Precision) -> dict[str, Any]:
    """Draws a second, FLOPs a second of plain passes over as many draws, and their share of the card's peak."""
    rate, peak = draws / seconds, peak_flops(precision)
    return {"draws_per_second": rate, "flops_per_second": rate * flops, "share": peak and rate * flops / peak}


def tried(works: dict[str, Callable[[], Any]], bench: Bench) -> dict[str, Any]:
    """Each once, what fails with what it said; then in rounds as far as there is time. The first is the unit and has to run."""
    results: dict[str, Any] = {}
    first: dict[str, float] = {}
    try:
        for name, work in works.items():
            try:
                first[name] = harness.timed(work)
            except Exception as error:  # out of memory, or not installed
                require(bool(first), f"{name}: {error}")
                results[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        running = {name: works[name] for name in first}
        rounds = (
            int((bench.ends - time.monotonic()) / (1.2 * sum(first.values()))) - 2
        )  # its own first round, and memory
        if rounds > 0:
            repeats = 1 if bench.smoke else min(rounds, 3)
            measured = harness.alternate(running, repeats, device=bench.device)
            return {name: m.summary() for name, m in measured.items()} | results
    except OutOfTime:
        if not first:
            raise
    unit = next(iter(first.values()))
    rows = {name: {"median": taken, "ratio": taken / unit, "first_call_only": True} for name, taken in first.items()}
    return rows | {name: {"failed": "no time left"} for name in works if name not in first} | results


def fits(bench: Bench, name: str) -> dict[str, Any]:
    """EK-FAC beside plain forward and backward, curvlinops and kronfluence, and at less precision."""
    case = _case(bench, name)
    works = fit.functions(case, bench.device)
    preset = di.get_preset(case.preset)
    model = di.build_model(preset.unet, preset.process).to(bench.device)
    images = fit.random_images(case.images, (preset.unet.in_channels, *2 * [preset.unet.sample_size]))
    for precision in PRECISIONS[1:]:
        config = di.CurvatureConfig(draws=di.DrawConfig(case.draws), precision=precision)
        works[f"ours, {precision}"] = lambda c=config: di.fit_curvature(model, images, c, batch_size=case.batch_size)  # type: ignore[misc]
    if bench.smoke:
        del works["kronfluence"]
    results = tried({row: works[row] for row in sorted(works, key=_later)}, bench)
    flops = NetworkCount(preset.unet, preset.curvature).gradient
    return _with_throughput(results, case.images * case.draws, flops)


def _later(row: str) -> bool:
    """What is tried last, where there may be no time for it."""
    return row == "kronfluence" or row.startswith(("ours, and", "ours, the same"))


def _with_throughput(results: dict[str, Any], draws: int, flops: float) -> dict[str, Any]:
    for name, row in results.items():
        precision = next((p for p in PRECISIONS if p in name), "float32")
        if "median" in row:
            row |= _throughput(row["median"], draws, flops, precision)
    return results


def gradients(bench: Bench, name: str) -> dict[str, Any]:
    """Gradients in the eigenbasis, separate and grouped, beside plain forward and backward over the same draws."""
    case = _case(bench, name)
    preset = di.get_preset(case.preset)
    model = di.build_model(preset.unet, preset.process).to(bench.device)
    images = fit.random_images(case.images, (preset.unet.in_channels, *2 * [preset.unet.sample_size]))
    curvature = di.fit_curvature(model, images, di.CurvatureConfig(draws=di.DrawConfig(4)), batch_size=case.batch_size)
    curvature = curvature.to(bench.device)
    batches = peers.draw_batches(model, images, di.DrawConfig(case.draws), batch_size=case.batch_size)

    def ours(precision: Precision) -> Callable[[], Any]:
        expectation = di.Expectation(di.DrawConfig(case.draws))
        return lambda: compute.gradients_in_eigenbasis(
            model, curvature, images, expectation, batch_size=case.batch_size, precision=precision
        )

    works = {"plain forward + backward": lambda: peers.plain_forward_backward(model, batches)}
    works |= {f"ours, {precision}": ours(precision) for precision in PRECISIONS}
    results = tried(works, bench)
    flops = NetworkCount(preset.unet, preset.curvature).gradient
    return _with_throughput(results, case.images * case.draws, flops)


def training(bench: Bench, name: str) -> dict[str, Any]:
    """Steps of a training at each precision, in channels-last memory and compiled, beside plain forward and backward."""
    case, steps = _case(bench, name), 2 if bench.smoke else 20
    preset = di.get_preset(case.preset)
    images = fit.random_images(256 if not bench.smoke else 4, (preset.unet.in_channels, *2 * [preset.unet.sample_size]))
    size = min(len(images), 4 if bench.smoke else 128)
    base = di.TrainingConfig(steps=steps, batch_size=size, horizontal_flip=False)

    def trained(config: di.TrainingConfig, last: bool = False) -> Callable[[], Any]:
        model = di.build_model(preset.unet, preset.process).to(bench.device)
        model = model.to(memory_format=torch.channels_last) if last else model
        return lambda: di.train(model, images, config, progress=False)

    few = images.subset(slice(0, size))
    plain = di.build_model(preset.unet, preset.process).to(bench.device)
    batches = peers.draw_batches(plain, few, di.DrawConfig(1, noise_rule="independent"), batch_size=size) * steps
    works = {"plain forward + backward": lambda: peers.plain_forward_backward(plain, batches)}
    works |= {f"trained, {precision}": trained(replace(base, precision=precision)) for precision in PRECISIONS}
    works["trained, bfloat16, channels last"] = trained(replace(base, precision="bfloat16"), last=True)
    if not bench.smoke and name == "cifar2":
        works["trained, bfloat16, compiled"] = trained(replace(base, precision="bfloat16", compile=True))
    results = tried(works, bench)
    flops = NetworkCount(preset.unet, preset.curvature).gradient
    return _with_throughput(results, steps * size, flops)


def stacked(bench: Bench, name: str) -> dict[str, Any]:
    """A model's step where several models are trained in one step, beside one after another and that compiled."""
    widths = (1, 2) if bench.smoke else {"digits": (1, 8, 32, 64), "cifar2-small": (1, 4, 16)}.get(name, (1, 2, 4))
    case = training_ways.Case("smoke" if bench.smoke else name, bench.device)
    works: dict[str, Callable[[], Any]] = {"one after another": case.trainer().advance}
    if not bench.smoke:
        compiled = training_ways.Case(name, bench.device, compiled=True).trainer()
        works["one after another, compiled"] = compiled.advance
    works |= {f"stacked by {width}": case.stack(width).advance for width in widths}
    models = dict(zip(works, [*[1] * (len(works) - len(widths)), *widths], strict=True))
    results = tried({row: training_ways.repeated(work, 1 if bench.smoke else 10) for row, work in works.items()}, bench)
    for row, found in results.items():
        if "median" in found:
            found["model_steps_per_second"] = models[row] * (1 if bench.smoke else 10) / found["median"]
    return results


def side_by_side(bench: Bench) -> dict[str, Any]:
    """Steps a second of small trainings (digits) that share the device: 1, 2, 4 and 8 processes at a time."""
    results = {}
    for count in (1,) if bench.smoke else (1, 2, 4, 8):
        try:
            results[f"{count} processes"] = {"steps_per_second": _steps_per_second(bench, count)}
        except Exception as error:
            results[f"{count} processes"] = {"failed": f"{type(error).__name__}: {error}"}
    return results


def _steps_per_second(bench: Bench, count: int) -> float:
    context = mp.get_context("spawn")
    ready, answers = context.Barrier(count), context.Queue()
    steps = 3 if bench.smoke else 300
    workers = [
        context.Process(
            target=_small_training, args=(bench.device, bench.preset.name, steps, ready, answers), daemon=True
        )
        for _ in range(count)
    ]
    with _ended(workers):
        spans = [answers.get(timeout=120) for _ in workers]
    return count * steps / (max(end for _, end in spans) - min(start for start, _ in spans))


@contextmanager
def _ended(workers: list[Any]) -> Iterator[None]:
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()


def _small_training(device: str, name: str, steps: int, ready: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    preset = di.get_preset(name)
    data = di.load_dataset(preset.dataset).train
    config = replace(preset.training, steps=2, keep_ema_at=())
    model = di.train(di.build_model(preset.unet, preset.process).to(device), data, config, progress=False).model
    ready.wait(timeout=120)
    start = time.time()
    with matrix_precision("float32", device):
        di.train(model, data, replace(config, steps=steps), progress=False)
    harness.synchronize()
    answers.put((start, time.time()))
