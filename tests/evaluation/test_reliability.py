import dataclasses

import numpy as np
import pytest
import torch
from simulated import simulated

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import random_control, retraining_lds, score_reliability, seed_reliability, self_consistency


def test_reliability_of_scores_is_the_share_of_their_variance_that_draws_do_not_make():
    scores, truth = simulated(subsets=300, queries=20)
    generator = torch.Generator().manual_seed(1)
    halves = [scores + 0.8 * torch.randn(scores.shape, generator=generator).double() for _ in range(2)]
    found = score_reliability(*halves, truth)
    assert found.value == pytest.approx(1 / (1 + 0.8**2 / 2), abs=0.03)
    assert found.interval[0] < found.value < found.interval[1]


def test_scores_that_agree_are_reliable_and_scores_that_do_not_are_not():
    scores, truth = simulated()
    assert score_reliability(scores, scores, truth, bootstrap=20).value == pytest.approx(1)
    assert score_reliability(scores, -scores, truth, bootstrap=20).value == 0


@pytest.mark.parametrize("seeds", [1, 3])
def test_reliability_of_seeds_is_the_share_of_the_signal(seeds):
    _, truth = simulated(subsets=400, seeds=4, queries=40)
    measured = truth.measurements.mean(1)
    clean = measured.var(0) - (truth.measurements.var(1).mean(0) / 4)
    noise = truth.measurements.var(1).mean(0)
    expected = float((clean / (clean + noise / seeds)).mean())
    assert seed_reliability(truth, seeds) == pytest.approx(expected, abs=0.03)


def test_seeds_that_only_differ_by_noise_predict_a_further_one_at_the_ceiling():
    _, truth = simulated(subsets=100, seeds=3)
    found = self_consistency(truth)
    assert found.lds.value == pytest.approx(di.ceiling(truth))
    assert found.lds.value == pytest.approx(found.expected, abs=0.01)
    assert found.lds.interval[0] < found.expected < found.lds.interval[1]
    pairs = seed_reliability(truth), seed_reliability(truth, 2)
    assert found.expected == pytest.approx(np.prod(pairs) ** 0.5)


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_one_retraining_against_as_many_seeds_as_scores(seeds):
    _, truth = simulated(subsets=400, seeds=seeds + 1, queries=40)
    first = dataclasses.replace(truth, measurements=truth.measurements[:, :seeds])
    others, last = truth.measurements[:, :seeds].mean(1), truth.measurements[:, seeds]
    direct = di.evaluation.spearman(others.T.numpy(), last.T.numpy()).mean()
    assert retraining_lds(first) == pytest.approx(direct, abs=0.015)
    assert retraining_lds(first) > di.ceiling(first)


def test_a_retraining_among_seeds_that_disagree_has_no_value():
    _, truth = simulated(subsets=40, seeds=2)
    opposed = torch.stack([truth.measurements[:, 0], -truth.measurements[:, 0]], 1)
    assert np.isnan(retraining_lds(dataclasses.replace(truth, measurements=opposed)))


def test_random_scores_predict_nothing():
    _, truth = simulated(subsets=60, queries=20)
    value, (low, high) = random_control(truth)
    assert low < 0 < high
    assert abs(value) < 0.03


@pytest.mark.parametrize("queries", ["held-out", "generated"])
def test_controls_hold_on_the_shipped_ground_truth(queries):
    truth = di.load_ground_truth("digits-ground-truth", queries)
    low, high = random_control(truth).interval
    assert low < 0 < high < 0.05
    found = self_consistency(truth)
    assert found.lds.value == pytest.approx(di.ceiling(truth))
    assert found.lds.interval[0] < found.expected < found.lds.interval[1]


def test_bad_input_is_refused():
    scores, truth = simulated()
    _, single = simulated(seeds=1)
    for call in (self_consistency, seed_reliability, retraining_lds):
        with pytest.raises(ConfigurationError, match="one seed"):
            call(single)
    with pytest.raises(ConfigurationError, match="3 subsets: too few"):
        self_consistency(truth.first_subsets(3))
    with pytest.raises(DataError, match="NaN"):
        score_reliability(scores, np.nan * scores, truth)
    with pytest.raises(ConfigurationError, match="repeats=0"):
        random_control(truth, repeats=0)
