import numpy as np
import pytest
import scipy.stats

from diffinf_lib.evaluation.statistics import percentile_interval, spearman, spearman_brown, split_half_reliability


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
