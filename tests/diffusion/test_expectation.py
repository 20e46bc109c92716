"""An expectation: what is averaged over which draws, the same for gradients and measurements."""

import pytest
import torch
from cases import images, tiny_unet

import diffinf_lib as di
from diffinf_lib.configuration import DrawConfig, Expectation, Objective
from diffinf_lib.diffusion import objective_values
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import example_gradient

MEASUREMENT = di.MeasurementConfig(draws=DrawConfig(10))


def test_a_measurement_is_the_mean_that_its_expectation_says():
    model, queries = tiny_unet(), images(3, 4)
    expectation = MEASUREMENT.expectation(seed=2)
    totals = torch.zeros(3, dtype=torch.float64)
    for batch in expectation.batches(model, queries, 7):
        with torch.no_grad():
            values = objective_values(model, batch, expectation.objective)
        totals.index_add_(0, batch.example, batch.draw_weights * values)
    expected = di.measure(model.float(), queries, MEASUREMENT, seed=2)
    torch.testing.assert_close(totals / expectation.draws.count, expected, rtol=1e-4, atol=0)


def test_windows_of_timesteps_add_up_and_empty_batches_are_left_out():
    model, image = tiny_unet(), images(1, 4)
    whole = MEASUREMENT.expectation()
    parts = [Expectation(whole.draws, whole.purpose, timestep_range=window) for window in ((0, 400), (400, 1000))]
    gradients = [example_gradient(model, image, part) for part in (whole, *parts)]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name] + gradients[2][name], gradient, rtol=1e-9, atol=1e-13)
    assert sum(len(batch.images) for part in parts for batch in part.batches(model, image, 1)) == 10
    with pytest.raises(ConfigurationError, match="give \\(low, high\\)"):
        Expectation(timestep_range=(3, 3))


def test_other_draws_are_keyed_apart_and_keep_the_one_timestep():
    own, other = MEASUREMENT.expectation(), MEASUREMENT.expectation(draws=DrawConfig(10))
    assert own.draws == other.draws and own.purpose != other.purpose and own.objective == other.objective == Objective()
    at_one = di.MeasurementConfig("loss_at_time", DrawConfig(8), timestep=30)
    for expectation in (at_one.expectation(), at_one.expectation(draws=DrawConfig(4))):
        assert (expectation.draws.timestep_rule, expectation.draws.timestep) == ("single", 30)
