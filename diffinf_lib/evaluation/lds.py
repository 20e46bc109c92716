"""LDS: the linear datamodelling score, how well scores predict the outcome of retraining (Park et al. 2023, section 2).

For a query q the LDS is Spearman's correlation, over subsets k, between the predicted change Σ_{n ∉ S_k} scores[q, n] and
the measurement of models retrained on S_k, averaged over seeds; the LDS of a method is the mean over queries.

Intervals are for the LDS that this many subsets give on average: a rank correlation of few subsets lies a little below
that of many (about 1 point at 64 subsets, 3 at 16, for an LDS of 75 %), so only values of as many subsets compare.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.resampling import Estimate, Resampled, Resamples, resample_spearman
from diffinf_lib.evaluation.statistics import spearman, split_half_reliability
from diffinf_lib.shapes import AnyScores, ScoresOfOptions

MINIMUM_SUBSETS = 4
"""Below this many subsets a rank correlation says nothing."""
TUNABLE_SUBSETS = 2 * MINIMUM_SUBSETS
"""What choosing an option on one half of the subsets and judging it on the other takes."""


@dataclass(frozen=True)
class LDSResult:
    """LDS as fractions, −1 to 1.

    Attributes:
        mean: over queries.
        interval: of the mean, resampled over subsets and queries together (see `resampling`).
        sem: standard error over queries alone, as the literature prints it; it takes the subsets as given.
        ceiling: what one exact retraining reaches: one seed against the mean of the others. NaN with one seed.
        reliability: split-half reliability of the measurements' mean over seeds; its square root bounds any LDS.
        per_query: `[Q]`.
    """

    mean: float
    interval: tuple[float, float]
    sem: float
    ceiling: float
    reliability: float
    per_query: Float[np.ndarray, "Q"]

    @property
    def disattenuated(self) -> float:
        """mean / √reliability: the LDS that measurements without noise of retraining would give (Spearman 1904).

        It compares methods across ground truths of different noise. It is an estimate from a model, not a score: it can
        pass 1, it does not compare with raw values, and the ceiling is raw. NaN with one seed, or where the seeds agree no
        better than by chance.
        """
        return self.mean / self.reliability**0.5 if self.reliability > 0 else float("nan")

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}], ceiling {100 * self.ceiling:.1f} %, "
            f"disattenuated {100 * self.disattenuated:.1f} %"
        )


def predicted_changes(scores: AnyScores, truth: GroundTruth) -> Float[np.ndarray, "Q M"]:
    """Σ_{n ∉ S_k} scores[q, n]: the change of each query's measurement that the scores predict for each subset.

    Raises:
        ConfigurationError: scores of the wrong shape.
        DataError: scores that are NaN or infinite.
    """
    values = torch.as_tensor(scores).double().cpu()
    shape = (len(truth.query_ids), len(truth.train_ids))
    require(
        tuple(values.shape) == shape, f"scores of shape {tuple(values.shape)}: this ground truth needs [Q, N] = {shape}"
    )
    require(bool(torch.isfinite(values).all()), "scores: some are NaN or infinite; score again", DataError)
    return (values @ (~truth.masks).double().T).numpy()


def lds(
    scores: AnyScores, truth: GroundTruth, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> LDSResult:
    """The linear datamodelling score of `scores` `[Q, N]` with its interval and ceiling.

    Args:
        bootstrap: number of resamples for the interval.
        confidence: of the interval.

    Raises:
        ConfigurationError: scores of the wrong shape, or too few subsets.
        DataError: scores that are NaN or infinite.
    """
    sampled = sampled_lds([scores], truth, bootstrap=bootstrap, seed=seed)[0]
    if len(truth.masks) < TUNABLE_SUBSETS:
        warnings.warn(f"{len(truth.masks)} subsets: the interval of an LDS from so few is too narrow; take {TUNABLE_SUBSETS} "
                      "or more", stacklevel=2)  # fmt: skip
    per_query = sampled.per_query
    sem = per_query.std(ddof=1) / np.sqrt(len(per_query)) if len(per_query) > 1 else float("nan")
    several = truth.measurements.shape[1] > 1
    return LDSResult(
        mean=sampled.mean,
        interval=sampled.estimate(confidence).interval,
        sem=float(sem),
        ceiling=ceiling(truth),
        reliability=split_half_reliability(truth.measurements.numpy()) if several else float("nan"),
        per_query=per_query,
    )


def paired_difference(
    first: AnyScores,
    second: AnyScores,
    truth: GroundTruth,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """LDS of `first` minus LDS of `second`, with an interval from the same resamples for both."""
    a, b = sampled_lds([first, second], truth, bootstrap=bootstrap, seed=seed)
    return (a - b).estimate(confidence)


def sampled_lds(
    scores: ScoresOfOptions, truth: GroundTruth, *, bootstrap: int = 1000, seed: int = 0
) -> list[Resampled]:
    """The LDS of several scores `[Q, N]` on the same resamples, from which differences and averages can be taken."""
    measured = mean_measurements(truth)
    predicted = np.stack([predicted_changes(matrix, truth) for matrix in scores])
    queries, subsets = measured.shape
    return resample_spearman(predicted, measured, Resamples.draw(queries, subsets, bootstrap, seed))


def ceiling(truth: GroundTruth) -> float:
    """What exact retraining with one seed would score: each seed against the mean of the others; NaN with one seed."""
    measured = truth.measurements.numpy()
    seeds = range(measured.shape[1])
    if len(seeds) < 2:
        return float("nan")
    others = [np.delete(measured, seed, axis=1).mean(1).T for seed in seeds]
    return float(np.mean([spearman(measured[:, seed].T, others[seed]).mean() for seed in seeds]))


def check_tunable(truths: Mapping[str, GroundTruth]) -> None:
    """Refuse ground truths, by name, whose options cannot be tuned: before hours of scoring rather than after.

    Raises:
        ConfigurationError: one has fewer than `TUNABLE_SUBSETS`.
    """
    for name, truth in truths.items():
        count = len(truth.masks)
        require(count >= TUNABLE_SUBSETS, f"subsets={count} of {name}: too few to halve; make a ground truth of "
                f"{TUNABLE_SUBSETS} or more: `diffinf reproduce PRESET -p subsets={TUNABLE_SUBSETS}`")  # fmt: skip


def mean_measurements(truth: GroundTruth) -> Float[np.ndarray, "Q M"]:
    """The measurements averaged over seeds, a row for each query.

    Raises:
        ConfigurationError: there are too few subsets for a rank correlation.
    """
    count = len(truth.masks)
    require(
        count >= MINIMUM_SUBSETS,
        f"{count} subsets: too few for a rank correlation; give at least {MINIMUM_SUBSETS}",
    )
    averaged: np.ndarray = truth.measurements.double().numpy().mean(1).T
    return averaged
