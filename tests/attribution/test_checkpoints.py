"""Averages over checkpoints: what they weigh, what they keep, and that they err less."""

import pytest
import torch
from annotations import unchecked

from diffinf_lib.attribution.checkpoints import average_scores, split_draws
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.errors import ConfigurationError, DataError


def scores(count, seed=0, noise=1.0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(6, 200, generator=generator, dtype=torch.float64)
    return truth, [truth + noise * torch.randn(6, 200, generator=generator).double() for _ in range(count)]


def test_one_checkpoint_is_itself():
    _, (only,) = scores(1)
    torch.testing.assert_close(average_scores([only]), only)
    torch.testing.assert_close(average_scores([only], weighting="learning_rate", learning_rates=[0.3]), only)


def test_no_checkpoint_outweighs_the_others():
    """A checkpoint a thousand times as large changes the scale of the mean, not its ranks."""
    _, (first, second) = scores(2)
    even, uneven = average_scores([first, second]), average_scores([1000 * first, second])
    ratio = uneven / even
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    by_hand = (first / first.std(1, keepdim=True) + second / second.std(1, keepdim=True)) / 2
    by_hand = by_hand * (first.std(1, keepdim=True) + second.std(1, keepdim=True)) / 2
    torch.testing.assert_close(even, by_hand)


def test_learning_rates_weigh():
    _, (first, second) = scores(2)
    mean = average_scores([first, second], weighting="learning_rate", learning_rates=[3.0, 1.0])
    torch.testing.assert_close(mean, 0.75 * first + 0.25 * second)


def test_independent_errors_average_out():
    truth, found = scores(8)

    def error(values):
        return (values - truth).square().mean()

    assert error(average_scores(found)) < 0.2 * error(found[0])


def test_a_query_without_influence_stays_at_zero():
    _, (first, second) = scores(2)
    first[2] = 0.0
    second[2] = 0.0
    assert (average_scores([first, second])[2] == 0).all()


def test_draws_are_shared_out_in_whole_pairs():
    assert split_draws(DrawConfig(64), 5).count == 12
    assert split_draws(DrawConfig(64), 40).count == 2
    assert split_draws(DrawConfig(7, noise_rule="independent"), 3).count == 2


def test_bad_input_is_refused():
    _, (first, second) = scores(2)
    with pytest.raises(ConfigurationError, match="at least one"):
        average_scores([])
    with pytest.raises(ConfigurationError, match="scores of shapes"):
        average_scores([first, second[:3]])
    with unchecked(), pytest.raises(ConfigurationError, match="weighting='best'"):
        average_scores([first], weighting="best")
    with pytest.raises(ConfigurationError, match="give one for each of 2"):
        average_scores([first, second], weighting="learning_rate", learning_rates=[1.0])
    with pytest.raises(DataError, match="NaN"):
        average_scores([first, second * float("nan")])
