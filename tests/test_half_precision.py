"""Half-precision weights: computed with in float32, and the scores are those of the rounded weights."""

import copy

import pytest
import torch
from cases import draw_batch, images, tiny_unet

import diffinf_lib as di
from diffinf_lib.configuration import (
    CurvatureConfig,
    DrawConfig,
    LikelihoodConfig,
    MeasurementConfig,
    Process,
    TrainingConfig,
)
from diffinf_lib.curvature import fit_curvature, fit_with_curvlinops, ggn_operator
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.likelihood import log_likelihood

DRAWS = DrawConfig(20)
TRAIN, QUERIES = images(6, 4), images(3, 4, seed=1)


def scores(model, approximation="ekfac"):
    """At the default damping, 1e-8, which half precision rounds to zero."""
    curvature = fit_curvature(model, TRAIN, CurvatureConfig(draws=DRAWS))
    measurement = MeasurementConfig(draws=DRAWS)
    return di.influence(
        model, curvature, TRAIN, QUERIES, measurement=measurement, draws=DRAWS, approximation=approximation
    )


def halved(kind):
    """A network, as a folder with half-precision weights holds it."""
    network = tiny_unet(attention=True).float().network
    if kind == "mixed":
        network.conv_in.half()
        network.conv_out.bfloat16()
        return network
    return network.to(kind)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, "mixed"], ids=str)
def test_scores_are_those_of_the_rounded_weights_in_float64(kind):
    network = halved(kind)
    reference = scores(Denoiser(copy.deepcopy(network).double(), Process()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.warns(UserWarning, match=r"UNet2DModel: weights in (b?float16|bfloat16 and float16) are too coarse"):
        full = Denoiser(network, Process())
    found = scores(full)
    assert found.isfinite().all()
    assert float(torch.corrcoef(torch.stack([found.flatten(), reference.flatten()]))[0, 1]) > 0.9999
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), (
            "the network itself stays as it is"
        )
        assert torch.equal(full.network.state_dict()[name], before[name].float())


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_full_precision_is_left_as_it_is(kind, recwarn):
    model = tiny_unet().to(kind)
    assert Denoiser(model.network, Process()).network is model.network and not recwarn
    curvature = fit_curvature(model, TRAIN, CurvatureConfig(draws=DRAWS))
    assert all(layer.corrected_eigenvalues.dtype == kind for layer in curvature.layers.values())


@pytest.mark.parametrize(
    "function",
    [
        lambda model: fit_curvature(model, TRAIN),
        lambda model: fit_with_curvlinops(model, TRAIN),
        lambda model: ggn_operator(model, draw_batch(TRAIN, DRAWS, purpose="x", dtype=torch.float32)),
        lambda model: di.measure(model, QUERIES),
        lambda model: log_likelihood(model, QUERIES, LikelihoodConfig(steps=1)),
        lambda model: di.sample(model, 1, QUERIES.shape, steps=2),
        lambda model: di.train(model, TRAIN, TrainingConfig(steps=1), progress=False),
    ],
    ids=["fit", "curvlinops", "operator", "measure", "likelihood", "sample", "train"],
)
def test_a_model_that_was_made_half_afterwards_is_refused_in_one_line(function):
    model = tiny_unet().float()
    model.network.conv_out.bfloat16()
    with pytest.raises(ConfigurationError, match=r"conv_out\.weight is bfloat16: .*model\.float\(\)"):
        function(model)
