from dataclasses import replace

import numpy as np
import pytest
import torch
from annotations import unchecked
from simulated import simulated, truth_of

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import (
    constancy,
    lds,
    paired_difference,
    predicted_changes,
    removal_outcome,
    signs,
    signs_of_subsets,
    timestep_proxies,
)


def noisy(scores, error, seed):
    return scores + error * torch.randn(scores.shape, generator=torch.Generator().manual_seed(seed)).double()


def binned(noises=(0.5, 0.5, 0.5), errors=(3.0, 1.0, 0.3)):
    """Measurements of three ranges of timesteps of one signal, and scores that are better at higher timesteps."""
    scores, truth = simulated(subsets=60, queries=12, noise=0.0)
    generator = torch.Generator().manual_seed(3)
    clean = truth.measurements[..., None]
    noise = (
        torch.randn(*clean.shape[:3], len(noises), generator=generator).double() * clean.std() * torch.tensor(noises)
    )
    return torch.stack([noisy(scores, error, seed) for seed, error in enumerate(errors)]), clean + noise, truth


def test_every_entry_is_an_lds_and_every_advantage_a_paired_difference():
    scores, measured, truth = binned()
    found = timestep_proxies(scores, measured, truth, bootstrap=60, splits=2)
    assert found.lds.shape == found.advantage.shape == (3, 3) and found.intervals.shape == (3, 3, 2)
    for column in range(3):
        part = replace(truth, measurements=measured[..., column])
        for row in range(3):
            assert found.lds[row, column] == pytest.approx(lds(scores[row], part, bootstrap=2).mean)
        value, interval = paired_difference(scores[2], scores[column], part, bootstrap=60)
        assert found.advantage[2, column] == pytest.approx(value)
        np.testing.assert_allclose(found.intervals[2, column], interval)
        assert found.ceilings[column] == pytest.approx(di.ceiling(part))


def test_a_better_proxy_is_found_on_other_subsets_than_it_is_judged_on():
    scores, measured, truth = binned()
    found = timestep_proxies(scores, measured, truth, bootstrap=40, splits=4)
    assert found.best.tolist() == [2, 2, 2]
    assert [part.favourite for part in found.held_out] == [2, 2, 2]
    assert found.held_out[0].difference.interval[0] > 0.2
    assert found.held_out[2].difference == (0, (0, 0))
    assert (np.diag(found.advantage) == 0).all()


def test_scores_of_the_whole_loss_are_a_candidate_too():
    scores, measured, truth = binned()
    extended = torch.cat([scores, noisy(scores[:1], 0.0, 9)])
    assert timestep_proxies(extended, measured, truth, bootstrap=10, splits=1).lds.shape == (4, 3)


def test_proxies_refuse_bad_input():
    scores, measured, truth = binned()
    with pytest.raises(ConfigurationError, match="2 scores for 3 measured ranges"):
        timestep_proxies(scores[:2], measured, truth)
    with unchecked(), pytest.raises(ConfigurationError, match=r"give \[M, K, Q, bins\]"):
        timestep_proxies(scores, measured[..., 0], truth)
    with unchecked(), pytest.raises(ConfigurationError, match="M differs"):
        timestep_proxies(scores, measured[:-1], truth)
    with pytest.raises(DataError, match="NaN"):
        timestep_proxies(scores * np.nan, measured, truth)


def test_signs_are_counted_as_written_out():
    scores, truth = simulated(subsets=30)
    full = truth.measurements.mean((0, 1)) - 2.0
    found = signs_of_subsets(scores, replace(truth, full_measurements=full))
    predicted = predicted_changes(scores, truth)
    real = (truth.measurements.mean(1) - full).T.numpy()
    assert found.predicted.value == pytest.approx((predicted > 0).mean())
    assert found.real.value == pytest.approx((real > 0).mean())
    assert found.agreement.value == pytest.approx(((predicted > 0) == (real > 0)).mean())
    assert found.excess.value == pytest.approx((real > 0).mean() - (predicted > 0).mean())
    np.testing.assert_allclose(found.real_per_query, (real > 0).mean(1))
    np.testing.assert_allclose(found.real_changes, real)
    low, high = found.real.interval
    assert 0 <= low < found.real.value < high <= 1
    assert "\n" not in str(found)


def test_full_measurements_may_have_seeds():
    scores, truth = simulated()
    full = torch.tensor([[1.0, 3.0]]).repeat(8, 1)
    found = signs_of_subsets(scores, truth, full=full)
    np.testing.assert_allclose(found.real_changes, truth.measurements.mean(1).T.numpy() - 2)


def test_shares_cover_at_least_their_nominal_rate():
    """Signs that share something within queries and within subsets; 95% of 200, less 3 standard errors."""
    generator, hits = np.random.default_rng(0), 0
    for _ in range(200):
        real = 0.5 + generator.normal(size=(15, 1)) + generator.normal(size=(1, 25)) + generator.normal(size=(15, 25))
        low, high = signs(-real, real, bootstrap=100).real.interval
        hits += low <= 0.6136 <= high  # Φ(0.5 / √3)
    assert hits >= 181


def test_the_excess_is_paired():
    """Real changes that have the predicted signs in all cases but one leave next to nothing to be unsure of."""
    predicted = np.random.default_rng(1).normal(size=(12, 20))
    real = np.where(predicted == predicted.min(), 1.0, predicted)
    found = signs(predicted, real)
    low, high = found.excess.interval
    assert found.excess.value == pytest.approx(1 / predicted.size) and low <= found.excess.value <= high
    assert high - low < 0.2 * (found.real.interval[1] - found.real.interval[0])


def test_signs_of_removals_take_any_columns():
    full = np.ones((3, 2))
    outcome = removal_outcome({"top": full + 1, "bottom": full + 0.5}, full)
    real = np.stack([outcome.changes[name].per_query for name in ("top", "bottom")], axis=1)
    found = signs(np.array([[2.0, -1.0]] * 3), real)
    assert (found.predicted.value, found.real.value, found.agreement.value) == (0.5, 1.0, 0.5)


def test_signs_refuse_bad_input():
    scores, truth = simulated()
    with pytest.raises(ConfigurationError, match="holds none"):
        signs_of_subsets(scores, truth)
    with unchecked(), pytest.raises(ConfigurationError, match=r"full measurements of shape \(7,\)"):
        signs_of_subsets(scores, truth, full=torch.zeros(7))
    with unchecked(), pytest.raises(ConfigurationError, match="give the same"):
        signs(np.ones((3, 4)), np.ones((4, 3)))
    with pytest.raises(DataError, match="NaN"):
        signs(np.ones((3, 4)), np.full((3, 4), np.nan))


def components(generator, subsets=40, seeds=3, queries=30, between=2.0, within=0.5, noise=0.8, common=0.3, shift=0.0):
    level = between * generator.normal(size=(1, 1, queries))
    subset = common * generator.normal(size=(subsets, 1, 1)) + np.sqrt(within**2 - common**2) * generator.normal(
        size=(subsets, 1, queries)
    )
    seed = shift * generator.normal(size=(1, seeds, queries))
    return level + subset + seed + noise * generator.normal(size=(subsets, seeds, queries))


def test_spreads_are_told_apart():
    generator = np.random.default_rng(0)
    found = [constancy(components(generator, shift=0.4), bootstrap=2) for _ in range(60)]
    for name, expected in [("between_queries", 2.0), ("between_subsets", 0.5), ("between_seeds", 0.4), ("noise", 0.8)]:
        assert np.sqrt(np.mean([getattr(part, name) ** 2 for part in found])) == pytest.approx(expected, rel=0.08)
    assert np.mean([part.intraclass_correlation.value for part in found]) == pytest.approx(4 / 5.05, abs=0.03)
    assert np.mean([part.variance_ratio.value for part in found]) == pytest.approx(0.25 / 4, rel=0.15)
    assert np.mean([part.shared for part in found]) == pytest.approx(0.3, rel=0.15)


def test_a_measurement_that_never_changes_is_wholly_between_queries():
    found = constancy(np.broadcast_to(np.arange(5.0), (4, 2, 5)))
    assert found.intraclass_correlation == (1, (1, 1))
    assert found.variance_ratio.value == 0
    np.testing.assert_allclose(found.subset_spread, 0)


def test_intervals_of_the_intraclass_correlation_cover_most_of_the_time():
    """Percentiles of 30 queries; nominal 95% of 200, less what percentiles of few queries lose."""
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = constancy(components(generator), bootstrap=200).intraclass_correlation.interval
        hits += low <= 4 / 4.89 <= high
    assert hits >= 172


def test_what_a_seed_does_to_all_subsets_alike_is_not_taken_from_them():
    values = components(np.random.default_rng(0), noise=0.05)
    shifted = values + 10 * np.random.default_rng(1).normal(size=(1, 3, 30))
    first, second = constancy(values, bootstrap=2), constancy(shifted, bootstrap=2)
    assert second.between_subsets == pytest.approx(first.between_subsets, rel=1e-9)
    assert second.noise == pytest.approx(first.noise, rel=1e-6) and second.between_seeds == pytest.approx(10, rel=0.2)


def test_one_seed_has_no_noise_of_its_own():
    found = constancy(components(np.random.default_rng(0), seeds=1))
    assert np.isnan([found.between_seeds, found.noise]).all() and np.isnan(found.seed_spread).all()
    assert np.isfinite(found.between_subsets)


def test_the_loss_of_a_query_depends_on_the_query_above_all_on_the_shipped_ground_truth():
    found = constancy(di.load_ground_truth().measurements)
    assert found.intraclass_correlation.interval[0] > 0.5
    assert found.between_subsets < found.between_queries
    assert "\n" not in str(found)


def test_constancy_refuses_bad_input():
    _, truth = simulated()
    for wrong in (truth.measurements[:1], truth.measurements[..., :2], truth.measurements[:, 0]):
        with unchecked(), pytest.raises(ConfigurationError, match=r"give \[M, K, Q\]"):
            constancy(wrong)
    with pytest.raises(DataError, match="NaN"):
        constancy(truth.measurements * np.nan)
    with pytest.raises(DataError, match="NaN"):
        truth_of(truth.masks, truth.measurements * np.nan)
