"""Statistics: rank correlation, bootstrap samples and reliability, vectorised over queries."""

import numpy as np
from jaxtyping import Float, Int, Real
from scipy.stats import rankdata


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
