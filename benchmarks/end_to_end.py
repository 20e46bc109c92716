"""End to end: from a trained digits model to scores `[57, 300]`, seconds by stage, and what the scores are worth (LDS).

    python -m benchmarks.end_to_end

Three engines, with two choices of draws (kronfluence has no place for the weights that the recommended ones need):

- *recommended*: 32 draws for a training gradient, antithetic, in proportion to the signal, the same for every image; 128
  such draws of its own for a query gradient; 16 for the curvature.
- *paper*: 250 uniform draws for either gradient and 30 uniform ones for the curvature, as the authors' code has it.

The engines:

- *ours*: `fit_curvature`, `gradients_of` and the products of `scores_from_gradients`, at their defaults.
- *curvlinops*: its EK-FAC operator, both passes over the curvature's draws; each image's gradient by autograd over the
  batch of its draws; query gradients multiplied by its damped inverse, all at once; dot products. This is the pipeline
  of the authors' code without its compression, whose 8 bits give NaN on this model.
- *kronfluence*: its factors, then its own pairwise scores. It knows no average over draws, so a query is a data point
  with several runs of the network (`has_shared_parameters=True` adds up a query's gradient over the runs), and a
  training data point is one draw, whose scores are averaged afterwards: scores are linear in the training gradient. The
  other way round is not open: version 1.0.1 keeps only one run's pairwise scores of a training point with several runs,
  and storing query gradients per draw would take 57 × 256 gradients. Gradients and scores are one pass there.

Draws are made while the clock runs for every engine. A small round of each engine first, not timed.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import diffinf_lib as di
from benchmarks import harness, kronfluence_peer, peers
from diffinf_lib.attribution.scoring import KeptQueries
from diffinf_lib.configuration import QUERY_PURPOSE, TRAIN_PURPOSE
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.curvature.layers import curvature_layers, layer_parameters

FIT_BATCH = 100
"""Draws a batch of the peers' fits; they are slower with 25, 50 and 200."""


@dataclass(frozen=True)
class Setting:
    """Draws of one example: for each pass of the curvature, for a training gradient, for a query gradient."""

    curvature: di.CurvatureConfig
    train: di.DrawConfig
    query: di.DrawConfig
    query_purpose: str


@dataclass(frozen=True)
class Problem:
    """What is attributed: a trained model, its training images, the queries; and the damping."""

    model: Any
    train: di.ImageSet
    queries: di.ImageSet
    damping: float
    seed: int = 0

    def first(self, train: int, queries: int) -> "Problem":
        """The same problem with fewer images."""
        return replace(self, train=self.train.subset(slice(train)), queries=self.queries.subset(slice(queries)))


class Stages:
    """A stopwatch with named stages."""

    def __init__(self) -> None:
        self.seconds = {"fit": 0.0, "gradients": 0.0, "scores": 0.0}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - started

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


Engine = Callable[[Problem, Setting, Stages], Tensor]


def ours(problem: Problem, setting: Setting, stages: Stages) -> Tensor:
    """Scores by this library."""
    model, seed = problem.model, problem.seed
    with stages("fit"):
        curvature = di.fit_curvature(model, problem.train, setting.curvature, seed=seed)
    with stages("gradients"):
        expectation = di.Expectation(setting.query, setting.query_purpose, seed)
        queries = di.gradients_of(model, curvature, problem.queries, expectation).held()
    train = di.gradients_of(model, curvature, problem.train, di.Expectation(setting.train, seed=seed))
    kept, shards, columns = KeptQueries(queries, train, curvature, Inverses([problem.damping])), train.shards(), []
    while True:
        with stages("gradients"):
            shard = next(shards, None)
        if shard is None:
            return torch.cat(columns, dim=1) / len(problem.train)
        with stages("scores"):
            columns.append(kept.scores(shard[1])[0])


def through_curvlinops(problem: Problem, setting: Setting, stages: Stages) -> Tensor:
    """Scores by curvlinops' inverse of its EK-FAC, and gradients by autograd."""
    model, seed = problem.model, problem.seed
    with stages("fit"):
        operator = peers.fit_with_curvlinops(model, _curvature_batches(problem, setting))
        inverse = peers.damped_inverse(operator, problem.damping)
    with stages("gradients"):
        queries = torch.stack(list(peers.averaged_gradients(
            model, problem.queries, setting.query, purpose=setting.query_purpose, seed=seed)))  # fmt: skip
        train = torch.stack(list(peers.averaged_gradients(
            model, problem.train, setting.train, purpose=TRAIN_PURPOSE, seed=seed)))  # fmt: skip
    with stages("scores"):
        return (inverse @ queries.T).T @ train.T / len(problem.train)


def through_kronfluence(problem: Problem, setting: Setting, stages: Stages) -> Tensor:
    """Scores by kronfluence's factors and its own pairwise scores."""
    model, seed = problem.model, problem.seed
    with kronfluence_peer.kronfluence_analyzer(model) as analyzer:
        with stages("fit"):
            kronfluence_peer.fit_factors(analyzer, _curvature_batches(problem, setting), has_shared_parameters=True)
        with stages("scores"):
            query_batches = peers.draw_batches(
                model, problem.queries, setting.query, batch_size=256, seed=seed, purpose=setting.query_purpose
            )
            train_batches = peers.draw_batches(
                model, problem.train, setting.train, batch_size=256, seed=seed, purpose=TRAIN_PURPOSE
            )
            per_draw = kronfluence_peer.kronfluence_scores(
                analyzer, kronfluence_peer.DrawPoints.one_image_each(query_batches, setting.query.count),
                kronfluence_peer.DrawPoints.one_draw_each(train_batches), damping=problem.damping, batch_size=256,
            )  # fmt: skip
            return per_draw.unflatten(1, (-1, setting.train.count)).mean(2) / len(problem.train)


def _curvature_batches(problem: Problem, setting: Setting) -> list[Any]:
    """The peers' draws for the curvature, the same in both passes, in batches of `FIT_BATCH`."""
    return peers.draw_batches(
        problem.model,
        problem.train,
        setting.curvature.draws,
        batch_size=FIT_BATCH,
        seed=problem.seed,
        purpose="corrections",
    )


ENGINES: dict[str, Engine] = {
    "ours": ours, "curvlinops": through_curvlinops, "kronfluence": through_kronfluence
}  # fmt: skip


def settings(preset: di.presets.Preset) -> dict[str, Setting]:
    """The two choices of draws."""
    uniform = di.DrawConfig(250, "uniform", "independent")
    as_paper = replace(preset.curvature, draws=di.DrawConfig(30, "uniform", "independent"))
    few = replace(preset.curvature, draws=di.DrawConfig(16))
    train, query = di.DrawConfig(32, "signal", shared=True), di.DrawConfig(128, "signal")
    return {
        "recommended": Setting(few, train, query, QUERY_PURPOSE),
        "paper": Setting(as_paper, uniform, uniform, QUERY_PURPOSE),
    }


def one_round(problem: Problem, rows: list[tuple[str, str]], choices: dict[str, Setting]) -> dict[str, Any]:
    """Every engine once, in turn: its stopwatch and its scores."""
    results = {}
    for engine, draws in rows:
        stages = Stages()
        scores = ENGINES[engine](problem, choices[draws], stages)
        results[f"{engine}, {draws} draws"] = (stages, scores)
        print(f"{engine}, {draws} draws: {stages.total:.1f} s", flush=True)
    return results


def summarised(rounds: list[dict[str, Any]], truth: di.evaluation.GroundTruth | None) -> dict[str, Any]:
    """Median seconds by stage, the ratio to the first row taken round by round, and the LDS with its interval."""
    first = next(iter(rounds[0]))
    results: dict[str, Any] = {}
    for name, (stages, scores) in rounds[0].items():
        seconds = {
            stage: statistics.median(taken[name][0].seconds[stage] for taken in rounds) for stage in stages.seconds
        }
        totals = [taken[name][0].total for taken in rounds]
        ratio = harness.paired_ratio(totals, [taken[first][0].total for taken in rounds])
        results[name] = {"seconds": seconds, "totals": totals, "total": statistics.median(totals), "ratio": ratio}
        if truth is not None:
            found = di.lds(scores, truth)
            results[name] |= {"lds": found.mean, "sem": found.sem, "interval": list(found.interval)}
    return results


def warm_up(problem: Problem, rows: list[tuple[str, str]], choices: dict[str, Setting]) -> None:
    """Each engine once on a few images: imports and first calls are nobody's cost."""
    few, uniform = problem.first(4, 2), di.DrawConfig(4, "uniform", "independent")
    small = {name: replace(setting, train=uniform, query=uniform) for name, setting in choices.items()}
    for engine, draws in rows:
        ENGINES[engine](few, small[draws], Stages())


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = _parser().parse_args(arguments)
    harness.settle(options)
    preset = di.get_preset("digits")
    ground_truth = di.load_ground_truth("digits-ground-truth", "held-out")
    run = di.open_run(preset, options.run, device=options.device, progress=False)
    problem = Problem(di.runs.full_model(run).model, run.data.train, ground_truth.queries, preset.damping)
    truth: di.evaluation.GroundTruth | None = ground_truth
    if options.train or options.queries:
        problem, truth = problem.first(options.train or 300, options.queries or 57), None
    choices = settings(preset)
    rows = [(engine, draws) for draws in options.draws for engine in options.engines]
    # kronfluence's data points carry no weights, which the recommended draws need
    rows = [row for row in rows if row != ("kronfluence", "recommended")]
    warm_up(problem, rows, choices)
    rounds = [one_round(problem, rows, choices) for _ in range(options.repeats)]
    results = summarised(rounds, truth)
    print(_table(results))
    sizes = {"train": len(problem.train), "queries": len(problem.queries), "damping": problem.damping}
    weights = sum(tensor.numel() for tensor in layer_parameters(curvature_layers(problem.model)))
    record = sizes | {"parameters": weights, "draws": choices, "repeats": options.repeats}
    record |= {"device": options.device, "dtype": "float32", "tf32": options.tf32}
    print(harness.write_results(options.name or "end-to-end", record, results, options.out))


def _table(results: dict[str, Any]) -> str:
    rows = [
        (name, *row["seconds"].values(), row["total"], row["ratio"], 100 * row["lds"] if "lds" in row else None)
        for name, row in results.items()
    ]
    return harness.table(rows, ["", "fit s", "gradients s", "scores s", "total s", "× first row", "LDS %"])


def _parser() -> argparse.ArgumentParser:
    parser = harness.arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--run", help="run folder of a trained digits model; default: runs/digits, trained if need be")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--draws", nargs="+", choices=["recommended", "paper"], default=["recommended", "paper"])
    parser.add_argument("--train", type=int, help="only so many training images; no LDS then")
    parser.add_argument("--queries", type=int, help="only so many queries; no LDS then")
    return parser


if __name__ == "__main__":
    main()
