"""Our fit against curvlinops', in float64 on the same draws: factors, eigenvalues and scale of every kind both offer."""

import pytest
import torch
from cases import (
    assert_equal_but_for_rounding,
    by_definition,
    conv_denoiser,
    deep_linear_denoiser,
    draw_batch,
    images,
    tiny_unet,
)
from torch import nn

from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Process
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.curvlinops_backend import fit_with_curvlinops
from diffinf_lib.curvature.exact import dense_empirical_fisher, dense_ggn, layer_slices
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError

DRAWS = DrawConfig(4)
CASES = [(deep_linear_denoiser, 2), (conv_denoiser, 4), (lambda: tiny_unet(attention=True), 4)]


def both(model, data, partition="model", **options):
    config = by_definition(DRAWS, partition=partition, exact_labels=partition == "model", **options)
    return fit_curvature(model, data, config), fit_with_curvlinops(model, data, config)


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("partition", ["model", "loss_per_draw"])
@pytest.mark.parametrize(("make", "side"), CASES, ids=["linear", "conv", "unet"])
def test_kfac_agrees_block_by_block(make, side, partition, sharing, bias):
    ours, theirs = both(make(), images(3, side), partition, sharing=sharing, bias=bias)
    assert list(ours.layers) == list(theirs.layers) and ours.bias == theirs.bias
    largest = max(float(layer.kfac_eigenvalues.sum()) for layer in ours.layers.values())
    for name, layer in ours.layers.items():
        # a key's bias has no gradient but rounding, so blocks are compared on the scale of the model's largest trace
        scale = max(float(layer.kfac_eigenvalues.norm()), 1e-12 * largest)
        other = theirs.layers[name]
        assert float((other.kfac_eigenvalues - layer.kfac_eigenvalues).norm()) < 1e-8 * scale, name
        if layer.kfac_eigenvalues.numel() <= 200:
            assert float((other.block("kfac") - layer.block("kfac")).norm()) < 1e-8 * scale, name


@pytest.mark.parametrize("partition", ["model", "loss_per_draw"])
@pytest.mark.parametrize(("make", "side"), CASES[:2], ids=["linear", "conv"])
def test_ekfac_agrees_block_by_block(make, side, partition):
    """Where the factors' spectra are simple, both find the same basis up to signs, and the blocks are the same."""
    ours, theirs = both(make(), images(3, side), partition)
    for name, layer in ours.layers.items():
        block, other = layer.block("ekfac"), theirs.layers[name].block("ekfac")
        torch.testing.assert_close(other, block, rtol=1e-8, atol=1e-8 * float(block.norm()), msg=name)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("partition", ["model", "loss_per_draw"])
@pytest.mark.parametrize(("make", "side"), CASES[1:], ids=["conv", "unet"])
def test_its_corrected_eigenvalues_are_the_diagonal_in_its_basis(make, side, partition, sharing):
    """Degenerate factors leave the basis open; in whichever was chosen, Λ is the diagonal of the dense block."""
    model, data = make(), images(3, side)
    config = by_definition(DRAWS, partition=partition, exact_labels=partition == "model", sharing=sharing)
    batch = draw_batch(data, DRAWS, purpose="corrections")
    reference = dense_ggn(model, batch) if partition == "model" else dense_empirical_fisher(model, batch)
    curvature = fit_with_curvlinops(model, data, config)
    for name, where in layer_slices(model).items():
        layer, block = curvature.layers[name], reference[where, where]
        basis = torch.kron(layer.output_eigenvectors, layer.input_eigenvectors)
        diagonal = (basis * (block @ basis)).sum(0).view(layer.shape)
        atol = 1e-8 * float(diagonal.max()) + 1e-12 * float(reference.diagonal().max())
        torch.testing.assert_close(layer.corrected_eigenvalues, diagonal, rtol=0, atol=atol, msg=name)


def test_sampled_labels_and_fewer_draws_for_the_factors():
    """Its labels are its own: many of them come near the exact matrix; factors and corrections have their own draws."""
    model, data = conv_denoiser(), images(2, 4)
    exact = fit_with_curvlinops(model, data, by_definition(DRAWS))
    sampled = fit_with_curvlinops(model, data, by_definition(DRAWS, exact_labels=False, sampled_labels=400))
    for name, layer in exact.layers.items():
        error = float((sampled.layers[name].block("kfac") - layer.block("kfac")).norm() / layer.block("kfac").norm())
        assert error < 0.15, name
    fewer = CurvatureConfig(draws=DrawConfig(6), exact_labels=True, input_positions=None, correction="per_draw")
    mine, other = fit_curvature(model, data, fewer), fit_with_curvlinops(model, data, fewer, batch_size=5)
    for name, layer in mine.layers.items():
        torch.testing.assert_close(other.layers[name].kfac_eigenvalues, layer.kfac_eigenvalues, rtol=1e-8, atol=1e-14)
        torch.testing.assert_close(other.layers[name].corrected_eigenvalues.sum(), layer.corrected_eigenvalues.sum())


def test_kfac_alone_and_a_model_that_is_frozen_and_in_training():
    model, data = tiny_unet(), images(2, 4)
    config = by_definition(DRAWS, approximation="kfac")
    reference = fit_with_curvlinops(model, data, config)
    assert all(layer.corrected_eigenvalues is None for layer in reference.layers.values())
    model.train().requires_grad_(False)
    with torch.no_grad():
        again = fit_with_curvlinops(model, data, config, covers=reference.covered)
    for name, layer in reference.layers.items():
        assert_equal_but_for_rounding(again.layers[name].block("kfac"), layer.block("kfac"), within=1e-9)
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class OneConvolution(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, **options)

    def forward(self, noisy, timesteps):
        return self.conv(noisy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approximation": "diagonal"}, "approximation='diagonal': curvlinops fits"),
        ({"approximation": "identity"}, "approximation='identity': curvlinops fits"),
        ({"partition": "loss_per_example"}, "partition='loss_per_example': curvlinops"),
        ({"draws": DrawConfig(4, "signal")}, "timestep_rule='signal': curvlinops"),
        ({"draws": DrawConfig(4, "elbo")}, "timestep_rule='elbo': curvlinops"),
        ({"draws": DrawConfig(4, "importance", proposal=(1.0, 2.0))}, "timestep_rule='importance': curvlinops"),
    ],
)
def test_what_it_does_not_offer_is_refused_by_name(options, message):
    with pytest.raises(ConfigurationError, match=message):
        fit_with_curvlinops(conv_denoiser(), images(2, 4), CurvatureConfig(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"padding": 1, "padding_mode": "circular"}, "layer conv: padding_mode='circular'"),
        ({"padding": "same", "dilation": 1, "kernel_size": 2}, "layer conv: padding='same' pads unequally"),
    ],
)
def test_layers_that_it_would_get_wrong_are_refused_by_name(options, message):
    model = OneConvolution(padding=1)
    model.conv = nn.Conv2d(1, 1, **({"kernel_size": 3} | options))
    with pytest.raises(ConfigurationError, match=message):
        fit_with_curvlinops(Denoiser(model.double(), Process()), images(2, 4), by_definition(DRAWS))


def test_groups_are_refused_by_name():
    model = Denoiser(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1, groups=2)), Process())
    with pytest.raises(ConfigurationError, match="layer 1: groups=2, which curvlinops averages over"):
        fit_with_curvlinops(model, images(2, 4), by_definition(DRAWS))
