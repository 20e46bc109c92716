import numpy as np
import pytest
import torch
from simulated import simulated, world

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import mean_measurements, power_analysis, predicted_changes, spearman
from diffinf_lib.evaluation.power import _line

ERRORS = (1.0, 2.0)


def differences(scores, truth):
    """Difference of LDS of each query, `[Q]`."""
    measured = mean_measurements(truth)
    first, second = (spearman(predicted_changes(matrix, truth), measured) for matrix in scores)
    return first - second


@pytest.fixture(scope="module")
def analyses():
    """What ten ground truths of 32 subsets × 3 seeds × 20 queries say about each other."""
    generator = np.random.default_rng(5)
    return [analysis_of_one(generator) for _ in range(10)]


def analysis_of_one(generator):
    scores, truth = world(generator, ERRORS, subsets=32, seeds=3, queries=20)
    return power_analysis(scores[0], scores[1], truth)


@pytest.mark.parametrize(
    ("subsets", "seeds", "queries"), [(32, 3, 20), (32, 1, 20), (32, 8, 20), (80, 2, 20), (16, 3, 60), (60, 1, 8)]
)
def test_the_standard_error_is_the_scatter_of_fresh_ground_truths(analyses, subsets, seeds, queries):
    """Other numbers of subsets, seeds and queries than the components were estimated from; within 25%."""
    generator, found = np.random.default_rng(11), []
    for _ in range(250):
        scores, truth = world(generator, ERRORS, subsets=subsets, seeds=seeds, queries=queries)
        found.append(differences(scores, truth).mean())
    predicted = np.sqrt(np.mean([power.standard_error(subsets, seeds, queries) ** 2 for power in analyses]))
    assert predicted == pytest.approx(np.std(found), rel=0.25)


def test_more_of_anything_helps(analyses):
    power = analyses[0]
    base = power.standard_error(32, 3, 20)
    assert power.standard_error(64, 3, 20) < base
    assert power.standard_error(32, 3, 40) < base
    assert power.standard_error(32, 3, 20, fixed_queries=True) < base
    assert power.smallest_difference(32, 6, 20) < power.smallest_difference(32, 3, 20)
    assert power.smallest_difference(32, 3, 20, power=0.9) > power.smallest_difference(32, 3, 20, power=0.8)
    assert power.smallest_difference(32, 3, 20, level=0.01) > power.smallest_difference(32, 3, 20, level=0.05)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_subsets_needed_are_those_that_find_the_difference(analyses, fixed):
    power = analyses[0]
    difference = power.smallest_difference(48, 2, 30, fixed_queries=fixed)
    assert power.subsets_needed(difference * (1 + 1e-9), 2, 30, fixed_queries=fixed) == 48
    assert power.subsets_needed(2 * difference, 2, 30, fixed_queries=fixed) < 48


def test_no_number_of_subsets_makes_up_for_too_few_queries():
    """Methods that are each better for half of the queries, by far: which is better on average is up to the queries."""
    scores, truth = simulated(subsets=64, queries=20, noise=0.3)
    noise = 3 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1)).double()
    odd = (torch.arange(20) % 2 == 1)[:, None]
    power = power_analysis(scores + noise * odd, scores + noise * ~odd, truth)
    assert power.subsets_needed(0.05, 3) == float("inf")
    assert power.subsets_needed(0.05, 3, fixed_queries=True) < 200
    assert power.queries > 10 * power.subsets


def test_a_difference_of_the_smallest_size_is_found_as_often_as_asked_for():
    """A z-test of fresh ground truths finds a true difference Δ in a share of Φ(Δ / error − 1.96) of them."""
    generator = np.random.default_rng(2)
    analyses = [analysis_of_one(generator) for _ in range(6)]
    smallest = np.mean([power.smallest_difference(32, 3, 20) for power in analyses])
    found = []
    for _ in range(300):
        scores, truth = world(generator, ERRORS, subsets=32, seeds=3, queries=20)
        found.append(differences(scores, truth).mean())
    # shift the scatter of real differences to where the true one is the smallest to be found
    shifted = np.array(found) - np.mean(found) + smallest
    error = np.mean([power.standard_error(32, 3, 20) for power in analyses])
    assert np.mean(shifted / error > 1.96) == pytest.approx(0.8, abs=0.08)


def test_seeds_are_told_from_subsets_by_a_line_over_one_over_k():
    exact = {count: np.array([0.0, 0.2 + 0.6 / count]) for count in (1, 2, 3)}
    assert _line(exact, 1) == pytest.approx((0.2, 0.6))
    falling = {count: np.array([0.0, 0.5 - 0.1 / count]) for count in (1, 2)}
    assert _line(falling, 1) == pytest.approx((0.425, 0.0))
    steep = {count: np.array([0.0, 1 / count - 0.1]) for count in (1, 2)}
    intercept, slope = _line(steep, 1)
    assert intercept == 0 and slope > 0


def test_the_shipped_ground_truth_predicts_its_own_parts():
    """Subsets of 16 of the 64, drawn without replacement: standard error as predicted for these queries, within 25%."""
    truth = di.load_ground_truth()
    generator = np.random.default_rng(0)
    # a method that is half right, and one that knows nothing
    masks = (~truth.masks).double()
    centred = truth.measurements.mean(1) - truth.measurements.mean((0, 1))
    right = torch.linalg.lstsq(masks - masks.mean(0), centred).solution.T
    right = right + 2 * right.std() * torch.tensor(generator.normal(size=right.shape))
    guess = torch.tensor(generator.normal(size=right.shape))
    power = power_analysis(right, guess, truth)
    found = [
        differences((right, guess), truth.select(torch.tensor(generator.permutation(64)[:16]))).mean()
        for _ in range(200)
    ]
    predicted = power.standard_error(16, 3, fixed_queries=True) * np.sqrt(1 - 16 / 64)
    assert predicted == pytest.approx(np.std(found), rel=0.25)
    assert power.difference == pytest.approx(differences((right, guess), truth).mean())


def test_bad_input_is_refused():
    scores, truth = simulated()
    _, single = simulated(seeds=1)
    with pytest.raises(ConfigurationError, match="one seed"):
        power_analysis(scores, scores, single)
    one, of_one = simulated(queries=1)
    with pytest.raises(ConfigurationError, match="one query"):
        power_analysis(one, one, of_one)
    with pytest.raises(ConfigurationError, match="3 subsets: too few"):
        power_analysis(scores, scores, truth.first_subsets(3))
    with pytest.raises(DataError, match="NaN"):
        power_analysis(scores, np.nan * scores, truth)
    power = power_analysis(scores, scores.flip(1), truth)
    for call, message in [
        (lambda: power.standard_error(0, 3), "subsets=0"),
        (lambda: power.standard_error(10, 0), "seeds=0"),
        (lambda: power.subsets_needed(0.0, 3), "difference=0.0"),
        (lambda: power.smallest_difference(10, 3, power=1.0), "power=1.0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            call()
