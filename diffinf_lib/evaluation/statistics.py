"""Statistics: rank correlation, bootstrap samples, reliability, and p-values of many claims."""

from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.stats import rankdata

from diffinf_lib.errors import require


def spearman(first: Real[np.ndarray, "*n M"], second: Real[np.ndarray, "*n M"]) -> Float[np.ndarray, "*n"]:
    """Spearman's rank correlation along the last axis, with average ranks for ties.

    A constant vector has no ranks to correlate; its correlation is set to 0, that of a predictor that says nothing.

    Args:
        first, second: `[..., M]`, of the same shape.

    Returns:
        `[...]`.
    """
    a, b = (rankdata(values, axis=-1) for values in (first, second))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    scale = np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return np.divide((a * b).sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)


def bootstrap_indices(count: int, repeats: int, generator: np.random.Generator) -> Int[np.ndarray, "{repeats} {count}"]:
    """`[repeats, count]` indices drawn with replacement."""
    return generator.integers(count, size=(repeats, count))


def percentile_interval(values: Float[np.ndarray, "R"], confidence: float) -> tuple[float, float]:
    """The central interval that holds `confidence` of the values."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def spearman_brown(correlation: float, factor: float = 2.0) -> float:
    """Reliability of a measurement `factor` times as long, from that of its parts (Spearman 1910, Brown 1910).

    Parts that contradict each other beyond the formula's pole have reliability −∞.
    """
    shared = 1 + (factor - 1) * correlation
    return factor * correlation / shared if shared > 0 else float("-inf")


def split_half_reliability(measurements: Float[np.ndarray, "M K Q"], repeats: int = 20, seed: int = 0) -> float:
    """Reliability of the mean over seeds: halves of the seeds correlated, stepped up to all of them; mean over queries.

    With an odd number of seeds the halves are as even as they can be, and stepped up from their mean size.

    Args:
        measurements: `[M, K, Q]` with K ≥ 2.
    """
    count = measurements.shape[1]
    generator, half, found = np.random.default_rng(seed), count // 2, []
    for _ in range(repeats):
        order = generator.permutation(count)
        first, second = (measurements[:, part].mean(1).T for part in (order[:half], order[half : 2 * half]))
        found.append(spearman(first, second).mean())
    return spearman_brown(float(np.mean(found)), count / half)


def interval_p_value(value: float, interval: tuple[float, float], *, confidence: float = 0.95) -> float:
    """Two-sided p-value of "the value is 0", from an estimate and its interval (after Altman & Bland 2011).

    The error is taken to be normal towards 0, with the standard deviation that the half of the interval on that side has: an
    interval that touches 0 has a p-value of 1 − confidence, also where it is not symmetric.

    Raises:
        ConfigurationError: the estimate is not inside its interval, or that half has no width.
    """
    value, low, high = map(float, (value, *interval))
    towards_zero = value - low if value > 0 else high - value
    require(low <= value <= high and towards_zero > 0,
            f"interval={low:g} to {high:g} of {value:g}: it must hold the value and leave room on the side of 0")  # fmt: skip
    normal = NormalDist()
    return 2 * normal.cdf(-abs(value) * normal.inv_cdf((1 + confidence) / 2) / towards_zero)


def holm(p_values: Real[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Adjusted p-values: those below α hold together with an error rate of α for the whole family (Holm 1979).

    Each sorted p-value is multiplied by how many are left, itself among them, and is never below one before it.

    Args:
        p_values: `[n]`, of any dependence.

    Returns:
        `[n]`, at most 1, in the order given.
    """
    given = np.asarray(p_values, dtype=np.float64)
    order = given.argsort(kind="stable")
    stepped = np.maximum.accumulate(given[order] * np.arange(len(given), 0, -1))
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted
