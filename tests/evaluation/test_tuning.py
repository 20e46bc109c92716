import numpy as np
import pytest
import scipy.stats
import torch
from simulated import covered, simulated, world

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import lds, predicted_changes, tuned_difference, tuned_lds
from diffinf_lib.evaluation.tuning import _Halving, halves


def noisy(scores, errors, seed=1):
    """Scores of several options: the true ones and as much noise."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([scores + error * torch.randn(scores.shape, generator=generator).double() for error in errors])


def test_copies_of_a_subset_stay_in_one_half_and_halves_are_even():
    generator = np.random.default_rng(0)
    counts = generator.multinomial(20, np.full(20, 0.05), size=6).astype(float)
    split = halves(counts, generator.random((6, 3, 20)))
    np.testing.assert_array_equal(split.sum(2), np.broadcast_to(counts[:, None], (6, 3, 20)))
    assert ((split > 0).sum(2) <= 1).all()
    sizes = (split > 0).sum(-1)
    assert (abs(sizes[..., 0] - sizes[..., 1]) <= 1).all()


def test_one_halving_by_hand():
    scores, truth = simulated(subsets=20, queries=5)
    predicted = np.stack([predicted_changes(matrix, truth) for matrix in noisy(scores, (2.0, 1.0, 3.0))])
    measured = truth.measurements.mean(1).T.numpy()
    keys = np.random.default_rng(7).random((1, 1, 20))[0, 0]
    found, chosen = _Halving(predicted, measured, 1, np.random.default_rng(7)).judge(
        np.ones((1, 20)), np.full((1, 5), 0.2)
    )
    sides = [np.sort(side) for side in np.split(np.argsort(keys), 2)]

    def correlations(option, side):
        return [scipy.stats.spearmanr(predicted[option, q, side], measured[q, side]).statistic for q in range(5)]

    best = [int(np.argmax([np.mean(correlations(option, side)) for option in range(3)])) for side in sides]
    assert chosen[0, 0].tolist() == best
    expected = np.mean([correlations(best[0], sides[1]), correlations(best[1], sides[0])], axis=0)
    np.testing.assert_allclose(found[-1, 0], expected)
    np.testing.assert_allclose(found[2, 0], np.mean([correlations(2, side) for side in sides], axis=0))


def test_a_clearly_better_option_is_found_and_gains_what_it_is_worth():
    scores, truth = simulated(subsets=60, queries=12)
    options = noisy(scores, (4.0, 0.5, 2.0))
    result = tuned_lds(options, truth, options=[1.0, 0.1, 0.01], default=1.0, bootstrap=60)
    assert result.chosen.tolist() == [0, 1, 0] and result.favourite == 0.1
    assert result.per_option == pytest.approx([di.lds(option, truth, bootstrap=2).mean for option in options])
    gain = result.per_option[1] - result.per_option[0]
    assert result.difference.value == pytest.approx(gain, abs=0.05)
    assert result.difference.value == pytest.approx(result.tuned.value - result.default.value)
    assert result.difference.interval[0] > 0
    assert "mostly 0.1" in str(result) and "\n" not in str(result)


def test_choosing_among_random_scores_gains_nothing():
    """The largest LDS of 20 random options is well above 0; judged on other subsets, the chosen one is not."""
    _, truth = simulated(subsets=40, queries=10)
    options = torch.randn(20, 10, 30, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    result = tuned_lds(options, truth, options=range(20), default=0, bootstrap=40)
    assert result.per_option.max() > 0.08
    assert result.tuned.interval[0] < 0 < result.tuned.interval[1]


def test_one_option_is_its_own_default():
    scores, truth = simulated()
    result = tuned_lds(scores[None], truth, options=[1e-8], default=1e-8, bootstrap=30)
    assert result.tuned == result.default
    assert result.difference == (0, (0, 0))


def test_of_equal_options_the_first_is_chosen():
    scores, truth = simulated()
    result = tuned_lds(torch.stack([scores, scores]), truth, options=[3, 2], default=2, bootstrap=10)
    assert result.chosen.tolist() == [1, 0]
    assert result.difference.value == 0


def test_a_default_that_is_hardly_ever_beaten_lies_in_the_interval_of_its_difference():
    """A choice that falls on another option in a few resamples only moves their mean, but not what most of them say."""
    scores, truth = simulated(subsets=40, queries=10)
    rare = 0
    for seed in range(1, 6):
        result = tuned_lds(noisy(scores, (0.5, 2.0), seed), truth, options=[0, 1], default=0, bootstrap=120)
        value, (low, high) = result.difference
        assert low <= value <= high
        shifts = result.sampled["tuned"].resamples - result.sampled["default"].resamples
        rare += 0 < np.count_nonzero(shifts) <= 3  # no more than a tail of 120 holds
    assert rare


@pytest.mark.parametrize("errors", [(1.0, 1.0, 1.0), (2.0, 1.0, 1.2)])
def test_intervals_cover(errors):
    """Nominal 95% of 120; the band is 3 standard errors."""
    generator, found = np.random.default_rng(3), []
    for _ in range(120):
        scores, truth = world(generator, errors)
        found.append(tuned_lds(scores, truth, options=range(3), default=0, splits=4, bootstrap=60))
    for name in ("tuned", "default", "difference"):
        estimates = [getattr(result, name) for result in found]
        value = np.mean([estimate.value for estimate in estimates])
        assert covered(estimates, value) >= 107
        assert np.mean([high - low for _, (low, high) in estimates]) < 8 * np.std([part.value for part in estimates])


def test_two_tuned_methods_are_compared_on_the_same_halves():
    scores, truth = simulated(subsets=40)
    good, bad = noisy(scores, (0.5, 1.0)), noisy(scores, (3.0, 4.0), seed=2)
    settings = {"options": [1, 2], "default": 1, "bootstrap": 40}
    first, second = (tuned_lds(options, truth, **settings) for options in (good, bad))
    difference = tuned_difference(first, second)
    assert difference.value == pytest.approx(first.tuned.value - second.tuned.value)
    assert difference.interval[0] > 0
    assert tuned_difference(first, first) == (0, (0, 0))
    other = tuned_lds(bad, truth, **{**settings, "bootstrap": 41})
    with pytest.raises(ConfigurationError, match="one ground truth"):
        tuned_difference(first, other)


def test_held_out_halves_come_near_the_lds_of_all_subsets():
    scores, truth = simulated(subsets=64, queries=20)
    option = noisy(scores, (1.0,))
    result = tuned_lds(option, truth, options=[0], default=0, bootstrap=20)
    assert result.default.value == pytest.approx(lds(option[0], truth).mean, abs=0.03)


def test_bad_input_is_refused():
    scores, truth = simulated(subsets=8)
    options = torch.stack([scores, scores])
    settings = {"options": [1.0, 2.0], "default": 1.0}
    for changed, message in [
        ({"options": [1.0]}, "scores of 2 options and 1 options"),
        ({"default": 3.0}, "default=3.0: give one of the options, 1, 2"),
        ({"splits": 0}, "splits=0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            tuned_lds(options, truth, **{**settings, **changed})
    with pytest.raises(ConfigurationError, match="7 subsets: too few to halve; give at least 8"):
        tuned_lds(options, truth.first_subsets(7), **settings)
    with pytest.raises(DataError, match="NaN"):
        tuned_lds(options * float("nan"), truth, **settings)
    with pytest.raises(ConfigurationError, match=r"\(30, 8\)"):
        tuned_lds(options.mT, truth, **settings)
