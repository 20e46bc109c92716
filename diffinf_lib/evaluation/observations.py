"""Observations: three findings of the paper about what influence scores do and do not predict (Mlodozeniec et al. 2025).

1. Scores of the loss at higher timesteps predict the loss at lower ones better than that loss's own scores do.
2. Scores predict changes of both signs; in reality leaving out data almost always makes a query less likely.
3. The log-probability of a query is nearly the same whichever half of a large training set was used.

Each function returns the numbers of a figure and takes no side.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.lds import ceiling, mean_measurements, predicted_changes
from diffinf_lib.evaluation.resampling import (
    Estimate,
    Resampled,
    Resamples,
    resample_mean,
    resample_spearman,
    variance_components,
)
from diffinf_lib.evaluation.statistics import percentile_interval
from diffinf_lib.evaluation.tuning import TunedLDS, tuned_lds
from diffinf_lib.shapes import AnyScores, ScoresOfOptions


@dataclass(frozen=True, eq=False)
class TimestepProxies:
    """How well scores of the loss in one range of timesteps predict the loss in another (Observation 1).

    Rows are the ranges that scores were taken for, columns those that were measured.

    Attributes:
        lds: mean over queries, `[A, bins]`.
        advantage: LDS of a row's scores less that of the column's own, `[A, bins]`; 0 on the diagonal.
        intervals: of `advantage`, paired, `[A, bins, 2]`.
        best: the row with the highest LDS in each column, `[bins]`. It was picked with the same data as it is shown with.
        held_out: for each column, the best row chosen on half of the subsets and judged on the other, against the own row: the
            honest gain of a proxy is `held_out[b].difference`.
        ceilings: what one exact retraining reaches in each column, `[bins]`.
    """

    lds: Float[np.ndarray, "A bins"]
    advantage: Float[np.ndarray, "A bins"]
    intervals: Float[np.ndarray, "A bins 2"]
    best: Int[np.ndarray, " bins"]
    held_out: list[TunedLDS]
    ceilings: Float[np.ndarray, " bins"]


def timestep_proxies(
    scores: ScoresOfOptions, measurements: Real[Tensor, "M K Q bins"] | Real[np.ndarray, "M K Q bins"], truth: GroundTruth, *,
    splits: int = 8, bootstrap: int = 200, confidence: float = 0.95, seed: int = 0,
) -> TimestepProxies:  # fmt: skip
    """Observation 1: the LDS of scores of every range of timesteps for measurements of every range.

    Args:
        scores: `[A, Q, N]`; the first belong to the measured ranges, in order, from low to high timesteps; further ones, such
            as scores of the whole loss, are candidates too.
        measurements: of the retrained models, `[M, K, Q, bins]`.
        truth: subsets, ids and number of queries; its own measurements are not used.

    Raises:
        ConfigurationError: fewer scores than measured ranges, or arrays of the wrong shape.
        DataError: scores or measurements that are NaN or infinite.
    """
    measured = torch.as_tensor(measurements)
    require(measured.ndim == 4, f"measurements of shape {tuple(measured.shape)}: give [M, K, Q, bins]")
    count = measured.shape[-1]
    require(
        len(scores) >= count, f"{len(scores)} scores for {count} measured ranges: give one for each, and more if wanted"
    )
    truths = [replace(truth, measurements=measured[..., column], full_measurements=None) for column in range(count)]
    predicted = np.stack([predicted_changes(matrix, truth) for matrix in scores])
    resamples = Resamples.draw(predicted.shape[1], predicted.shape[2], bootstrap, seed)
    columns = [resample_spearman(predicted, mean_measurements(part), resamples) for part in truths]
    gains = [[(row - rows[own]).estimate(confidence) for row in rows] for own, rows in enumerate(columns)]
    values = np.array([[row.mean for row in rows] for rows in columns]).T
    return TimestepProxies(
        lds=values,
        advantage=np.array([[gain.value for gain in rows] for rows in gains]).T,
        intervals=np.array([[gain.interval for gain in rows] for rows in gains]).swapaxes(0, 1),
        best=values.argmax(0),
        held_out=[
            tuned_lds(scores, part, options=range(len(scores)), default=own, splits=splits, bootstrap=bootstrap,
                      confidence=confidence, seed=seed)
            for own, part in enumerate(truths)
        ],
        ceilings=np.array([ceiling(part) for part in truths]),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SignStudy:
    """Predicted against real changes of the measurement (Observation 2).

    Attributes:
        predicted: share of predicted changes above 0, mean over queries.
        real: share of real changes above 0.
        excess: real less predicted, on the same resamples.
        agreement: share of changes of which the sign was predicted.
        predicted_per_query, real_per_query: `[Q]`.
        predicted_changes, real_changes: `[Q, X]`, for a scatter plot; X subsets or removals.
    """

    predicted: Estimate
    real: Estimate
    excess: Estimate
    agreement: Estimate
    predicted_per_query: Float[np.ndarray, "Q"]
    real_per_query: Float[np.ndarray, "Q"]
    predicted_changes: Float[np.ndarray, "Q X"]
    real_changes: Float[np.ndarray, "Q X"]

    def __str__(self) -> str:
        return f"rises: predicted {self.predicted}, real {self.real}; sign right: {self.agreement}"


def signs_of_subsets(
    scores: AnyScores,
    truth: GroundTruth,
    *,
    full: Real[Tensor, "Q *K"] | Real[np.ndarray, "Q *K"] | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SignStudy:
    """Observation 2 on the subsets of a ground truth: Σ of the scores of the images left out against the real change.

    The real change is that between models retrained on a subset and those trained on everything. It compares trainings, so it
    also holds what differs between their recipes, such as the number of steps.

    Args:
        full: measurements of the models trained on everything, `[Q]` or `[Q, K]`; default the ground truth's own.

    Raises:
        ConfigurationError: no measurements of the full model, or arrays of the wrong shape.
        DataError: scores that are NaN or infinite.
    """
    full = truth.full_measurements if full is None else full
    require(full is not None, "full measurements: the ground truth holds none; give them as full=[Q] or [Q, K]")
    baseline = np.asarray(full, dtype=np.float64)
    measured = mean_measurements(truth)
    require(
        baseline.ndim in (1, 2) and len(baseline) == len(measured),
        f"full measurements of shape {baseline.shape}: give [Q] or [Q, K] with Q = {len(measured)}",
    )
    baseline = baseline.reshape(len(baseline), -1).mean(1)
    changes = predicted_changes(scores, truth), measured - baseline[:, None]
    return signs(*changes, bootstrap=bootstrap, confidence=confidence, seed=seed)


def signs(
    predicted: Real[np.ndarray, "Q X"],
    real: Real[np.ndarray, "Q X"],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> SignStudy:
    """Observation 2 on any changes: how often they are above 0, and how often their sign is predicted.

    Args:
        predicted: `[Q, X]`: for removals, the sum of the scores of the images removed, a column for each removal.
        real: `[Q, X]`: the measurement after retraining less that of the full models.

    Raises:
        ConfigurationError: the shapes differ, or hold fewer than two queries or columns.
        DataError: changes that are NaN or infinite.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (predicted, real))
    require(
        a.shape == b.shape and a.ndim == 2 and min(a.shape) > 1,
        f"predicted changes {a.shape} and real ones {b.shape}: give the same [Q, X] of each, with at least 2 of both",
    )
    require(bool(np.isfinite(a).all() and np.isfinite(b).all()), "changes: some are NaN or infinite", DataError)
    resamples = Resamples.draw(a.shape[0], a.shape[1], bootstrap, seed)
    rises, really, agree = (resample_mean((values > 0).astype(np.float64), resamples) for values in (a, b, a * b))
    return SignStudy(
        predicted=_share(rises, confidence),
        real=_share(really, confidence),
        excess=(really - rises).estimate(confidence),
        agreement=_share(agree, confidence),
        predicted_per_query=rises.per_query,
        real_per_query=really.per_query,
        predicted_changes=a,
        real_changes=b,
    )


def _share(part: Resampled, confidence: float) -> Estimate:
    value, (low, high) = part.estimate(confidence)
    return Estimate(value, (max(low, 0.0), min(high, 1.0)))


@dataclass(frozen=True, eq=False)
class Constancy:
    """How much a measurement depends on the training data, beside how much it differs between queries (Observation 3).

    Seeds are crossed with subsets: one of them starts the models of all subsets from the same weights and draws. Each query is
    an analysis of variance of both without replicates. Standard deviations are in the measurement's units, root mean squares
    over queries, each free of the ones inside it.

    Attributes:
        between_queries: standard deviation between queries.
        between_subsets: of one query between subsets; with one seed the noise is in it.
        between_seeds: of one query between seeds, alike for all subsets: it moves no subset past another. NaN with one seed.
        noise: what is left, different for every subset and seed; NaN with one seed.
        shared: standard deviation between subsets of what all queries have in common, noise included: better and worse models.
            The rest is what attribution has to explain query by query.
        variance_ratio: between_subsets² / between_queries².
        intraclass_correlation: share of the variance of single measurements that lies between queries; 1 if every
            model measures the same of a query.
        query_means: `[Q]`.
        subset_spread: standard deviation of each query's mean over seeds between subsets, `[Q]`, noise included.
        seed_spread: standard deviation of each query between seeds, `[Q]`, noise included; NaN with one seed.
    """

    between_queries: float
    between_subsets: float
    between_seeds: float
    noise: float
    shared: float
    variance_ratio: Estimate
    intraclass_correlation: Estimate
    query_means: Float[np.ndarray, "Q"]
    subset_spread: Float[np.ndarray, "Q"]
    seed_spread: Float[np.ndarray, "Q"]

    def __str__(self) -> str:
        return (
            f"standard deviation between queries {self.between_queries:.3g}, subsets {self.between_subsets:.3g}, "
            f"seeds {self.between_seeds:.3g}, noise {self.noise:.3g}; intraclass correlation {self.intraclass_correlation}"
        )


def constancy(
    measurements: Real[Tensor, "M K Q"] | Real[np.ndarray, "M K Q"],
    *,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Constancy:
    """Observation 3: the spread of a measurement over subsets against its spread over queries and seeds.

    Intervals are percentiles of a bootstrap over queries, each with all its subsets, which move little in comparison.

    Args:
        measurements: `[M, K, Q]`, such as log-likelihoods, ELBOs or losses of retrained models.

    Raises:
        ConfigurationError: fewer than two subsets or three queries.
        DataError: measurements that are NaN or infinite.
    """
    values = np.asarray(measurements, dtype=np.float64)
    require(
        values.ndim == 3 and values.shape[0] > 1 and values.shape[2] > 2,
        f"measurements of shape {values.shape}: give [M, K, Q] with at least 2 subsets and 3 queries",
    )
    require(bool(np.isfinite(values).all()), "measurements: some are NaN or infinite; measure again", DataError)
    subsets, seeds, queries = values.shape
    cells, per_query = values.mean(1), _crossed(values)
    parts = per_query, cells.mean(0), subsets, seeds
    whole = _spreads(np.full((1, queries), 1 / queries), *parts)
    drawn = _ratios(_spreads(Resamples.draw(queries, subsets, bootstrap, seed).queries, *parts))
    ratio, correlation = (
        Estimate(float(value[0]), percentile_interval(again, confidence))
        for value, again in zip(_ratios(whole), drawn, strict=True)
    )
    several = 1.0 if seeds > 1 else np.nan
    return Constancy(
        between_queries=float(np.sqrt(whole[0, 0])),
        between_subsets=float(np.sqrt(whole[1, 0])),
        between_seeds=float(np.sqrt(whole[2, 0]) * several),
        noise=float(np.sqrt(whole[3, 0]) * several),
        shared=float(np.sqrt(variance_components(cells.T).subsets)),
        variance_ratio=ratio,
        intraclass_correlation=correlation,
        query_means=cells.mean(0),
        subset_spread=cells.std(0, ddof=1),
        seed_spread=np.sqrt(values.var(1, ddof=1).mean(0)) if seeds > 1 else np.full(queries, np.nan),
    )


def _crossed(values: Float[np.ndarray, "M K Q"]) -> Float[np.ndarray, "3 Q"]:
    """Variances of each query between subsets, between seeds, and of the rest; estimates without bias, below 0 by chance."""
    subsets, seeds, queries = values.shape
    between_subsets = values.mean(1).var(0, ddof=1)
    if seeds == 1:
        return np.stack([between_subsets, np.zeros(queries), np.zeros(queries)])
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean((0, 1))
    noise = (rest**2).sum((0, 1)) / ((subsets - 1) * (seeds - 1))
    return np.stack([between_subsets - noise / seeds, values.mean(0).var(0, ddof=1) - noise / subsets, noise])


def _spreads(
    shares: Float[np.ndarray, "R Q"],
    per_query: Float[np.ndarray, "3 Q"],
    means: Float[np.ndarray, "Q"],
    subsets: int,
    seeds: int,
) -> Float[np.ndarray, "4 R"]:
    """Variances between queries, subsets, seeds, and of the rest, where queries make up these shares."""
    queries, inside = len(means), per_query @ shares.T
    spread = (shares @ means**2 - (shares @ means) ** 2) * queries / (queries - 1)
    between = spread - inside[0] / subsets - inside[1] / seeds - inside[2] / (subsets * seeds)
    found: np.ndarray = np.maximum(np.vstack([between, inside]), 0)
    return found


def _ratios(spreads: Float[np.ndarray, "4 R"]) -> Float[np.ndarray, "2 R"]:
    """Variance between subsets over that between queries, and the latter's share of all four."""
    between, within, *_ = spreads
    smallest = np.finfo(np.float64).tiny
    return np.stack([within / np.maximum(between, smallest), between / np.maximum(spreads.sum(0), smallest)])
