"""Measuring: how few draws tell retrained models apart, for several rules of drawing.

All models are measured on the same draws, so what a draw does to every model alike harms no comparison. What is left, the
noise of a difference, is held against what models really differ by, and against the LDS that it costs. A cell is a retrained
model: what it measures over each number of draws and rule, and twice over many draws, the reference.

The noise of two measurements on independent draws is unrelated. So the covariance, over models, of what a measurement differs
by from one half of the reference and from the other is the variance of its noise, without bias from either half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import scores_of_sets
from diffinf_lib.configuration import DrawConfig, MeasurementConfig
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.evaluation import Estimate, GroundTruth, Resampled, ceiling, sampled_lds
from diffinf_lib.evaluation.lds import TUNABLE_SUBSETS
from diffinf_lib.evaluation.resampling import Resamples, resample_mean
from diffinf_lib.gradients import gradients_of
from diffinf_lib.measurements import measure
from diffinf_lib.options import check_counts
from diffinf_lib.runs import (
    curvature_of_run,
    retrained_model,
    shard_of,
    subset_masks,
    train_gradients,
)
from diffinf_lib.runs.ground_truth import model_name
from diffinf_lib.studies.draws import RULES as RULES_OF_LOSS
from diffinf_lib.studies.study import Arrays, Study
from diffinf_lib.studies.timesteps import RetrainedCell

RULES = RULES_OF_LOSS | {
    "elbo": {"timestep_rule": "elbo", "noise_rule": "independent"},
    "elbo, antithetic": {"timestep_rule": "elbo"},
}
"""What `DrawConfig` each rule of measuring is, but for the number of draws."""
MEASURED_RULES = ("uniform", "stratified", "stratified, antithetic", "signal, antithetic")
COUNTS = (8, 32, 128)
HALVES = 2
"""Independent halves of the reference."""
BOOTSTRAP = 1000

PerModel = Float[np.ndarray, "M K Q"]
PerSubset = Float[np.ndarray, "Q M"]


def covariances(first: PerModel, second: PerModel, *, averaged: bool) -> PerSubset:
    """Each subset's share in the covariance over subsets of two measurements: `[Q, M]`; their mean over subsets is it.

    Args:
        averaged: of the means over seeds, which an LDS is held against; else of single models, seed by seed.
    """
    a, b = ((x.mean(1, keepdims=True) if averaged else x) for x in (first, second))
    products = (a - a.mean(0)) * (b - b.mean(0))
    shares: np.ndarray = products.mean(1).T * (len(a) / (len(a) - 1))
    return shares


def seed_covariances(first: PerModel, second: PerModel) -> PerSubset:
    """The same for what is left beside subsets and seeds, the noise of retraining: `[Q, M]`."""
    a, b = (x - x.mean(1, keepdims=True) - x.mean(0) + x.mean((0, 1)) for x in (first, second))
    subsets, seeds, _ = a.shape
    shares: np.ndarray = (a * b).sum(1).T * (subsets / ((subsets - 1) * (seeds - 1)))
    return shares


def share_of(part: PerSubset, whole: PerSubset, resamples: Resamples) -> Estimate:
    """One variance as a share of another, both means over queries, with its interval by the delta method."""
    value = float(part.mean() / whole.mean())
    rest = resample_mean((part - value * whole) / whole.mean(), resamples, bound=np.inf).estimate().interval
    return Estimate(value, (value + rest[0], value + rest[1]))


@dataclass(frozen=True)
class Point:
    """A rule and a number of draws."""

    rule: str
    count: int

    @property
    def draws(self) -> DrawConfig:
        """What the measurement takes."""
        return DrawConfig(self.count, **RULES[self.rule])


@dataclass(eq=False)
class MeasuringStudy(Study[RetrainedCell]):
    """The study of one run, over the models of its ground truth; those that are not there are trained.

    Its bundle's arrays, float32: `measured [rules, counts, M, K, Q]`; `reference [2, M, K, Q]`, its halves; `masks [M, N]`;
    `scores [Q, N]`, those of the run, where there are subsets enough for an LDS. Its metrics have `spread`, variances between
    subsets and of retraining, mean over queries; and `results`, one entry a rule and number of draws:

    - `noise`: variance of the noise of one model's measurement; that of a difference of two models is twice that.
    - `share_of_one`, `share`: the variance of the noise in that of all else between single models, and between means over
      seeds.
    - `lds` and `lost`: of the run's scores on these measurements, and less that on the reference, paired.
    - `own_lds` and `own_lost`: of scores whose query gradients take these very draws.
    - `gradients_lost`: of those scores on the reference, less the run's: what few draws of query gradients cost.

    Attributes:
        counts: numbers of draws.
        rules: names, see `RULES`.
        reference: draws of each half of the reference, by the rule of the preset's measurement.
        query_count: queries, the first held-out ones.
        subsets: number of subsets M; 0: the preset's.
        seeds: trainings of each subset, K; 0: the preset's.
        measurement: label of what is measured, one of the preset's measurements.

    Raises:
        ConfigurationError: what is measured is no mean over draws of single images, or there are not so many queries.
    """

    counts: Sequence[int] = COUNTS
    rules: Sequence[str] = MEASURED_RULES
    reference: int = 512
    query_count: int = 24
    subsets: int = 0
    seeds: int = 0
    measurement: str = "loss"

    name = "measuring"

    def __post_init__(self) -> None:
        super().__post_init__()
        config, held = self.run.preset.subsets, len(self.run.data.queries)
        self.config = self.run.preset.measurement_labelled(self.measurement)
        studied = self.config.attributable and not self.config.expectation().objective.on_trajectories
        require(
            studied,
            f"measurement={self.measurement!r}: the study is of means over draws of an image; give loss or elbo",
        )
        check_counts(reference=self.reference, queries=self.query_count)
        require(
            self.query_count <= held,
            f"queries={self.query_count}: there are {held} held-out ones; give as many or fewer",
        )
        for rule in self.rules:
            require(rule in RULES, f"rule={rule!r}: give one of {', '.join(RULES)}")
        self.subsets, self.seeds = self.subsets or config.count, self.seeds or config.seeds
        require(self.subsets > 1, f"subsets={self.subsets}: give two or more, for models are compared")
        self.points = [Point(rule, count) for rule in self.rules for count in self.counts]
        self.drawn = [point.draws for point in self.points]  # wrong counts are refused before any model is read
        self.reference_draws = replace(self.config.draws, count=self.reference)

    def bundle(self, name: str | None = None, root: Path | str | None = None) -> Path:
        """As of every study; of what is no loss the default name says what it is."""
        label = "" if self.measurement == "loss" else f"{self.measurement}-"
        return super().bundle(name or f"{self.run.preset.name}-{label}{self.name}", root)

    def cells(self) -> list[RetrainedCell]:
        return [RetrainedCell(*pair) for pair in shard_of(self.subsets, self.seeds, 0, 1)]

    def label(self, cell: RetrainedCell) -> str:
        return model_name(*cell)

    def depends(self, cell: RetrainedCell) -> dict[str, Any]:
        found = {"points": self.drawn, "reference": self.reference_draws, "query_count": self.query_count}
        return found | ({} if self.measurement == "loss" else {"measurement": self.config})

    def options(self) -> dict[str, Any]:
        return super().options() | {
            "rules": {rule: RULES[rule] for rule in self.rules},
            "seeds": list(range(self.seeds)),
        }

    @cached_property
    def images(self) -> ImageSet:
        """The queries that are measured."""
        return self.queries["held-out"].subset(torch.arange(self.query_count))

    def _over(self, draws: DrawConfig) -> MeasurementConfig:
        return replace(self.config, draws=draws)

    @property
    def _seeds_of_draws(self) -> tuple[int, ...]:
        """Of the halves of the reference, and of all points; none is the run's own, whose draws its scores know."""
        return tuple(self.run.seed + 1 + place for place in range(HALVES + 1))

    def computed(self, cell: RetrainedCell) -> Arrays:
        model = retrained_model(self.run, *cell)
        *halves, of_points = self._seeds_of_draws

        def measured(draws: DrawConfig, seed: int) -> Float[np.ndarray, "Q"]:
            return measure(model, self.images, self._over(draws), seed=seed).numpy()

        return {
            "measured": np.stack([measured(draws, of_points) for draws in self.drawn]),
            "reference": np.stack([measured(self.reference_draws, seed) for seed in halves]),
        }

    def measurements(self, part: str) -> Float[np.ndarray, "parts M K Q"]:
        """What every model measured, float64: at every point (`measured`), or by each half of the reference (`reference`).

        Raises:
            ArtifactError: some models have not measured yet; the message counts them.
        """
        self.require_finished()
        read = [[self.arrays(RetrainedCell(k, r))[part] for r in range(self.seeds)] for k in range(self.subsets)]
        return np.array(read).transpose(2, 0, 1, 3)

    def scores(self) -> Float[Tensor, "rows Q N"]:
        """The run's scores, and those with query gradients over the draws of each point; computed once and kept."""
        run, preset = self.run, self.run.preset

        def scores() -> Arrays:
            curvature, own_draws = curvature_of_run(run), self.config.expectation(run.seed)
            of_points = [self._over(draws).expectation(self._seeds_of_draws[-1]) for draws in self.drawn]
            sets = [
                gradients_of(run.model.model, curvature, self.images, expectation, store_format=preset.query_format)
                for expectation in (own_draws, *of_points)
            ]
            inverses = Inverses([preset.damping], [preset.curvature.approximation])
            return {"scores": torch.cat(scores_of_sets(sets, train_gradients(run), curvature, inverses)).numpy()}

        depends = {"points": self.drawn, "query_count": self.query_count, "damping": preset.damping,
                   "measurement": self.config}  # fmt: skip
        return torch.from_numpy(self.kept_besides("scores", depends).arrays(scores)["scores"])

    def _truth(self, measured: PerModel) -> GroundTruth:
        masks, train_ids = subset_masks(self.run, self.subsets), self.run.data.train.ids
        return GroundTruth(masks, torch.from_numpy(measured), train_ids, self.images.ids)

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """Measurements, and a row for each point."""
        measured, halves = self.measurements("measured"), self.measurements("reference")
        rows = [
            {"rule": point.rule, "count": point.count} | self._noise(values, halves)
            for point, values in zip(self.points, measured, strict=True)
        ]
        shape = (len(self.rules), len(self.counts), *measured.shape[1:])
        arrays = {"measured": measured.reshape(shape), "reference": halves}
        metrics: dict[str, Any] = {
            "counts": self.counts, "rules": self.rules, "retrained_models": len(self.cells()), "seconds": self.seconds(),
            "reference": {"draws": HALVES * self.reference, "noise": self._noise_of_reference(halves)},
            "spread": self._spread(halves), "results": rows,
        }  # fmt: skip
        if self.subsets >= TUNABLE_SUBSETS:
            scores = self.scores()
            arrays["scores"] = scores[0].numpy()
            metrics |= self._lds(scores, measured, halves, rows)
        floats = {name: values.astype(np.float32) for name, values in arrays.items()}
        return floats | {"masks": subset_masks(self.run, self.subsets).numpy()}, metrics

    def _noise(self, measured: PerModel, halves: Float[np.ndarray, "2 M K Q"]) -> dict[str, Any]:
        """The noise of one point, and its share in what is measured."""
        resamples = Resamples.draw(self.query_count, self.subsets, BOOTSTRAP, 0)
        first, second = measured - halves
        of_one = covariances(first, second, averaged=False)
        found: dict[str, Any] = {"noise": float(of_one.mean())}
        for name, averaged in (("share_of_one", False), ("share", True)):
            noise, whole = (covariances(*pair, averaged=averaged) for pair in ((first, second), halves))
            share = share_of(noise, whole, resamples)
            found |= {name: share.value, f"{name}_interval": share.interval}
        return found

    def _noise_of_reference(self, halves: Float[np.ndarray, "2 M K Q"]) -> float:
        """The variance of the noise of one model's reference: a quarter of that of the difference of its halves."""
        apart = halves[0] - halves[1]
        return float(covariances(apart, apart, averaged=False).mean() / HALVES**2)

    def _spread(self, halves: Float[np.ndarray, "2 M K Q"]) -> dict[str, float | None]:
        """Variances between subsets and of retraining, free of the noise of draws."""
        whole = float(covariances(*halves, averaged=True).mean())
        if self.seeds == 1:
            return {"whole": whole, "subsets": None, "retraining": None}
        retraining = float(seed_covariances(*halves).mean())
        return {"whole": whole, "subsets": whole - retraining / self.seeds, "retraining": retraining}

    def _lds(
        self, scores: Float[Tensor, "rows Q N"], measured: Float[np.ndarray, "points M K Q"],
        halves: Float[np.ndarray, "2 M K Q"], rows: Sequence[dict[str, Any]],
    ) -> dict[str, Any]:  # fmt: skip
        """Adds to each row the LDS on its measurements; returns that on the reference, and the ceiling."""
        reference = self._truth(halves.mean(0))
        base, *on_reference = sampled_lds(list(scores), reference, bootstrap=BOOTSTRAP)

        def lost(name: str, found: Resampled) -> dict[str, Any]:
            change = (found - base).estimate()
            return {name: change.value, f"{name}_interval": change.interval}

        for row, values, own, held in zip(rows, measured, scores[1:], on_reference, strict=True):
            by_run, by_own = sampled_lds([scores[0], own], self._truth(values), bootstrap=BOOTSTRAP)
            row |= {"lds": by_run.mean} | lost("lost", by_run)
            row |= {"own_lds": by_own.mean} | lost("own_lost", by_own)
            row |= lost("gradients_lost", held)
        several = {"ceiling": ceiling(reference)} if self.seeds > 1 else {}
        return {"lds": base.mean, "lds_interval": base.estimate().interval, **several}
