"""Resampling: how far a mean over queries would move with other queries and other subsets.

Queries and subsets are two crossed samples. Drawing both again with replacement (the bootstrap of Owen 2007, "The pigeonhole
bootstrap") gives the shape of the distribution but exaggerates its width, since what belongs to one query and one subset
is drawn twice; and copies of a subset are ties, which pull every rank correlation towards 0. So the resamples are
centred on the estimate, and their width is that of the two-way jackknife: leave one subset out, and split the variance
of the pseudo-values into queries, subsets and the rest. In simulations of 64 subsets and
57 queries such 95% intervals hold the value in 93 to 97 of 100 cases; plain percentiles do in 86 where the LDS is 96%, and in
99 or more, 1.4 times as wide, where it is 8% or where two methods are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t


class Estimate(NamedTuple):
    """A number and its confidence interval, as fractions; unpacks to `value, (low, high)`."""

    value: float
    interval: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


@dataclass(frozen=True)
class VarianceComponents:
    """Variance of values `[Q, M]` split into what differs between queries, between subsets, and the rest.

    Attributes:
        queries, subsets, rest: variances of one query, of one subset, and of one query with one subset; none below 0.
        degrees: degrees of freedom of the standard error of the mean (Satterthwaite 1946).
        shape: (Q, M).
    """

    queries: float
    subsets: float
    rest: float
    degrees: float
    shape: tuple[int, int]

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over all queries and subsets, both taken as samples."""
        count, subsets = self.shape
        return float(np.sqrt(self.queries / count + self.subsets / subsets + self.rest / (count * subsets)))


def variance_components(values: Float[np.ndarray, "Q M"]) -> VarianceComponents:
    """Two-way analysis of variance without replicates; with one query all variance is that of its subsets."""
    count, subsets = values.shape
    if count == 1:
        return VarianceComponents(0.0, 0.0, float(values.var(ddof=1)), subsets - 1, (1, subsets))
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    rest = values - rows - columns + values.mean()
    degrees = np.array([count - 1, subsets - 1, (count - 1) * (subsets - 1)])
    sums = np.array([subsets * rows.var() * count, count * columns.var() * subsets, (rest**2).sum()])
    squares = sums / degrees
    above = squares[:2] > squares[2]
    signs = np.array([*above, 1 - above.sum()])
    spread = (signs * squares) ** 2 / degrees
    return VarianceComponents(
        queries=float(max(squares[0] - squares[2], 0) / subsets),
        subsets=float(max(squares[1] - squares[2], 0) / count),
        rest=float(squares[2]),
        degrees=float((signs @ squares) ** 2 / spread.sum()) if spread.any() else float(degrees[0]),
        shape=(count, subsets),
    )


@dataclass(frozen=True, eq=False)
class Resamples:
    """How often each subset and each query is drawn; the seed fixes both, so that methods share their resamples.

    Attributes:
        subsets: counts, `[R, M]`, each row adding up to M.
        queries: shares, `[R, Q]`, each row adding up to 1.
    """

    subsets: Float[np.ndarray, "R M"]
    queries: Float[np.ndarray, "R Q"]

    @classmethod
    def draw(cls, queries: int, subsets: int, repeats: int, seed: int) -> "Resamples":
        """`repeats` resamples of as many queries and subsets as there are, with replacement."""
        generator = np.random.default_rng(seed)
        shares = generator.multinomial(queries, np.full(queries, 1 / queries), size=repeats) / queries
        counts = generator.multinomial(subsets, np.full(subsets, 1 / subsets), size=repeats)
        return cls(counts.astype(np.float64), shares)


@dataclass(frozen=True, eq=False)
class Resampled:
    """A mean over queries with its resamples and jackknife: differences of two keep both paired.

    Attributes:
        per_query: the value of each query, `[Q]`.
        resamples: the mean in each resample of subsets and queries together, `[R]`.
        pseudo_values: M times the value of all subsets less M − 1 times that without one, `[Q, M]`.
        reference: resamples of the value that the pseudo-values belong to, `[R]`, where that is a simpler one than this: random
            halvings and a choice among options are no smooth functions of the subsets and have no jackknife.
        bound: no value is larger than this in magnitude.
    """

    per_query: Float[np.ndarray, "Q"]
    resamples: Float[np.ndarray, "R"]
    pseudo_values: Float[np.ndarray, "Q M"]
    reference: Float[np.ndarray, "R"] | None = None
    bound: float = 1.0

    def __sub__(self, other: "Resampled") -> "Resampled":
        return Resampled(
            self.per_query - other.per_query,
            self.resamples - other.resamples,
            self.pseudo_values - other.pseudo_values,
            self._reference - other._reference,
            self.bound + other.bound,
        )

    @classmethod
    def average(cls, parts: Sequence["Resampled"]) -> "Resampled":
        """The mean of several, on the same resamples."""
        return cls(
            np.mean([part.per_query for part in parts], axis=0),
            np.mean([part.resamples for part in parts], axis=0),
            np.mean([part.pseudo_values for part in parts], axis=0),
            np.mean([part._reference for part in parts], axis=0),
            max(part.bound for part in parts),
        )

    @property
    def mean(self) -> float:
        """Mean over queries."""
        return float(self.per_query.mean())

    def estimate(self, confidence: float = 0.95) -> Estimate:
        """The mean and its interval, which holds it: resamples centred on the mean, as wide as the jackknife says."""
        return Estimate(self.mean, self._interval(confidence))

    @property
    def _reference(self) -> Float[np.ndarray, "R"]:
        return self.resamples if self.reference is None else self.reference

    def _interval(self, confidence: float) -> tuple[float, float]:
        components, spread = variance_components(self.pseudo_values), self._reference.std()
        tail = (1 - confidence) / 2
        # Student's quantile over the normal one: the width itself is an estimate
        width = components.standard_error / spread * t.isf(tail, components.degrees) / norm.isf(tail) if spread else 1.0
        ends = np.quantile(self.resamples, [tail, 1 - tail])
        # where one option is nearly always chosen most resamples are equal, and a few others can pull their mean past the ends
        centre = np.clip(self.resamples.mean(), *ends)
        low, high = np.clip(self.mean + width * (ends - centre), -self.bound, self.bound)
        return float(low), float(high)


def unit_ranks(values: Float[np.ndarray, "M"], counts: Float[np.ndarray, "R M"]) -> Float[np.ndarray, "R M"]:
    """Ranks within each resample, centred and of length 1; the product of two such vectors is Spearman's correlation.

    An item's average rank among copies, less the mean rank, is half the sum over the sample of the sign of their
    difference. So the ranks of all resamples are one product of matrices, ties included. Where all values are
    equal the vector is 0.
    """
    ranks = counts @ np.sign(values[None, :] - values[:, None])
    ranks *= np.sqrt(counts)
    length = np.sqrt(np.einsum("rm,rm->r", ranks, ranks))[:, None]
    return np.divide(ranks, length, out=np.zeros_like(ranks), where=length > 0)


def resampled_spearman(
    predicted: Float[np.ndarray, "D Q M"], measured: Float[np.ndarray, "Q M"], counts: Float[np.ndarray, "R M"]
) -> Float[np.ndarray, "D R Q"]:
    """Spearman's correlation of D predictions with the measurements, of every query in every resample."""
    found = np.empty((len(predicted), len(counts), len(measured)))
    for query, values in enumerate(measured):
        target = unit_ranks(values, counts)
        for which, prediction in enumerate(predicted[:, query]):
            found[which, :, query] = np.einsum("rm,rm->r", unit_ranks(prediction, counts), target)
    return found


def pseudo_values(whole: Float[np.ndarray, "Q"], without: Float[np.ndarray, "M Q"]) -> Float[np.ndarray, "Q M"]:
    """The jackknife's pseudo-values from the value of all subsets and those with one of M left out (Tukey 1958)."""
    subsets = len(without)
    return subsets * whole[:, None] - (subsets - 1) * without.T


def resample_spearman(
    predicted: Float[np.ndarray, "D Q M"], measured: Float[np.ndarray, "Q M"], resamples: Resamples
) -> list[Resampled]:
    """Spearman's correlation of D predictions with the measurements as a mean over queries, all on the same resamples."""
    subsets = measured.shape[1]
    counts = np.concatenate([np.ones((1, subsets)), 1 - np.eye(subsets), resamples.subsets])
    return [
        Resampled(
            found[0],
            np.einsum("rq,rq->r", found[subsets + 1 :], resamples.queries),
            pseudo_values(found[0], found[1 : subsets + 1]),
        )
        for found in resampled_spearman(predicted, measured, counts)
    ]


def resample_mean(values: Float[np.ndarray, "Q M"], resamples: Resamples, bound: float = 1.0) -> Resampled:
    """The mean of plain values of each query and subset, such as the share of subsets for which something holds."""
    drawn = np.einsum("rq,qm,rm->r", resamples.queries, values, resamples.subsets, optimize=True) / values.shape[1]
    return Resampled(values.mean(1), drawn, values, bound=bound)
