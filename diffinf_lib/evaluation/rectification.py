"""Rectification: scores passed through a curve before they are added up, and what the images of each score really do.

An LDS adds scores up, so noise of many small scores counts as much as a few large ones. Where the real effects are
one-sided, a curve that flattens the low scores can order subsets better than the scores as they are. The effects can be seen
without any scores: over random subsets, what is measured covaries with leaving an image out.

Subsets of one size leave the level of effects and of scores open: both are taken relative to their mean over images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike
from scipy.stats import t

from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.lds import mean_measurements, predicted_changes
from diffinf_lib.evaluation.resampling import Estimate
from diffinf_lib.shapes import AnyScores

Array = Float[np.ndarray, "Q N"]


def _slope(below: float, scores: Array) -> Array:
    return np.where(scores > 0, scores, below * scores)


def _power(exponent: float, scores: Array) -> Array:
    return np.maximum(scores, 0) ** exponent


def _threshold(start: float, scores: Array) -> Array:
    return np.maximum(scores - start, 0)


def _both_ends(width: float, scores: Array) -> Array:
    return np.sign(scores) * np.maximum(np.abs(scores) - width, 0)


RECTIFIERS: dict[str, Callable[[Array], Array]] = {
    "none": lambda scores: scores,
    "slope 0.5": partial(_slope, 0.5),
    "slope 0.3": partial(_slope, 0.3),
    "threshold -0.5": partial(_threshold, -0.5),
    "clamp": partial(_threshold, 0.0),
    "threshold 0.25": partial(_threshold, 0.25),
    "threshold 0.5": partial(_threshold, 0.5),
    "threshold 1": partial(_threshold, 1.0),
    "power 1.3": partial(_power, 1.3),
    "power 1.6": partial(_power, 1.6),
    "both ends 0.5": partial(_both_ends, 0.5),
}
"""Curves by name, of standardised scores. A slope is that of the scores below 0, a threshold is where the curve begins to
rise, a power is that of the scores above 0; `both ends` shrinks high and low scores alike."""


def standardised(scores: AnyScores) -> Array:
    """Each query's scores less their mean, in units of their standard deviation; scores that are all equal become 0."""
    values = np.asarray(scores, dtype=np.float64)
    centred = values - values.mean(1, keepdims=True)
    spread = centred.std(1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 0)


def rectified(scores: AnyScores, rectifier: str) -> Array:
    """Standardised scores passed through one of `RECTIFIERS`.

    Raises:
        ConfigurationError: there is none of that name.
    """
    require(rectifier in RECTIFIERS, f"rectifier={rectifier!r}: give one of {', '.join(RECTIFIERS)}")
    return RECTIFIERS[rectifier](standardised(scores))


def without_detail(scores: AnyScores, among: Bool[np.ndarray, "Q N"], *, seed: int | None = None) -> Array:
    """Scores whose differences among some images are lost: replaced by their mean, or shuffled with a seed.

    If those differences say something of the images, the LDS falls.

    Args:
        among: the images of each query that this befalls.
    """
    values, generator = np.array(scores, dtype=np.float64), np.random.default_rng(seed)
    for row, chosen in zip(values, among, strict=True):
        row[chosen] = row[chosen].mean() if seed is None else generator.permutation(row[chosen])
    return values


class Curve(NamedTuple):
    """Real effects by score, in bins.

    Attributes:
        scores: mean standardised score of each bin, `[B]`.
        effects: mean real effect of its images, relative to all images, in standard deviations of the query's measurement over
            subsets, `[B]`.
        intervals: `[B, 2]`.
        images: per query, mean, `[B]`.
    """

    scores: Float[np.ndarray, "B"]
    effects: Float[np.ndarray, "B"]
    intervals: Float[np.ndarray, "B 2"]
    images: Float[np.ndarray, "B"]


class Slopes(NamedTuple):
    """What a unit of predicted change is worth, in standard deviations of the query's measurement over subsets.

    Attributes:
        high, low: of the images with scores above and below the query's mean.
        ratio: low / high; 1 if a low score says as much as a high one, 0 if it says nothing.
    """

    high: Estimate
    low: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class EffectSpread:
    """How much the real effects of images differ, free of the noise of their estimates.

    Attributes:
        low, high: variance of the effects among images with scores below and above the query's mean, in variances of
            the query's measurement over subsets.
        ratio: low / high.
        skewness: of the effects of all images of a query; no scores have a part in it. Above 0 where few images raise the
            measurement much and none lowers it as much.
    """

    low: Estimate
    high: Estimate
    ratio: Estimate
    skewness: Estimate


def image_effects(truth: GroundTruth) -> Array:
    """What leaving out one image does to each query's measurement, estimated from the subsets alone, `[Q, N]`.

    It is the covariance of the measurement with leaving the image out, over the variance of that. If effects add up and all
    subsets have one size, its expectation is N / (N − 1) times the image's effect less the mean effect. The noise of one
    image is large; means over many are of use.
    """
    return _effects(mean_measurements(truth), truth)


def effects_by_score(
    scores: AnyScores, truth: GroundTruth, edges: Sequence[float], *, confidence: float = 0.95
) -> Curve:
    """The mean real effect of images against their standardised score.

    Args:
        edges: inner edges of the bins, ascending; a bin that holds no image is NaN.
    """
    values, measured = _checked(scores, truth)
    place = np.digitize(values, edges)
    inside = np.stack([place == one for one in range(len(edges) + 1)], axis=-1).astype(np.float64)
    effects = np.stack([_effects(measured, truth, weights) for weights in _each_left_out(len(truth.masks))])
    sums = np.einsum("jqn,qnb->jqb", effects, inside, optimize=True)
    parts = np.stack([sums, np.broadcast_to(inside.sum(1), sums.shape)])
    found, intervals = crossed_jackknife(
        np.moveaxis(parts, 0, -1), lambda sums: _ratio(sums[..., 0], sums[..., 1]), confidence
    )
    images = inside.sum((0, 1))
    return Curve(_ratio((values[..., None] * inside).sum((0, 1)), images), found, intervals, images / len(values))


def slopes_of_signs(scores: AnyScores, truth: GroundTruth, *, confidence: float = 0.95) -> Slopes:
    """Regression of what is measured on the sums of the high and of the low scores left out; one plane for all queries."""
    values, measured = _checked(scores, truth)
    sums = [predicted_changes(part, truth) for part in (np.maximum(values, 0), np.minimum(values, 0))]
    columns = np.stack([*sums, measured], axis=-1)
    weights = _each_left_out(len(truth.masks))
    products = np.einsum("jm,qma,qmb->jqab", weights, columns, columns, optimize=True)
    totals = np.einsum("jm,qma->jqa", weights, columns)
    parts = products - totals[..., :, None] * totals[..., None, :] / weights.sum(1)[:, None, None, None]
    found, intervals = crossed_jackknife(parts, _slopes, confidence)
    return Slopes(*_estimates(found, intervals))


def effect_spread(scores: AnyScores, truth: GroundTruth, *, confidence: float = 0.95) -> EffectSpread:
    """The variance of real effects among the images of low and of high scores, and the skewness of all effects.

    Products of what different subsets say of an image have no noise in common, so sums over pairs and triples of subsets are
    free of it.

    Raises:
        DataError: fewer than four subsets.
    """
    values, measured = _checked(scores, truth)
    single = _contributions(measured, truth)
    high = values > 0
    everywhere = np.ones_like(high)
    wanted = (~high, 2), (high, 2), (everywhere, 2), (everywhere, 3)
    parts = [_moments(single, among, power) for among, power in wanted]
    found, intervals = crossed_jackknife(np.concatenate(parts, axis=-1), _spread, confidence)
    return EffectSpread(*_estimates(found, intervals))


def crossed_jackknife(
    parts: Float[np.ndarray, "M1 Q ..."], statistic: Callable[[np.ndarray], np.ndarray], confidence: float = 0.95
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "... 2"]]:
    """A function of sums over queries with its interval: queries and subsets are two crossed samples, each is left out in turn.

    The variances of both jackknives are added, which counts what is particular to one query with one subset twice: intervals
    err on the wide side.

    Args:
        parts: of each query, of all M subsets and then with each of them left out.
        statistic: of the parts summed over queries, the last axes; it takes further axes in front.
    """
    total = parts[0].sum(0)
    value = statistic(total)
    variance = sum(_jackknife(statistic(sums)) for sums in (parts[1:].sum(1), total - parts[0]))
    degrees = min(len(parts) - 1, parts.shape[1]) - 1
    width = np.sqrt(variance) * t.isf((1 - confidence) / 2, max(degrees, 1))
    return np.asarray(value), np.stack([value - width, value + width], axis=-1)


def _jackknife(values: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, "..."]:
    return np.asarray(values.var(0) * (len(values) - 1))


def _checked(scores: AnyScores, truth: GroundTruth) -> tuple[Array, Float[np.ndarray, "Q M"]]:
    """Standardised scores, and measurements in standard deviations over subsets."""
    predicted_changes(scores, truth)  # refuses scores of another shape, or NaN
    measured = mean_measurements(truth)
    spread = measured.std(1, ddof=1, keepdims=True)
    require(
        bool((spread > 0).all()), "measurements: some are the same for every subset; leave these queries out", DataError
    )
    return standardised(scores), measured / spread


def _each_left_out(subsets: int) -> Float[np.ndarray, "M1 M"]:
    return np.vstack([np.ones(subsets), 1 - np.eye(subsets)])


def _left_out(truth: GroundTruth) -> tuple[Float[np.ndarray, "M N"], float]:
    """Which images each subset leaves out, less the share it leaves out, and the variance of that."""
    out = (~truth.masks).double().numpy()
    share = out.mean()
    return out - out.mean(1, keepdims=True), float(share * (1 - share))


def _effects(
    measured: Float[np.ndarray, "Q M"], truth: GroundTruth, weights: Float[np.ndarray, "M"] | None = None
) -> Array:
    kept = np.ones(measured.shape[1]) if weights is None else weights
    out, variance = _left_out(truth)
    centred = measured - (measured @ kept / kept.sum())[:, None]
    found: np.ndarray = (centred * kept) @ out / ((kept.sum() - 1) * variance)
    return found


def _contributions(measured: Float[np.ndarray, "Q M"], truth: GroundTruth) -> Float[np.ndarray, "Q M N"]:
    """What each subset says of each image's effect; their mean over subsets is the effect."""
    (out, variance), subsets = _left_out(truth), measured.shape[1]
    centred = measured - measured.mean(1, keepdims=True)
    found: np.ndarray = centred[:, :, None] * out * (subsets / ((subsets - 1) * variance))
    return found


def _moments(
    single: Float[np.ndarray, "Q M N"], among: Bool[np.ndarray, "Q N"], power: int
) -> Float[np.ndarray, "M1 Q 2"]:
    """Sum over some images of (effect − their mean effect)^power, by products of different subsets; and their number less 1."""
    inside = among.astype(np.float64)
    count = inside.sum(1)
    mean = np.einsum("qmn,qn->qm", single, inside) / np.maximum(count, 1)[:, None]
    values = (single - mean[:, :, None]) * inside[:, None]
    powers = [(values**degree).sum(1) for degree in range(1, power + 1)]
    found = np.empty((values.shape[1] + 1, len(values), 2))
    for row, sums in enumerate([powers, *([total - values[:, m] ** d for d, total in enumerate(powers, 1)]
                                          for m in range(values.shape[1]))]):  # fmt: skip
        found[row, :, 0] = _of_different(sums, values.shape[1] - (row > 0)).sum(1)
        found[row, :, 1] = np.maximum(count - 1, 0)
    return found


def _of_different(powers: list[Float[np.ndarray, "..."]], count: int) -> Float[np.ndarray, "..."]:
    """Mean of products of two or three different ones of `count` values, from sums of their powers (Newton's identities)."""
    first, second = powers[:2]
    if len(powers) == 2:
        return (first**2 - second) / (count * (count - 1))
    return (first**3 - 3 * first * second + 2 * powers[2]) / (count * (count - 1) * (count - 2))


def _slopes(moments: Float[np.ndarray, "... 3 3"]) -> Float[np.ndarray, "... 3"]:
    solved = np.linalg.solve(moments[..., :2, :2], moments[..., :2, 2:])[..., 0]
    return np.concatenate([solved, _ratio(solved[..., 1:], solved[..., :1])], axis=-1)


def _spread(sums: Float[np.ndarray, "... 8"]) -> Float[np.ndarray, "... 4"]:
    low, high, all_images, third = (_ratio(sums[..., 2 * part], sums[..., 2 * part + 1]) for part in range(4))
    return np.stack([low, high, _ratio(low, high), _ratio(third, np.maximum(all_images, 0) ** 1.5)], axis=-1)


def _ratio(above: ArrayLike, below: ArrayLike) -> Float[np.ndarray, "..."]:
    first, second = np.broadcast_arrays(above, below)
    return np.divide(first, second, out=np.full(first.shape, np.nan), where=second != 0)


def _estimates(values: Float[np.ndarray, "n"], intervals: Float[np.ndarray, "n 2"]) -> list[Estimate]:
    return [
        Estimate(float(value), (float(low), float(high))) for value, (low, high) in zip(values, intervals, strict=True)
    ]
