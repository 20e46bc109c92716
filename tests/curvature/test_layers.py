import pytest
import torch
from cases import conv_denoiser, draw_batch, images, linear_denoiser, tiny_unet
from torch import nn

from diffinf_lib.configuration import DrawConfig, Process
from diffinf_lib.curvature import ForwardPass, curvature_layers
from diffinf_lib.curvature.layers import gradient_matrices, layer_parameters
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError


@pytest.mark.parametrize(
    ("make", "side"),
    [(linear_denoiser, 2), (conv_denoiser, 4), (tiny_unet, 4), (lambda: tiny_unet(attention=True), 4)],
    ids=["linear", "conv", "unet", "attention"],
)
def test_inputs_and_output_gradients_make_up_the_gradient(make, side):
    """Σ_p g_p a_pᵀ is the gradient that autograd gives, for every layer."""
    model, batch = make(), draw_batch(images(2, side), DrawConfig(2), purpose="x")
    noisy = batch.state
    layers = curvature_layers(model)
    forward = ForwardPass(model, layers, batch)
    vectors = torch.randn_like(noisy)
    expected = torch.autograd.grad(forward.prediction, layer_parameters(layers), vectors, retain_graph=True)
    pulled = forward.pull_back(vectors)
    for name, matrix in gradient_matrices(layers, expected).items():
        actual = torch.einsum("bpo,bpi->oi", pulled[name], forward.inputs(name))
        torch.testing.assert_close(actual, matrix, rtol=1e-9, atol=1e-12, msg=name)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_normalisation_is_left_out_and_the_rest_is_in():
    model = tiny_unet(attention=True)
    covered = {id(parameter) for parameter in layer_parameters(curvature_layers(model))}
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            assert (id(parameter) in covered) == (not isinstance(module, nn.GroupNorm)), module_name


class Wrapper(nn.Module):
    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, noisy, timesteps):
        return self.function(self.layer, noisy)


def refused(network, message):
    model, batch = Denoiser(network, Process()), draw_batch(images(1, 4), DrawConfig(2), purpose="x")
    with pytest.raises(ConfigurationError, match=message):
        ForwardPass(model, curvature_layers(model), batch).pull_back(batch.noise)


def test_unsupported_layers_are_named():
    conv = lambda **options: nn.Conv2d(1, 1, 3, padding=1, **options).double()  # noqa: E731
    refused(Wrapper(conv(), lambda layer, x: layer(layer(x))), "layer layer: a convolution that is used twice")
    refused(Wrapper(conv(), lambda layer, x: x), "layer layer: not used")
    refused(Wrapper(conv(), lambda layer, x: layer(x).relu_()), "layer layer: .* changed in place")
    tied = Wrapper(nn.ModuleList([conv(), conv()]), lambda layer, x: layer[1](layer[0](x)))
    tied.layer[1].weight = tied.layer[0].weight
    refused(tied, "layer layer.1: shares a parameter with layer layer.0")
    other = Wrapper(nn.Sequential(conv(), nn.ConvTranspose2d(1, 1, 1).double()), lambda layer, x: layer(x))
    refused(other, r"layer layer.1: ConvTranspose2d has trainable parameters \(bias, weight\).*freeze")
    refused(Wrapper(nn.Identity(), lambda layer, x: layer(x)), "no Conv2d or Linear")


def test_gradients_that_are_not_finite_are_named():
    model = conv_denoiser()
    with torch.no_grad():
        model.network.middle.weight[0, 0, 1, 1] = float("nan")
    batch = draw_batch(images(1, 4), DrawConfig(2), purpose="x")
    with pytest.raises(ConfigurationError, match="layer down: its gradients are not finite"):
        ForwardPass(model, curvature_layers(model), batch).pull_back(batch.noise)


def test_a_frozen_layer_of_another_kind_is_left_out():
    model = Wrapper(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1)), lambda layer, x: layer(x))
    model.layer[1].requires_grad_(False)
    assert list(curvature_layers(Denoiser(model, Process()))) == ["layer.0"]
