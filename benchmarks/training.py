"""Training: a step beside the plain one and beside diffusers' loop, and ways to retrain many models.

    python -m benchmarks.training

*Steps.* The unit is forward, backward and AdamW on batches that lie ready. diffusers' loop is that of its tutorial for
unconditional images, in our own words: accelerate's `Accelerator`, a shuffling loader, `DDPMScheduler.add_noise`, clipping,
a cosine schedule, `EMAModel`, the loss logged. Ours draws its batch and its noise, clips, steps and averages.

*Ways.* Seconds of one model's step where several models are trained: one after another, the same compiled (what compiling
took stands beside it, once for all models), stacked by 4 and by 8 (`train_many(together=...)`), and in two processes. Each
process has one thread unless `--threads` says otherwise.

Beside the wall time stands the processors' time, which other work on the machine disturbs less; the load is recorded.
"""

import multiprocessing as mp
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

import diffinf_lib as di
from benchmarks import fit, harness
from diffinf_lib.training import Trainer
from diffinf_lib.training.stacked import StackedTrainer

CASES = ("digits", "cifar2-tiny")
WIDTHS = (1, 4, 8)
COMPILED = "one after another, compiled"
IMAGES = 150
"""Images of a retraining, half of the presets' 300; random ones, for nothing here depends on what they show."""


class Case:
    """A preset's network, options of its retraining, and images of its size."""

    def __init__(self, name: str, device: str, compiled: bool = False):
        preset = di.get_preset(name)
        self.preset, self.device = preset, device
        self.config = replace(preset.retraining(), steps=10**6, compile=compiled, lr_schedule="constant")
        self.images = fit.random_images(IMAGES, (preset.unet.in_channels, *2 * [preset.unet.sample_size]))

    def model(self, seed: int = 0) -> di.Denoiser:
        """A fresh one, to be trained."""
        return di.build_model(self.preset.unet, self.preset.process, seed=seed).to(self.device).train()

    def trainer(self, seed: int = 0) -> Trainer:
        """A training by itself."""
        return Trainer(self.model(seed), self.images, self.config, seed)

    def stack(self, width: int) -> StackedTrainer:
        """A full stack."""
        stack = StackedTrainer(self.model(), self.config, width)
        for seed in range(width):
            stack.enter(self.model(seed), self.images, seed)
        return stack


def repeated(work: Callable[[], Any], times: int) -> Callable[[], float]:
    """So many calls as one, which gives the processors' time that other processes spent on it: none."""

    def calls() -> float:
        for _ in range(times):
            work()
        return 0.0

    return calls


def in_rounds(works: Mapping[str, tuple[Callable[[], float], int]], repeats: int) -> dict[str, dict[str, Any]]:
    """Works in turn, see `harness.alternate`: seconds of one model's step, of the wall and of processors.

    Args:
        works: what is timed, and how many model's steps it makes; the first is the unit.
    """
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(1 + repeats):  # the first is not timed
        for name, (work, count) in works.items():
            elsewhere: list[float] = []
            before = time.process_time()
            taken = harness.timed(lambda work=work, elsewhere=elsewhere: elsewhere.append(work()))
            if turn:
                wall[name].append(taken / count)
                cpu[name].append((time.process_time() - before + elsewhere[0]) / count)
    unit = next(iter(works))
    return {
        name: {
            "seconds": [round(value, 6) for value in wall[name]], "cpu_seconds": [round(value, 6) for value in cpu[name]],
            "median": statistics.median(wall[name]), "min": min(wall[name]),
            "ratio": harness.paired_ratio(wall[name], wall[unit]), "cpu_ratio": harness.paired_ratio(cpu[name], cpu[unit]),
        }
        for name in works
    }  # fmt: skip


def bare_step(case: Case) -> Callable[[], None]:
    """Forward, backward and AdamW on batches that lie ready: what no training can do without."""
    model, config = case.model(), case.config
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    ready = [Trainer(case.model(), case.images, config, 0).batches.of_step(step) for step in range(2)]
    noisy = [(model.process.noisy(*batch[:3]), batch.timesteps, batch.noise) for batch in ready]
    made = iter(range(10**9))

    def step() -> None:
        state, timesteps, target = noisy[next(made) % len(noisy)]
        optimizer.zero_grad(set_to_none=True)
        functional.mse_loss(model(state, timesteps), target).backward()
        optimizer.step()

    return step


def diffusers_loop(case: Case) -> Callable[[], None]:
    """A step of the loop that diffusers' users write, options as ours."""
    from accelerate import Accelerator
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel

    config, accelerator = case.config, Accelerator(cpu=case.device == "cpu")
    network, scheduler = case.model().network, case.preset.process.scheduler("ddpm")
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, config.steps)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(case.images.images), config.batch_size, shuffle=True, drop_last=True
    )
    network, optimizer, loader, schedule = accelerator.prepare(network, optimizer, loader, schedule)
    average = EMAModel(network.parameters(), config.ema_max_decay, use_ema_warmup=True, power=config.ema_power)
    logged: list[float] = []

    def endless() -> Iterator[torch.Tensor]:
        while True:
            for (images,) in loader:
                yield images

    batches = endless()

    def step() -> None:
        images = next(batches)
        noise = torch.randn_like(images)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(images),), device=images.device)
        noisy = scheduler.add_noise(images, noise, timesteps)
        with accelerator.accumulate(network):
            loss = functional.mse_loss(network(noisy, timesteps).sample, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(network.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        average.step(network.parameters())
        logged.append(loss.detach().item())

    return step


def steps(name: str, options: Any) -> dict[str, Any]:
    """A step of each loop."""
    case = Case(name, options.device)
    loops = {
        "forward + backward + AdamW": bare_step(case),
        "ours": case.trainer().advance,
        "diffusers' loop": diffusers_loop(case),
    }
    return in_rounds(
        {row: (repeated(step, options.steps), options.steps) for row, step in loops.items()}, options.repeats
    )


def ways(name: str, options: Any) -> dict[str, Any]:
    """A model's step in each way, and models an hour."""
    case = Case(name, options.device)
    works = {"one after another": (repeated(case.trainer().advance, options.steps), options.steps)}
    compile_seconds = None
    if options.compile:
        compiled = Case(name, options.device, compiled=True)
        compile_seconds = harness.timed(compiled.trainer(0).advance)
        works[COMPILED] = (repeated(compiled.trainer(1).advance, options.steps), options.steps)
    for width in WIDTHS:
        times = max(1, options.steps // width)
        works[f"stacked by {width}"] = (repeated(case.stack(width).advance, times), width * times)
    with _processes(2, name, options) as both:
        works["two processes"] = (both, 2 * options.steps)
        rows = in_rounds(works, options.repeats)
    for row in rows.values():
        row["models_an_hour"] = 3600 / (row["median"] * case.preset.subsets.steps)
    if options.compile:
        rows[COMPILED]["compile_seconds"] = compile_seconds
    return rows


@contextmanager
def _processes(count: int, name: str, options: Any) -> Iterator[Callable[[], float]]:
    """Processes that each make a model's steps when asked, all at once."""
    context, pipes, workers = mp.get_context("spawn"), [], []
    for seed in range(count):
        here, there = context.Pipe()
        worker = context.Process(
            target=_worker, args=(there, name, options.device, options.threads, seed, options.steps), daemon=True
        )
        worker.start()
        pipes.append(here)
        workers.append(worker)

    def all_at_once() -> float:
        for pipe in pipes:
            pipe.send(True)
        return sum(pipe.recv() for pipe in pipes)

    try:
        yield all_at_once
    finally:
        for pipe, worker in zip(pipes, workers, strict=True):
            pipe.send(False)
            worker.join()


def _worker(pipe: Any, name: str, device: str, threads: int, seed: int, count: int) -> None:
    torch.set_num_threads(threads)
    trainer = Case(name, device).trainer(seed)
    while pipe.recv():
        before = time.process_time()
        repeated(trainer.advance, count)()
        harness.synchronize()
        pipe.send(time.process_time() - before)


def _shown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        (row, 1e3 * v["median"], 1e3 * v["min"], v["ratio"], v["cpu_ratio"], v.get("models_an_hour"))
        for row, v in rows.items()
    ]
    return harness.table(lines, ["", "median ms", "min ms", "× first", "× first, CPU", "models an hour"])


def main(arguments: list[str] | None = None) -> None:
    """Run, print the tables, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=8, help="steps of a timed round")
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="presets")
    parser.add_argument(
        "--compile", action="store_true", help="the compiled step too: it takes a minute or more to make"
    )
    options = parser.parse_args(arguments)
    harness.settle(options)
    before, results = os.getloadavg()[0], {}
    for name in options.cases:
        found = results[name] = {"steps": steps(name, options), "ways": ways(name, options)}
        for part, rows in found.items():
            print(f"{name}, {part}\n{_shown(rows)}\n", flush=True)
    settings = {"steps": options.steps, "threads": options.threads, "device": options.device, "images": IMAGES,
                "load": [round(before, 2), round(os.getloadavg()[0], 2)]}  # fmt: skip
    print(harness.write_results(options.name or "training", settings, results, options.out))


if __name__ == "__main__":
    main()
