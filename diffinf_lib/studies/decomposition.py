"""Decomposition: on a network small enough, each step from leaving an image out to the score that predicts it.

Training is made exact: all images' draws are fixed, every training goes down the same finite sum, and only the initial weights
differ from seed to seed. Every model of every seed is attributed in turn. Each rung answers the same question, by
how much a query's loss changes without an image, and differs from the rung before it in one thing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf_lib.artifacts import plain, run_folder, write_bundle
from diffinf_lib.configuration import DrawConfig, Expectation, MeasurementConfig, Process
from diffinf_lib.data import ImageSet, load_dataset
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.evaluation import spearman
from diffinf_lib.evaluation.resampling import Estimate, Resamples, resample_mean
from diffinf_lib.evaluation.statistics import spearman_brown, split_half_reliability
from diffinf_lib.presets import get_preset
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.runs import Kept
from diffinf_lib.studies.answers import CURVATURES, STEPS, TRUTH, Answers, DecompositionConfig
from diffinf_lib.studies.fixed_sum import FixedSum
from diffinf_lib.studies.study import Arrays


class Perceptron(nn.Module):
    """ε_θ of small images: one hidden layer with SiLU over the pixels of x_t and the time."""

    def __init__(self, pixels: int, hidden: int, timesteps: int):
        super().__init__()
        self.timesteps = timesteps
        self.hidden, self.out = nn.Linear(pixels + 1, hidden), nn.Linear(hidden, pixels)

    def forward(self, noisy: Float[Tensor, "B C H W"], timesteps: Tensor) -> Float[Tensor, "B C H W"]:
        time = 2 * timesteps.to(noisy).unsqueeze(1) / self.timesteps - 1
        inputs = torch.cat([noisy.flatten(1), time], 1)
        return self.out(F.silu(self.hidden(inputs))).view_as(noisy)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """The study: a cell of each seed, computed once and kept, and a bundle of all of them.

    Attributes:
        preset: name of the preset whose images are taken; their sides are halved by averaging.
        root: the run's folder, in which cells are kept; default `<runs>/<preset>`.
    """

    preset: str = "digits"
    config: DecompositionConfig = DecompositionConfig()
    root: Path | str | None = None

    # --- what is trained, and on what

    @cached_property
    def images(self) -> tuple[ImageSet, ImageSet]:
        """The training images and the queries, at half their size."""
        data = load_dataset(get_preset(self.preset).dataset)
        some = data.train.subset(slice(self.config.images)), data.queries.subset(slice(self.config.queries))
        train, queries = (ImageSet(F.avg_pool2d(one.images, 2), one.labels, one.ids) for one in some)
        return train, queries

    def model(self, seed: int) -> Denoiser:
        """The network of one seed before its training, in float64."""
        process = Process()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_seed("decomposition", seed))
            network = Perceptron(self.images[0].images[0].numel(), self.config.hidden, process.num_train_timesteps)
        return Denoiser(network, process).double()

    def sums(self, model: Denoiser) -> tuple[FixedSum, FixedSum]:
        """The losses of the training images and of the queries, each over its fixed draws."""
        train, queries = self.images
        trained_on = Expectation(DrawConfig(self.config.draws), "decomposition")
        measured = MeasurementConfig(draws=DrawConfig(self.config.query_draws)).expectation()
        pairs = ((train, trained_on), (queries, measured))
        batches = (next(one.batches(model, images, len(images) * one.draws.count)) for images, one in pairs)
        of_train, of_queries = (FixedSum(model, batch) for batch in batches)
        return of_train, of_queries

    # --- cells

    def kept(self, seed: int) -> Kept:
        """The place of a seed's cell."""
        train, queries = self.images
        parts = plain(self.config) | {"images": [train.digest, queries.digest], "seed": seed}
        parts.pop("seeds")
        return Kept(run_folder(self.preset, self.root), "decomposition", parts, f"seed-{seed}")

    def cell(self, seed: int) -> Arrays:
        """A seed's cell, computed by the first call and kept: see `computed`."""
        return dict(self.kept(seed).arrays(lambda: self.computed(seed)))

    def computed(self, seed: int) -> Arrays:
        """Of the model of one seed: `answers [rungs, Q, N]`, the answer of each of `STEPS`; `by_damping [4, D, Q, N]`, those
        of `CURVATURES`; and numbers that say how the training ended."""
        return Answers(self.config, seed, *self.sums(self.model(seed))).arrays()

    # --- the bundle

    def bundle(self, name: str | None = None, root: Path | str | None = None) -> Path:
        """Compute what is missing, write the bundle and return its folder.

        Arrays: `answers [rungs, K, Q, N]`; `before`, `truth` and `own [rungs, K, Q]`, the rank correlation over training images
        with the rung before, with leave-one-out of the other seeds (their mean), and with that of the same seed; `error [rungs,
        K, Q]`, ‖answer − that before‖ / ‖that before‖; `dampings [D]`; `truth_by_damping` and `own_by_damping [4, D, K, Q]`.
        Metrics: `results`, see `results`; `dampings`, the same correlations as means with intervals; `reliability`, of
        leave-one-out of one seed and of the mean over all; `models`, how each training ended.
        """
        cells = [self.cell(seed) for seed in range(self.config.seeds)]
        arrays, metrics = contents(cells, self.config.dampings)
        manifests = [self.kept(seed).manifest for seed in range(self.config.seeds)]
        metrics["seconds"] = round(sum(self.kept(seed).seconds for seed in range(self.config.seeds)), 1)
        metrics["commits"] = sorted({manifest["environment"]["git_commit"] for manifest in manifests})
        metrics["parameters"] = len(self.sums(self.model(0))[0].weights)
        configuration = {
            "dataset": get_preset(self.preset).dataset, "decomposition": self.config,
            "train_digest": self.images[0].digest, "query_digest": self.images[1].digest,
        }  # fmt: skip
        name = name or f"{self.preset}-decomposition"
        return write_bundle(name, arrays, metrics, configuration, made_in=manifests[0]["environment"], root=root)


# --- agreement


def contents(cells: Sequence[Mapping[str, np.ndarray]], dampings: Sequence[float]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and metrics of the bundle, from the cells of two seeds or more; see `Decomposition.bundle`."""
    answers = np.stack([cell["answers"] for cell in cells], axis=1)
    by_damping = np.stack([cell["by_damping"] for cell in cells], axis=2)
    own = answers[0]
    truth = (own.sum(0) - own) / (len(own) - 1)
    places = {step.name: place for place, step in enumerate(STEPS)}
    before = np.stack([truth if step.after == TRUTH else answers[places[step.after]] for step in STEPS])
    arrays = {
        "before": spearman(answers, before), "truth": _each(answers, truth), "own": _each(answers, own),
        "error": np.linalg.norm(answers - before, axis=-1) / np.linalg.norm(before, axis=-1),
        "truth_by_damping": _each(by_damping, truth), "own_by_damping": _each(by_damping, own),
    }  # fmt: skip
    metrics = {
        "results": results(arrays), "dampings": _of_dampings(arrays, dampings), "reliability": _reliability(own),
        "models": [{name: float(value) for name, value in cell.items() if value.ndim == 0} for cell in cells],
    }  # fmt: skip
    kept = {name: values.astype(np.float32) for name, values in ({"answers": answers} | arrays).items()}
    return kept | {"dampings": np.array(dampings)}, metrics


def _each(answers: Float[np.ndarray, "*n K Q N"], truth: Float[np.ndarray, "K Q N"]) -> Float[np.ndarray, "*n K Q"]:
    return spearman(answers, np.broadcast_to(truth, answers.shape))


def results(arrays: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for each of `STEPS`: means over queries and seeds, each with its interval over both.

    `before`, `truth`, `own` and `error` are as in the arrays. `truth_change` and `own_change` are what the rung changes in
    `truth` and `own`, in pairs with the rung before; of the first rung, `truth` less 1.
    """
    places, rows = {step.name: place for place, step in enumerate(STEPS)}, []
    for place, step in enumerate(STEPS):
        row: dict[str, Any] = {"rung": step.name, "change": step.change, "after": step.after}
        row |= {name: _estimate(arrays[name][place], 1) for name in ("before", "truth", "own")}
        row["error"] = _estimate(arrays["error"][place], np.inf)
        for name in ("truth", "own"):
            base = 1.0 if step.after == TRUTH else arrays[name][places[step.after]]
            row[f"{name}_change"] = _estimate(arrays[name][place] - base, 2)
        rows.append(row)
    return rows


def _estimate(values: Float[np.ndarray, "K Q"], bound: float) -> Estimate:
    """Mean and interval of values that are no larger than the bound; queries and seeds are both samples."""
    resamples = Resamples.draw(values.shape[1], values.shape[0], 1000, 0)
    return resample_mean(np.asarray(values, dtype=np.float64).T, resamples, bound=bound).estimate()


def _of_dampings(arrays: Mapping[str, np.ndarray], dampings: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"rung": name, "damping": damping}
        | {part: _estimate(arrays[f"{part}_by_damping"][row, column], 1) for part in ("truth", "own")}
        for row, name in enumerate(CURVATURES)
        for column, damping in enumerate(dampings)
    ]


def _reliability(own: Float[np.ndarray, "K Q N"]) -> dict[str, float]:
    """Of leave-one-out of one seed, and of its mean over all, from halves of the seeds."""
    of_all = split_half_reliability(own.transpose(2, 0, 1))
    return {"one seed": spearman_brown(of_all, 1 / len(own)), "mean of all": of_all}
