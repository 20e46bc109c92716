"""Half-precision weights: computed with in float32, and the scores are those of the rounded weights."""

import copy

import pytest
import torch
from cases import draw_batch, images, tiny_unet

import diffinf_lib as di
from diffinf_lib.curvature import CurvatureConfig, fit_curvature, fit_with_curvlinops, ggn_operator
from diffinf_lib.diffusion import DrawConfig
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.likelihood import LikelihoodConfig, log_likelihood
from diffinf_lib.measurements import MeasurementConfig
from diffinf_lib.precision import in_full_precision

DRAWS = DrawConfig(6)
TRAIN, QUERIES = images(6, 4), images(3, 4, seed=1)


def scores(model, approximation="ekfac"):
    """At the default damping, 1e-8, which half precision rounds to zero."""
    curvature = fit_curvature(model, TRAIN, CurvatureConfig(draws=DRAWS))
    measurement = MeasurementConfig(draws=DRAWS)
    return di.influence(
        model, curvature, TRAIN, QUERIES, measurement=measurement, draws=DRAWS, approximation=approximation
    )


def halved(kind):
    model = tiny_unet(attention=True).float()
    if kind == "mixed":
        model.conv_in.half()
        model.conv_out.bfloat16()
        return model
    return model.to(kind)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, "mixed"], ids=str)
def test_scores_are_those_of_the_rounded_weights_in_float64(kind):
    model = halved(kind)
    reference = scores(copy.deepcopy(model).double())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"UNet2DModel: weights in (b?float16|bfloat16 and float16) are too coarse"):
        full = in_full_precision(model)
    found = scores(full)
    assert found.isfinite().all()
    assert float(torch.corrcoef(torch.stack([found.flatten(), reference.flatten()]))[0, 1]) > 0.99
    for name, value in model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), "the model itself stays as it is"
        assert torch.equal(full.state_dict()[name], before[name].float())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_full_precision_is_left_as_it_is(kind, recwarn):
    model = tiny_unet().to(kind)
    assert in_full_precision(model) is model and not recwarn
    curvature = fit_curvature(model, TRAIN, CurvatureConfig(draws=DRAWS))
    assert all(layer.corrected_eigenvalues.dtype == kind for layer in curvature.layers.values())


@pytest.mark.parametrize(
    "function",
    [
        lambda model: fit_curvature(model, TRAIN),
        lambda model: fit_with_curvlinops(model, TRAIN),
        lambda model: ggn_operator(model, draw_batch(TRAIN, DRAWS, stage="x", dtype=torch.float32)),
        lambda model: di.measure(model, QUERIES),
        lambda model: log_likelihood(model, QUERIES, LikelihoodConfig(steps=1)),
    ],
    ids=["fit", "curvlinops", "operator", "measure", "likelihood"],
)
def test_a_model_that_was_made_half_afterwards_is_refused_in_one_line(function):
    model = tiny_unet().float()
    model.conv_out.bfloat16()
    with pytest.raises(ConfigurationError, match=r"conv_out\.weight is bfloat16: .*model\.float\(\)"):
        function(model)
