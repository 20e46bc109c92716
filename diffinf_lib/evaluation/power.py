"""Power: how many subsets, seeds and queries it takes to tell two methods apart.

The difference of two LDS varies with the queries, with the subsets, and with the noise of retraining:

    variance = queries / Q + (subsets + seed_subsets / K) / M + (rest + seed_rest / K) / (Q M).

Each component is estimated from one ground truth: pseudo-values of the jackknife over subsets, `[Q, M]`, go through a two-way
analysis of variance, once for the mean of every choice of k of the K seeds. On the scale of measurements without noise (LDS
divided by the root of their reliability, Spearman 1904) noise enters as 1/k to first order, so a straight line over 1/k tells
it from the rest.
"""

from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from diffinf_lib.errors import require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.lds import mean_measurements, predicted_changes
from diffinf_lib.evaluation.reliability import seed_reliability
from diffinf_lib.evaluation.resampling import VarianceComponents, pseudo_values, resampled_spearman, variance_components
from diffinf_lib.evaluation.statistics import spearman_brown
from diffinf_lib.shapes import AnyScores

CHOICES = 10
"""At most so many choices of k seeds are averaged."""


@dataclass(frozen=True)
class Power:
    """Variance components of the difference of two methods' LDS, on the scale of measurements without noise.

    Differences and standard errors that go in and out are LDS as measured: differences with as many seeds as the ground truth
    had (`reference_seeds`), standard errors with the number of seeds they are asked for.

    Attributes:
        difference: LDS of the first method minus the second's, as measured.
        queries: variance between queries of the difference.
        subsets, rest: variance between subsets, common to all queries and not, that no number of seeds removes.
        seed_subsets, seed_rest: what the noise of one seed adds to these.
        reliability: of one seed's measurements.
        reference_seeds: K of the ground truth.
        reference_queries: Q of the ground truth.
    """

    difference: float
    queries: float
    subsets: float
    rest: float
    seed_subsets: float
    seed_rest: float
    reliability: float
    reference_seeds: int
    reference_queries: int

    def scale(self, seeds: int) -> float:
        """LDS as measured with so many seeds, as a fraction of what measurements without noise give."""
        return float(np.sqrt(spearman_brown(self.reliability, seeds)))

    def standard_error(
        self, subsets: int, seeds: int, queries: int | None = None, *, fixed_queries: bool = False
    ) -> float:
        """Standard error of the difference of two LDS, both measured with `seeds` seeds.

        Args:
            queries: default: as many as the ground truth has.
            fixed_queries: whether the statement is about these very queries, or about all queries like them.
        """
        queries = self._checked(seeds, subsets=subsets, queries=queries)
        return self.scale(seeds) * float(
            np.sqrt(self._floor(queries, fixed_queries) + self._slope(seeds, queries) / subsets)
        )

    def smallest_difference(
        self, subsets: int, seeds: int, queries: int | None = None, *,
        power: float = 0.8, level: float = 0.05, fixed_queries: bool = False,
    ) -> float:  # fmt: skip
        """The smallest difference of LDS that a two-sided test at `level` finds with probability `power`."""
        error = self.standard_error(subsets, seeds, queries, fixed_queries=fixed_queries) / self.scale(seeds)
        return self.scale(self.reference_seeds) * _quantiles(power, level) * error

    def subsets_needed(
        self, difference: float, seeds: int, queries: int | None = None, *,
        power: float = 0.8, level: float = 0.05, fixed_queries: bool = False,
    ) -> float:  # fmt: skip
        """How many subsets make `smallest_difference` as small as `difference`; infinite where only more queries would help."""
        queries = self._checked(seeds, queries=queries)
        require(difference > 0, f"difference={difference}: give a positive LDS difference, such as 0.03 for 3 points")
        allowed = (difference / self.scale(self.reference_seeds) / _quantiles(power, level)) ** 2
        left = allowed - self._floor(queries, fixed_queries)
        return float(np.ceil(self._slope(seeds, queries) / left)) if left > 0 else float("inf")

    def _floor(self, queries: int, fixed: bool) -> float:
        return 0.0 if fixed else self.queries / queries

    def _slope(self, seeds: int, queries: int) -> float:
        return self.subsets + self.seed_subsets / seeds + (self.rest + self.seed_rest / seeds) / queries

    def _checked(self, seeds: int, *, subsets: int = 1, queries: int | None = None) -> int:
        queries = self.reference_queries if queries is None else queries
        for name, value in (("seeds", seeds), ("subsets", subsets), ("queries", queries)):
            require(value > 0, f"{name}={value}: give a positive number")
        return queries


def power_analysis(first: AnyScores, second: AnyScores, truth: GroundTruth) -> Power:
    """Variance components of the difference of two scores' LDS `[Q, N]`, from one ground truth of 2 seeds or more.

    Raises:
        ConfigurationError: scores of the wrong shape, one seed, one query, too few subsets, or seeds that agree by chance only.
        DataError: scores that are NaN or infinite.
    """
    measured, seeds = mean_measurements(truth), truth.measurements.shape[1]
    require(len(measured) > 1, "one query: there is no variance between queries; give a ground truth of 2 or more")
    one = seed_reliability(truth)
    require(one > 0, "measurements: seeds agree no better than by chance; no difference of LDS can be told from them")
    predicted = np.stack([predicted_changes(scores, truth) for scores in (first, second)])
    found = {}
    for count in range(1, seeds + 1):
        parts = [
            _components(predicted, truth.measurements[:, list(choice)].double().numpy().mean(1).T)
            for choice in islice(combinations(range(seeds), count), CHOICES)
        ]
        found[count] = np.mean([(part.queries, part.subsets, part.rest) for part in parts], axis=0)
        found[count] /= spearman_brown(one, count)
    (subsets, seed_subsets), (rest, seed_rest) = (_line(found, column) for column in (1, 2))
    whole = resampled_spearman(predicted, measured, np.ones((1, measured.shape[1])))[:, 0].mean(-1)
    return Power(
        difference=float(whole[0] - whole[1]),
        queries=float(np.mean([row[0] for row in found.values()])),
        subsets=subsets,
        rest=rest,
        seed_subsets=seed_subsets,
        seed_rest=seed_rest,
        reliability=one,
        reference_seeds=seeds,
        reference_queries=len(measured),
    )


def _components(predicted: Float[np.ndarray, "2 Q M"], measured: Float[np.ndarray, "Q M"]) -> VarianceComponents:
    subsets = measured.shape[1]
    counts = np.concatenate([np.ones((1, subsets)), 1 - np.eye(subsets)])
    first, second = resampled_spearman(predicted, measured, counts)
    difference = first - second
    return variance_components(pseudo_values(difference[0], difference[1:]))


def _line(found: dict[int, Float[np.ndarray, "components"]], column: int) -> tuple[float, float]:  # noqa: F821
    """Intercept and slope over 1/k of one component, neither below 0."""
    inverse, values = np.array([1 / count for count in found]), np.array([row[column] for row in found.values()])
    slope, intercept = np.polyfit(inverse, values, 1)
    if slope < 0:
        return float(max(values.mean(), 0)), 0.0
    if intercept < 0:
        return 0.0, float(inverse @ values / (inverse @ inverse))
    return float(intercept), float(slope)


def _quantiles(power: float, level: float) -> float:
    require(0 < level < 1 and 0 < power < 1, f"power={power}, level={level}: give numbers between 0 and 1")
    return float(norm.isf(level / 2) + norm.ppf(power))
