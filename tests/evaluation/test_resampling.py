import numpy as np
import pytest
import scipy.stats
from simulated import covered, world

from diffinf_lib.evaluation.lds import sampled_lds
from diffinf_lib.evaluation.resampling import (
    Estimate,
    Resampled,
    Resamples,
    resample_mean,
    resampled_spearman,
    unit_ranks,
    variance_components,
)


def with_ties(generator, *shape):
    return generator.integers(6, size=shape).astype(float)


def test_spearman_of_resamples_is_scipys_on_the_copies_written_out():
    generator = np.random.default_rng(0)
    predicted, measured = with_ties(generator, 2, 3, 12), generator.normal(size=(3, 12))
    counts = Resamples.draw(3, 12, 5, seed=1).subsets
    found = resampled_spearman(predicted, measured, counts)
    for resample, drawn in enumerate(counts.astype(int)):
        copies = np.repeat(np.arange(12), drawn)
        for method in range(2):
            for query in range(3):
                expected = scipy.stats.spearmanr(predicted[method, query, copies], measured[query, copies]).statistic
                assert found[method, resample, query] == pytest.approx(expected, abs=1e-12)


def test_a_constant_has_no_ranks():
    assert not unit_ranks(np.ones(4), np.array([[1.0, 2.0, 0.0, 1.0]])).any()


def test_resamples_hold_as_many_subsets_and_queries_and_share_their_seed():
    first, second = (Resamples.draw(7, 20, 30, seed=3) for _ in range(2))
    assert (first.subsets.sum(1) == 20).all()
    np.testing.assert_allclose(first.queries.sum(1), 1)
    np.testing.assert_array_equal(first.subsets, second.subsets)


def test_variance_components_are_recovered():
    generator = np.random.default_rng(0)
    draws = [variance_components(
        0.5 * generator.normal(size=(20, 1)) + 0.3 * generator.normal(size=(1, 25)) + generator.normal(size=(20, 25))
    ) for _ in range(400)]  # fmt: skip
    means = np.mean([(part.queries, part.subsets, part.rest) for part in draws], axis=0)
    np.testing.assert_allclose(means, [0.25, 0.09, 1.0], rtol=0.06)


def test_the_standard_error_of_a_mean_is_that_of_fresh_samples():
    generator = np.random.default_rng(1)
    samples = [
        generator.normal(size=(10, 1)) + 0.5 * generator.normal(size=(1, 30)) + 2 * generator.normal(size=(10, 30))
        for _ in range(500)
    ]
    spread = np.std([sample.mean() for sample in samples])
    errors = [variance_components(sample).standard_error for sample in samples]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(spread, rel=0.1)


def test_one_query_is_a_sample_of_its_subsets():
    values = np.random.default_rng(0).normal(size=(1, 9))
    components = variance_components(values)
    assert components.standard_error == pytest.approx(values.std(ddof=1) / 3)
    assert components.degrees == 8


def test_the_mean_of_plain_values_is_resampled_as_written_out():
    generator = np.random.default_rng(0)
    values, resamples = generator.normal(size=(3, 5)), Resamples.draw(3, 5, 4, seed=0)
    found = resample_mean(values, resamples)
    assert found.mean == pytest.approx(values.mean())
    for drawn, counts, shares in zip(found.resamples, resamples.subsets, resamples.queries, strict=True):
        rows, columns = (
            np.repeat(np.arange(3), np.round(3 * shares).astype(int)),
            np.repeat(np.arange(5), counts.astype(int)),
        )
        assert drawn == pytest.approx(values[np.ix_(rows, columns)].mean())


def test_differences_and_averages_are_those_of_the_values():
    generator = np.random.default_rng(0)
    scores, truth = world(generator, (1.0, 2.0))
    first, second = sampled_lds(scores, truth, bootstrap=50)
    np.testing.assert_allclose((first - second).per_query, first.per_query - second.per_query)
    assert Resampled.average([first, second]).mean == pytest.approx((first.mean + second.mean) / 2)
    assert (first - first).estimate() == (0, (0, 0))


def test_a_few_resamples_far_out_do_not_push_the_interval_off_its_value():
    resamples = np.zeros(200)
    resamples[:2] = -0.5
    part = Resampled(np.full(4, 0.125), resamples, np.zeros((4, 6)), reference=np.zeros(200))
    assert part.estimate() == (0.125, (0.125, 0.125))
    resamples[2:42] = 0.01
    value, (low, high) = part.estimate()
    assert (value, low) == (0.125, 0.125) and high == pytest.approx(0.135)


def test_an_estimate_unpacks_and_prints_in_one_line():
    value, (low, high) = Estimate(0.5, (0.4, 0.6))
    assert (value, low, high) == (0.5, 0.4, 0.6)
    assert str(Estimate(0.5, (0.4, 0.6))) == "50.0 % [40.0, 60.0]"


@pytest.mark.parametrize(("errors", "noise"), [((0.1,), 0.2), ((1.0,), 0.7), ((6.0,), 1.0), ((1.0, 1.3), 0.7)])
def test_intervals_cover_what_ground_truths_of_this_size_give_on_average(errors, noise):
    """A strong, a usual and a weak method, and the difference of two; nominal 95% of 200, the band is 3 standard errors."""
    generator, found = np.random.default_rng(0), []
    for _ in range(200):
        scores, truth = world(generator, errors, noise=noise)
        parts = sampled_lds(scores, truth, bootstrap=100)
        found.append((parts[0] - parts[1] if len(parts) > 1 else parts[0]).estimate())
    value = np.mean([estimate.value for estimate in found])
    assert 180 <= covered(found, value) <= 199
    # as wide as the estimates scatter: a little wider for few queries, where components are kept from falling below 0
    width = np.mean([high - low for _, (low, high) in found]) / 3.92
    assert 0.9 < width / np.std([estimate.value for estimate in found]) < 1.3
