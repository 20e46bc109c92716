"""A `Linear` that is called several times in a pass: its uses are positions that share the weights."""

from dataclasses import replace

import diffusers
import pytest
import torch
from cases import draw_batch, images
from torch import nn

import diffinf_lib as di
from diffinf_lib.configuration import Expectation
from diffinf_lib.curvature import ForwardPass, curvature_layers, dense_ggn
from diffinf_lib.curvature.curvlinops_backend import fit_with_curvlinops
from diffinf_lib.curvature.layers import differentiable, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.planner.network import NetworkCount

CONFIG = di.CurvatureConfig(draws=di.DrawConfig(4), correction="per_draw", input_positions=None)


class Tokens(nn.Module):
    """Rows and columns of a 4×4 image through one layer: in a call each, or in one for both."""

    def __init__(self, calls):
        super().__init__()
        self.calls, self.shared, self.last = calls, nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, noisy, timesteps):
        rows, columns = noisy[:, 0], noisy[:, 0].mT
        if self.calls == 1:
            first, second = self.shared(torch.cat([rows, columns], 1)).split(4, dim=1)
        else:
            first, second = self.shared(rows), self.shared(columns)
        return self.last(torch.tanh(first) + first * second).unsqueeze(1)


def tokens(calls):
    torch.manual_seed(0)
    return Denoiser(Tokens(calls), di.Process()).double().eval()


def transformer():
    """A DiT: what it makes of time and class is asked for by its first block and again at the end."""
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=2, sample_size=4, patch_size=2,
        num_embeds_ada_norm=3, norm_num_groups=1,
    )  # fmt: skip
    for parameter in network.parameters():  # some are made as zeros, and nothing would pass through them
        nn.init.normal_(parameter, std=0.3)
    return Denoiser(network, di.Process()).double().eval()


@pytest.mark.parametrize("model", [tokens(2), transformer()], ids=["tokens", "DiT"])
def test_gradients_are_those_of_autograd(model):
    data = replace(images(3, 4), labels=torch.arange(3))
    batch = next(iter(Expectation(di.DrawConfig(2), "x").batches(model, data, 6)))
    layers = curvature_layers(model)
    with differentiable(model, layers):
        forward = ForwardPass(model, layers, batch)
        pulled = forward.pull_back(batch.noise, last=False)
        for row in range(6):
            chosen = torch.zeros_like(batch.noise)
            chosen[row] = batch.noise[row]
            expected = gradient_matrices(
                layers,
                torch.autograd.grad(forward.prediction, layer_parameters(layers), chosen, retain_graph=True),
            )
            for name in layers:
                found = pulled[name][row].mT @ forward.inputs(name)[row]
                torch.testing.assert_close(found, expected[name], rtol=1e-9, atol=1e-12)
    assert forward.uses.repeated


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("approximation", ["ekfac", "kfac", "diagonal"])
def test_two_calls_are_one_call_for_all_positions(sharing, approximation):
    config = replace(CONFIG, sharing=sharing, approximation=approximation)
    data, asked = images(5, 4), images(2, 4)
    once, twice = (
        di.influence(
            model, di.fit_curvature(model, data, config), data, asked, draws=di.DrawConfig(4), damping=1e-3,
            approximation=approximation, measurement=di.MeasurementConfig(draws=di.DrawConfig(4)),
        )
        for model in (tokens(1), tokens(2))
    )  # fmt: skip
    torch.testing.assert_close(twice, once, rtol=1e-8, atol=1e-10 * float(once.abs().max()))


def test_the_exact_curvature_counts_both_uses():
    data = images(3, 4)
    once, twice = (
        dense_ggn(model, draw_batch(data, di.DrawConfig(2), purpose="x")) for model in (tokens(1), tokens(2))
    )
    torch.testing.assert_close(twice, once, rtol=1e-9, atol=1e-12)


def test_a_transformer_is_attributed_and_planned():
    model, data = transformer(), replace(images(4, 4), labels=torch.tensor([0, 1, 2, 0]))
    with pytest.warns(UserWarning, match="embeddings are left out"):
        curvature = di.fit_curvature(model, data, CONFIG)
    scores = di.influence(
        model, curvature, data, data, draws=di.DrawConfig(2), measurement=di.MeasurementConfig(draws=di.DrawConfig(2))
    )
    assert scores.shape == (4, 4) and scores.isfinite().all() and scores.std() > 0
    count = NetworkCount(transformer().float(), CONFIG, data.shape)
    assert count.gradient > count.forward > 0 and count.input_factors > 0 and count.output_factors > 0


class Again(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, noisy, timesteps):
        return self.layer(noisy.flatten(0, 2)).view_as(noisy) + self.layer(noisy[:, 0]).unsqueeze(1)


def test_uses_that_do_not_fit_together_are_refused():
    model = Denoiser(Again(), di.Process()).double().eval()
    with pytest.raises(ConfigurationError, match="layer layer: used for batches of 2 and 8 rows in one forward pass"):
        ForwardPass(model, curvature_layers(model), draw_batch(images(1, 4), di.DrawConfig(2), purpose="x"))
    with pytest.raises(ConfigurationError, match="layer shared: used twice in one forward pass, for which curvlinops"):
        fit_with_curvlinops(tokens(2), images(3, 4), di.CurvatureConfig(draws=di.DrawConfig(2)))
