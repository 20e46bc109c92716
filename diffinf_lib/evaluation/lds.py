"""LDS: the linear datamodelling score, how well scores predict the outcome of retraining (Park et al. 2023, section 2).

For a query q the LDS is Spearman's correlation, over subsets k, between the predicted change Σ_{n ∉ S_k} scores[q, n] and
the measurement of models retrained on S_k, averaged over seeds; the LDS of a method is the mean over queries.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from diffinf_lib.errors import ConfigurationError, DataError, require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.statistics import (
    Array,
    bootstrap_indices,
    percentile_interval,
    spearman,
    split_half_reliability,
)

MINIMUM_SUBSETS = 4
"""Below this many subsets a rank correlation says nothing."""


@dataclass(frozen=True)
class LDSResult:
    """LDS as fractions, −1 to 1.

    Attributes:
        mean: over queries.
        interval: bootstrap interval of the mean, over subsets and queries together.
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
    per_query: np.ndarray

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}], ceiling {100 * self.ceiling:.1f} %"


def predicted_changes(scores: Any, truth: GroundTruth) -> Float[np.ndarray, "Q M"]:
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
    scores: Any, truth: GroundTruth, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> LDSResult:
    """The linear datamodelling score of `scores` `[Q, N]` with its interval and ceiling.

    Args:
        bootstrap: number of resamples for the interval.
        confidence: of the interval.

    Raises:
        ConfigurationError: scores of the wrong shape, or too few subsets.
        DataError: scores that are NaN or infinite.
    """
    predicted, measured = predicted_changes(scores, truth), _checked(truth).mean(1).T
    per_query = spearman(predicted, measured)
    resampled = _bootstrap_means(predicted, measured, bootstrap, seed)
    sem = per_query.std(ddof=1) / np.sqrt(len(per_query)) if len(per_query) > 1 else float("nan")
    several = truth.measurements.shape[1] > 1
    return LDSResult(
        mean=float(per_query.mean()),
        interval=percentile_interval(resampled, confidence),
        sem=float(sem),
        ceiling=ceiling(truth),
        reliability=split_half_reliability(truth.measurements.numpy()) if several else float("nan"),
        per_query=per_query,
    )


def paired_difference(
    first: Any, second: Any, truth: GroundTruth, *, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """LDS of `first` minus LDS of `second`, with an interval from the same resamples for both."""
    measured = _checked(truth).mean(1).T
    a, b = (predicted_changes(scores, truth) for scores in (first, second))
    difference = spearman(a, measured).mean() - spearman(b, measured).mean()
    resampled = _bootstrap_means(a, measured, bootstrap, seed) - _bootstrap_means(b, measured, bootstrap, seed)
    return float(difference), percentile_interval(resampled, confidence)


def ceiling(truth: GroundTruth) -> float:
    """What exact retraining with one seed would score: each seed against the mean of the others; NaN with one seed."""
    measured = truth.measurements.numpy()
    seeds = range(measured.shape[1])
    if len(seeds) < 2:
        return float("nan")
    others = [np.delete(measured, seed, axis=1).mean(1).T for seed in seeds]
    return float(np.mean([spearman(measured[:, seed].T, others[seed]).mean() for seed in seeds]))


def _checked(truth: GroundTruth) -> Array:
    count = len(truth.masks)
    if count < MINIMUM_SUBSETS:
        raise ConfigurationError(f"{count} subsets: too few for a rank correlation; give at least {MINIMUM_SUBSETS}")
    return truth.measurements.numpy()


def _bootstrap_means(predicted: Array, measured: Array, repeats: int, seed: int) -> Array:
    """The mean LDS of each resample of subsets and queries together, `[repeats]`; the seed fixes the resamples."""
    generator = np.random.default_rng(seed)
    queries = bootstrap_indices(len(measured), repeats, generator)
    subsets = bootstrap_indices(measured.shape[1], repeats, generator)
    return np.array(
        [spearman(predicted[:, k], measured[:, k])[q].mean() for q, k in zip(queries, subsets, strict=True)]
    )
