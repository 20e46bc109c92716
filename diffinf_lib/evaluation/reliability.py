"""Reliability: what scores and measurements would say if they were taken again, and controls with a known answer.

Noise of either kind lowers every LDS by the square root of the reliability (Spearman 1904), so it is worth knowing whether a
method is wrong or only noisy.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from diffinf_lib.errors import require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.lds import ceiling, mean_measurements, predicted_changes, sampled_lds
from diffinf_lib.evaluation.resampling import Estimate, Resampled, Resamples, resample_spearman
from diffinf_lib.evaluation.statistics import spearman, spearman_brown
from diffinf_lib.options import check_counts
from diffinf_lib.shapes import AnyScores


def score_reliability(
    first: AnyScores,
    second: AnyScores,
    truth: GroundTruth,
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Reliability of scores over all draws, from two scores that were each taken over one half of the draws.

    The predicted changes of the halves are correlated by rank, averaged over queries, and stepped up to both halves together
    by the Spearman–Brown formula. LDS / √reliability is what infinitely many draws would give.

    Args:
        first, second: scores `[Q, N]` from disjoint halves of the draws, such as those of two seeds.

    Raises:
        ConfigurationError: scores of the wrong shape, or too few subsets.
        DataError: scores that are NaN or infinite.
    """
    count = mean_measurements(truth).shape[1]
    a, b = (predicted_changes(scores, truth) for scores in (first, second))
    halves = resample_spearman(a[None], b, Resamples.draw(len(a), count, bootstrap, seed))[0].estimate(confidence)
    low, high = halves.interval
    return Estimate(_doubled(halves.value), (_doubled(low), _doubled(high)))


def _doubled(correlation: float) -> float:
    # the formula has a pole at −1; halves that disagree have no reliability at all
    return spearman_brown(max(correlation, 0.0))


def seed_reliability(truth: GroundTruth, seeds: int = 1) -> float:
    """Reliability of the mean over `seeds` seeds, from the correlation of every pair of seeds, mean over queries.

    Raises:
        ConfigurationError: the ground truth has one seed, or `seeds` is not positive.
    """
    check_counts(seeds=seeds)
    found = [spearman(first, second).mean() for first, second in combinations(_by_seed(truth), 2)]
    return spearman_brown(max(float(np.mean(found)), 0.0), seeds)


@dataclass(frozen=True, eq=False)
class SelfConsistency:
    """How well retrained models predict a further one.

    Attributes:
        lds: of the mean of all seeds but one, as a prediction of the remaining seed, mean over the seeds left out. Its value is
            `ceiling`, since a rank correlation is symmetric; it has an interval.
        expected: the same number if seeds are one signal with exchangeable noise: √(reliability of one seed × reliability of
            the others' mean), from the correlation of single seeds. For ranks the formula holds to a point or so.
        per_query: `[Q]`.
    """

    lds: Estimate
    expected: float
    per_query: Float[np.ndarray, "Q"]

    def __str__(self) -> str:
        return f"{self.lds}, expected of exchangeable seeds {100 * self.expected:.1f} %"


def self_consistency(
    truth: GroundTruth, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> SelfConsistency:
    """What exact retraining scores as a method: all seeds but one predict the remaining one; to be set beside `ceiling`.

    Raises:
        ConfigurationError: the ground truth has one seed, or too few subsets.
    """
    mean_measurements(truth)
    measured, seeds = _by_seed(truth), truth.measurements.shape[1]
    resamples = Resamples.draw(measured.shape[1], measured.shape[2], bootstrap, seed)
    parts = []
    for left_out, values in enumerate(measured):
        others = np.delete(measured, left_out, axis=0).mean(0)
        parts += resample_spearman(others[None], values, resamples)
    whole = Resampled.average(parts)
    expected = (seed_reliability(truth) * seed_reliability(truth, seeds - 1)) ** 0.5
    return SelfConsistency(whole.estimate(confidence), expected, whole.per_query)


def retraining_lds(truth: GroundTruth) -> float:
    """The LDS of one exact retraining against the mean of as many seeds as the ground truth has, as scores are judged.

    NaN where seeds agree no better than by chance.

    `ceiling` holds one seed against the others, one fewer than scores are held against. The correlation with a mean of K
    seeds grows as the root of its reliability (Spearman 1904): this is ceiling · √(reliability of K / reliability of K − 1).

    Raises:
        ConfigurationError: the ground truth has one seed.
    """
    seeds = truth.measurements.shape[1]
    fewer = seed_reliability(truth, max(seeds - 1, 1))
    return ceiling(truth) * (seed_reliability(truth, seeds) / fewer) ** 0.5 if fewer > 0 else float("nan")


def _by_seed(truth: GroundTruth) -> Float[np.ndarray, "K Q M"]:
    require(
        truth.measurements.shape[1] > 1,
        "one seed: its noise cannot be told from the signal; give a ground truth of 2 or more",
    )
    measured: np.ndarray = truth.measurements.double().numpy().transpose(1, 2, 0)
    return measured


def random_control(
    truth: GroundTruth, *, repeats: int = 20, bootstrap: int = 200, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """The LDS of random scores, mean over `repeats` of them: its interval should hold 0.

    One set of random scores misses 0 in one case of twenty, as a 95% interval must; the mean of many is a sharper control.
    """
    check_counts(repeats=repeats)
    generator = np.random.default_rng(seed)
    shape = (len(truth.query_ids), len(truth.train_ids))
    scores = [generator.standard_normal(shape) for _ in range(repeats)]
    return Resampled.average(sampled_lds(scores, truth, bootstrap=bootstrap, seed=seed)).estimate(confidence)
