"""Whatever a caller has set for the whole process, draws, models, measurements and scores are the same."""

from dataclasses import replace

import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib.curvature.layers import curvature_layers, differentiable
from diffinf_lib.settings import default_dtype, own_settings

PRESET = di.get_preset("smoke")
DRAWS = di.DrawConfig(4, timestep_rule="signal", shared=True)


SETTINGS = {
    "float64": lambda: default_dtype(torch.float64),
    "another device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
}


def everything():
    """What each door gives, from data to scores."""
    data = di.load_dataset(replace(PRESET.dataset, train_size=6, query_size=2))
    training = replace(PRESET.training, steps=3, batch_size=4, horizontal_flip=True, keep_ema_at=())
    model = di.train(di.build_model(PRESET.unet), data.train, training, progress=False).model
    curvature = di.fit_curvature(model, data.train, di.CurvatureConfig(draws=di.DrawConfig(4)))
    likelihood = di.configuration.LikelihoodConfig(steps=2, draws=2)
    options = {"measurement": di.MeasurementConfig(draws=DRAWS), "draws": DRAWS, "damping": 1e-6}
    gradients = di.gradients_of(model, curvature, data.train, di.Expectation(DRAWS))
    keyed = {"seed": 0, "purpose": "x", "process": model.process}
    return {
        "images": data.train.images,
        "noise": di.diffusion.example_draws(3, (1, 8, 8), DRAWS, **keyed).noise,
        "draw_weights": di.diffusion.example_draws(3, (1, 8, 8), DRAWS, **keyed).draw_weights,
        "even": di.diffusion.example_draws(3, (1, 8, 8), di.DrawConfig(4, "grid"), **keyed).timesteps,
        "batch": next(di.diffusion.iterate_draws(data.train.images, data.train.ids, DRAWS, **keyed)).noise,
        "model": torch.cat([parameter.flatten() for parameter in model.parameters()]),
        "sample": di.sample(model, 2, (1, 8, 8), steps=3),
        "measured": di.measure(model, data.queries, di.MeasurementConfig("elbo", draws=DRAWS, levels=17)),
        "likelihood": di.likelihood.log_likelihood(model, data.queries, likelihood, levels=17),
        "influence": di.influence(model, curvature, data.train, data.queries, **options),
        "self-influence": di.self_influence(gradients, curvature),
        "random": di.attribution.random_scores(2, 3),
    }


@pytest.fixture(scope="module")
def expected():
    return everything()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_caller_s_settings_change_nothing(expected, name):
    with SETTINGS[name]():
        found = everything()
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value.dtype == expected[key].dtype and value.device.type == "cpu", key
        assert_equal_but_for_rounding(value.detach(), expected[key].detach())


def test_the_caller_s_settings_are_left_as_they_were():
    @own_settings
    def kinds():
        for _ in range(2):
            yield torch.zeros(1).dtype, torch.is_inference_mode_enabled()

    with default_dtype(torch.float64), torch.inference_mode():
        for kind, inference in kinds():
            assert kind == torch.float32 and not inference
            assert torch.zeros(1).dtype == torch.float64 and torch.is_inference_mode_enabled()


def test_a_model_that_cannot_have_gradients_is_refused_in_one_line():
    with torch.inference_mode():
        model = di.Denoiser(torch.nn.Sequential(torch.nn.Linear(2, 2)), di.Process())
        with pytest.raises(di.ConfigurationError, match="use torch.no_grad"), differentiable(model, {}):
            pass
    with pytest.raises(di.ConfigurationError, match="made in inference mode, it cannot be differentiated; build"):
        curvature_layers(model)
