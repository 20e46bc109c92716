"""NaN and infinity are refused where they arise, and the message names what is to blame."""

from dataclasses import replace

import pytest
import torch
from cases import ConvDenoiser, conv_denoiser, images

import diffinf_lib as di
from diffinf_lib.attribution import das_scores, trak_scores
from diffinf_lib.configuration import (
    CurvatureConfig,
    DrawConfig,
    LikelihoodConfig,
    MeasurementConfig,
    Process,
    TrainingConfig,
)
from diffinf_lib.curvature import LayerCurvature, fit_curvature, fit_with_curvlinops
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError, DiffinfError
from diffinf_lib.finite import all_finite, first_not_finite
from diffinf_lib.likelihood import log_likelihood

CONFIG = CurvatureConfig(draws=DrawConfig(4))
AT_ZERO = DrawConfig(4, "single", timestep=0)


class ScaledByTime(ConvDenoiser):
    """An NCSN++ in small: the output is divided by the noise level, which is zero at t = 0."""

    def forward(self, noisy, timesteps):
        return super().forward(noisy, timesteps) / timesteps.floor().view(-1, 1, 1, 1)


class FailsLate(ConvDenoiser):
    """Its output is not finite in states with little noise, where sampling ends."""

    def forward(self, noisy, timesteps):
        return super().forward(noisy, timesteps) / (timesteps > 400).view(-1, 1, 1, 1)


def scaled_by_time():
    torch.manual_seed(0)
    return Denoiser(ScaledByTime(), Process()).double()


def with_a_bad_pixel(data):
    """A set is refused when it is made of such pixels; here one goes bad afterwards."""
    changed = replace(data, images=data.images.clone())
    changed.images[1, 0, 2, 2] = float("nan")
    return changed


def with_a_bad_weight():
    model = conv_denoiser()
    with torch.no_grad():
        model.network.middle.weight[0, 0, 1, 1] = float("inf")
    return model


def influence(model, data, draws=AT_ZERO, queries=None):
    curvature = fit_curvature(conv_denoiser(), images(3, 4), CONFIG)
    measurement = MeasurementConfig(draws=draws)
    return di.influence(model, curvature, data, queries or images(2, 4, seed=1), measurement=measurement, draws=draws)


def fit(model, data):
    return fit_curvature(model, data, replace(CONFIG, draws=AT_ZERO))


def fit_elsewhere(model, data):
    return fit_with_curvlinops(model, data, replace(CONFIG, draws=AT_ZERO))


def measure(model, data):
    return di.measure(model, data, MeasurementConfig(draws=AT_ZERO))


def likelihood(model, data):
    return log_likelihood(model, data, LikelihoodConfig(steps=2, draws=2))


def many_draws(model, data):
    """One batch an image, not several images a batch."""
    return influence(model, data, DrawConfig(10, "single", timestep=0))


def train(model, data):
    config = TrainingConfig(steps=1, batch_size=len(data), horizontal_flip=False)
    at_zero = torch.zeros(len(data), dtype=torch.long)
    with pytest.MonkeyPatch.context() as patch:  # the timestep at which the network fails
        patch.setattr(torch, "randint", lambda *_, **__: at_zero)
        return di.train(model, data, config, progress=False)


def sample(model, data):
    return di.sample(model, 2, data.shape, steps=3)


def sample_by_euler(model, data):
    flow = Denoiser(model.network, Process(target="velocity"))
    return di.sample(flow, 2, data.shape, steps=3)


EVERYWHERE = [influence, many_draws, fit, fit_elsewhere, measure, likelihood, train]


@pytest.mark.parametrize("function", EVERYWHERE)
def test_the_cause_is_named(function):
    good = images(3, 4, seed=2)
    with pytest.raises(DiffinfError, match=r"image (with id )?21\b.* pixels .*not finite"):
        function(conv_denoiser(), with_a_bad_pixel(good))
    with pytest.raises(ConfigurationError, match=r"middle\.weight: some of the model's weights"):
        function(with_a_bad_weight(), good)
    with pytest.raises(ConfigurationError, match=r"image \d+: the network's output at timestep [-e\d.]+ is not finite"):
        function(scaled_by_time(), good)


@pytest.mark.parametrize("function", [sample, sample_by_euler])
def test_samples_that_are_not_finite_are_refused(function):
    """There is no image to blame: the weights, or the network at a time."""
    with pytest.raises(ConfigurationError, match=r"middle\.weight: some of the model's weights"):
        function(with_a_bad_weight(), images(3, 4))
    with pytest.raises(
        ConfigurationError, match=r"sample of seed 0: the network's output at time [\d.]+ is not finite"
    ):
        function(Denoiser(FailsLate(), Process()).double(), images(3, 4))


def test_a_query_of_broken_pixels_is_the_one_that_is_named():
    with pytest.raises(DiffinfError, match=r"image (with id )?11\b.* pixels .*not finite"):
        influence(conv_denoiser(), images(3, 4), queries=with_a_bad_pixel(images(2, 4, seed=1)))


def test_scores_that_overflow_are_refused():
    """Finite gradients whose products are not."""
    curvature = di.curvature.Curvature({"layer": LayerCurvature(corrected_eigenvalues=torch.ones(1, 2))})
    rows = torch.full((3, 1, 2), 1e30)
    rows[0] = 1.0
    huge, doubles = (di.GradientSet.of({"layer": values}) for values in (rows, rows.double() * 1e140))
    with pytest.raises(ConfigurationError, match="scores: not finite at training image 1"):
        di.self_influence(doubles, curvature, approximation="diagonal", damping=0.0)
    with pytest.raises(ConfigurationError, match="scores: not finite at query 1, training image 1"):
        das_scores([huge], huge, curvature, approximation="diagonal")
    with pytest.raises((ConfigurationError, torch.linalg.LinAlgError)):
        trak_scores(doubles, doubles, damping=1.0)


def test_one_sum_says_whether_all_is_finite():
    assert all_finite(torch.full((4,), 3e38)), "the sum overflows, the elements do not"
    for bad in (float("nan"), float("inf"), -float("inf")):
        tensor = torch.zeros(2, 3)
        tensor[1, 2] = bad
        assert not all_finite(tensor) and first_not_finite(tensor) == (1, 2)
    assert first_not_finite(torch.zeros(2, 3)) is None
