"""Rectified scores, and what images really do by their score, on ground truths of known effects."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from simulated import covered, simulated, truth_of

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import predicted_changes, spearman
from diffinf_lib.evaluation.rectification import (
    RECTIFIERS,
    _contributions,
    _of_different,
    crossed_jackknife,
    effect_spread,
    effects_by_score,
    image_effects,
    rectified,
    slopes_of_signs,
    standardised,
    without_detail,
)

EDGES = (-1.0, 0.0, 1.0)


def additive(effects, subsets=60, noise=0.3, seed=0):
    """A ground truth in which effects of images left out add up, with noise of retraining."""
    generator = np.random.default_rng(seed)
    count = effects.shape[1]
    masks = np.stack([generator.permutation(count) < count // 2 for _ in range(subsets)])
    clean = (~masks).astype(np.float64) @ effects.T
    measured = clean + noise * clean.std(0) * generator.normal(size=clean.shape)
    return truth_of(torch.tensor(masks), torch.tensor(measured[:, None]))


def one_sided(queries=12, count=60, seed=1):
    """Few images raise the measurement, most do nearly nothing."""
    return np.random.default_rng(seed).exponential(size=(queries, count)) ** 3


def test_over_all_halves_an_effect_is_found_but_for_the_mean_of_all():
    effects = np.random.default_rng(0).normal(size=(3, 6))
    left_out = np.array([[image in half for image in range(6)] for half in combinations(range(6), 3)])
    truth = truth_of(torch.tensor(~left_out), torch.tensor((left_out @ effects.T)[:, None]))
    subsets = len(left_out)
    expected = (effects - effects.mean(1, keepdims=True)) * 6 / 5 * subsets / (subsets - 1)
    np.testing.assert_allclose(image_effects(truth), expected, atol=1e-12)


@pytest.mark.parametrize("power", [2, 3])
def test_products_of_different_values_are_those_of_a_loop(power):
    values = np.random.default_rng(0).normal(size=6)
    expected = np.mean([np.prod(values[list(chosen)]) for chosen in permutations(range(6), power)])
    sums = [np.array([(values**degree).sum()]) for degree in range(1, power + 1)]
    assert _of_different(sums, 6) == pytest.approx(expected)


def test_what_single_subsets_say_averages_to_the_effect():
    _, truth = simulated()
    measured = truth.measurements.mean(1).T.numpy()
    np.testing.assert_allclose(_contributions(measured, truth).mean(1), image_effects(truth), atol=1e-12)


def test_bins_hold_the_mean_effect_of_their_images_and_its_jackknife():
    scores, truth = simulated(subsets=10, queries=4)
    curve = effects_by_score(scores, truth, EDGES)
    spread = truth.measurements.mean(1).std(0)
    place = np.digitize(standardised(scores), EDGES)

    def means(truth, queries):
        effects = image_effects(truth) / spread.numpy()[:, None]
        return np.array([effects[queries][place[queries] == one].mean() for one in range(4)])

    everyone = np.arange(4)
    np.testing.assert_allclose(curve.effects, means(truth, everyone))
    np.testing.assert_allclose(curve.images * 4, np.bincount(place.ravel()))
    subsets = np.array([means(truth.select(torch.arange(10) != one), everyone) for one in range(10)])
    queries = np.array([means(truth, everyone[everyone != one]) for one in range(4)])
    variance = 9 * subsets.var(0) + 3 * queries.var(0)
    np.testing.assert_allclose(np.diff(curve.intervals).ravel(), 2 * 3.18245 * np.sqrt(variance), rtol=1e-5)


def test_the_jackknife_of_a_mean_is_the_error_of_queries_and_of_subsets():
    values = np.random.default_rng(0).normal(size=(6, 9)) + np.arange(6)[:, None]
    parts = np.stack([values.mean(1), *((values.sum(1) - column) / 8 for column in values.T)])
    parts = np.stack([parts, np.ones_like(parts)], axis=-1)
    value, interval = crossed_jackknife(parts, lambda sums: sums[..., 0] / sums[..., 1])
    error = np.sqrt(values.mean(1).var(ddof=1) / 6 + values.mean(0).var(ddof=1) / 9)
    assert value == pytest.approx(values.mean())
    np.testing.assert_allclose(interval, value + error * 2.570582 * np.array([-1, 1]), rtol=1e-5)


def test_slopes_say_how_much_low_scores_are_worth():
    values = standardised(np.random.default_rng(0).normal(size=(12, 60)))
    for below in (1.0, 0.3, 0.0):
        found = slopes_of_signs(values, additive(np.where(values > 0, values, below * values)))
        low, high = found.ratio.interval
        assert low < below < high and high - low < 0.4
        assert found.high.interval[0] > 0


def test_slope_ratios_are_covered():
    estimates = []
    for seed in range(80):
        scores, truth = simulated(subsets=24, seeds=1, seed=seed)
        estimates.append(slopes_of_signs(scores, truth).ratio)
    assert covered(estimates, 1.0) >= 73


def test_spread_and_skewness_are_those_of_the_effects_without_their_noise():
    effects = one_sided()
    truth = additive(effects, subsets=1500, noise=1.0)
    scale = truth.measurements.mean(1).std(0).numpy()[:, None]
    found, centred = effect_spread(effects, truth), effects - effects.mean(1, keepdims=True)
    for part, among in ((found.low, centred <= 0), (found.high, centred > 0)):
        rows = zip(effects / scale, among, strict=True)
        expected = np.sum([row[chosen].var() * chosen.sum() for row, chosen in rows]) / (among.sum(1) - 1).sum()
        assert part.value == pytest.approx(expected, rel=0.1, abs=2e-4)
    third, second = ((centred / scale) ** 3).mean(), ((centred / scale) ** 2).mean()
    assert found.skewness.value == pytest.approx(third / second**1.5, rel=0.1)


def test_effects_of_nothing_have_no_spread():
    found = []
    for seed in range(30):
        scores, truth = simulated(subsets=20, seeds=1, noise=1e6, seed=seed)
        found.append(effect_spread(scores, truth).high)
    values = np.array([value for value, _ in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(30)
    assert covered(found, 0.0) >= 26


def test_flattening_helps_where_effects_are_one_sided_and_scores_err_and_harms_elsewhere():
    generator = np.random.default_rng(2)

    def gain(effects, error):
        truth = additive(effects, subsets=200)
        scores = standardised(effects) + error * generator.normal(size=effects.shape)
        return di.paired_difference(rectified(scores, "clamp"), scores, truth, bootstrap=100)

    assert gain(one_sided(), 1.0).interval[0] > 0.03
    assert gain(one_sided(), 0.0).interval[1] < 0
    assert gain(generator.normal(size=(12, 60)), 1.0).interval[1] < -0.03


def test_scores_as_they_are_keep_their_lds_and_the_scale_of_scores_is_of_no_account():
    scores, truth = simulated()
    measured = truth.measurements.mean(1).T.numpy()
    plain, same = (spearman(predicted_changes(s, truth), measured) for s in (scores, rectified(scores, "none")))
    np.testing.assert_allclose(plain, same)
    for name in RECTIFIERS:
        np.testing.assert_allclose(rectified(7 * scores + 3, name), rectified(scores, name), atol=1e-10)
    assert not standardised(np.ones((2, 5))).any()


def test_curves_do_what_their_names_say():
    values = np.array([[-2.0, -0.4, 0.0, 0.4, 2.0]])
    expected = {
        "none": [-2, -0.4, 0, 0.4, 2], "slope 0.5": [-1, -0.2, 0, 0.4, 2], "clamp": [0, 0, 0, 0.4, 2],
        "threshold -0.5": [0, 0.1, 0.5, 0.9, 2.5], "threshold 1": [0, 0, 0, 0, 1], "power 1.3": [0, 0, 0, 0.4**1.3, 2**1.3],
        "both ends 0.5": [-1.5, 0, 0, 0, 1.5],
    }  # fmt: skip
    for name, row in expected.items():
        np.testing.assert_allclose(RECTIFIERS[name](values), [row], atol=1e-12)


def test_lost_detail_leaves_mean_and_values():
    values = np.random.default_rng(0).normal(size=(3, 20))
    averaged, shuffled = without_detail(values, values < 0), without_detail(values, values < 0, seed=1)
    for found in (averaged, shuffled):
        np.testing.assert_allclose(found.sum(1), values.sum(1))
        np.testing.assert_array_equal(found[values > 0], values[values > 0])
        assert not np.allclose(found, values)
    np.testing.assert_array_equal(np.sort(shuffled), np.sort(values))
    assert len(np.unique(averaged[0][values[0] < 0])) == 1


def test_what_cannot_be_judged_is_refused():
    scores, truth = simulated(queries=3)
    with pytest.raises(ConfigurationError, match="rectifier='gelu': give one of none, "):
        rectified(scores, "gelu")
    with pytest.raises(DataError, match="NaN"):
        slopes_of_signs(scores * np.nan, truth)
    flat = truth.measurements.clone()
    flat[:, :, 1] = 2.0
    with pytest.warns(UserWarning, match="the same for every subset"):
        constant = truth_of(truth.masks, flat)
    with pytest.raises(DataError, match="leave these queries out"):
        effect_spread(scores, constant)
