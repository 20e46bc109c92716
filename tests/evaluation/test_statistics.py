from itertools import combinations

import numpy as np
import pytest
import scipy.stats

from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation.statistics import (
    holm,
    interval_p_value,
    percentile_interval,
    spearman,
    spearman_brown,
    split_half_reliability,
)


def test_spearman_agrees_with_scipy_with_and_without_ties():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(6, 20)), generator.integers(4, size=(6, 20)).astype(float)
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), expected, rtol=1e-12)


def test_a_constant_has_correlation_zero():
    assert spearman(np.ones((1, 5)), np.arange(5.0)[None]).tolist() == [0.0]


def test_interval_holds_its_share():
    low, high = percentile_interval(np.arange(1001.0), 0.9)
    assert (low, high) == pytest.approx((50.0, 950.0))


@pytest.mark.parametrize(("seeds", "noise"), [(2, 1.0), (4, 1.0), (5, 2.0)])
def test_reliability_recovers_the_share_of_true_variance(seeds, noise):
    generator = np.random.default_rng(1)
    truth = generator.normal(size=(400, 1, 30))
    measured = truth + noise * generator.normal(size=(400, seeds, 30))
    expected = 1 / (1 + noise**2 / seeds)
    assert abs(split_half_reliability(measured) - expected) < 0.03  # ranks cost a little


def test_spearman_brown_by_hand():
    assert spearman_brown(0.5) == pytest.approx(2 / 3)


def test_a_p_value_from_an_interval_is_that_of_the_normal_test():
    generator = np.random.default_rng(2)
    values = generator.normal(0.1, 1, size=400)
    error = values.std(ddof=1) / 20
    width = scipy.stats.norm.ppf(0.995) * error
    expected = 2 * scipy.stats.norm.sf(abs(values.mean()) / error)
    interval = values.mean() - width, values.mean() + width
    assert interval_p_value(values.mean(), interval, confidence=0.99) == pytest.approx(expected, rel=1e-12)
    for touching in ((0.0, 0.4), (0.0, 5.0)):
        assert interval_p_value(0.3, touching) == pytest.approx(0.05) == interval_p_value(-0.3, (-touching[1], 0.0))
    assert interval_p_value(0.0, (-1.0, 2.0)) == 1
    for interval in ((0.3, 0.5), (0.4, 0.5)):
        with pytest.raises(ConfigurationError, match="it must hold the value and leave room on the side of 0"):
            interval_p_value(0.3, interval)


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_holm_is_bonferroni_over_every_set_of_claims(count):
    """Closed testing (Marcus, Peritz & Gabriel 1976): a claim holds when every set with it is refused."""
    p_values = np.random.default_rng(count).uniform(size=count) ** 3
    sets = [list(some) for size in range(1, count + 1) for some in combinations(range(count), size)]
    closed = [max(min(1, len(some) * p_values[some].min()) for some in sets if i in some) for i in range(count)]
    np.testing.assert_allclose(holm(p_values), closed, rtol=1e-12)


def test_holm_seldom_finds_anything_where_there_is_nothing():
    p_values = np.random.default_rng(3).uniform(size=(2000, 12))
    found = np.mean([holm(row).min() < 0.05 for row in p_values])
    assert 0.035 < found < 0.065 and np.mean(p_values.min(1) < 0.05) > 0.4
