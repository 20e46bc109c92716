"""Blocks of every kind of layer: their inputs and output gradients make up the gradient that autograd gives."""

import pytest
import torch
from annotations import unchecked
from torch import nn

from diffinf_lib.curvature.blocks import layer_blocks, layer_positions, position_count, split_into_blocks
from diffinf_lib.curvature.covariance import (
    input_covariance_sum,
    row_patch_covariance,
    rows_of_patches_fit,
    sampled_inputs,
)
from diffinf_lib.curvature.kfac import input_factor_sum
from diffinf_lib.curvature.layers import Layer, gradient_matrices, layer_parameters
from diffinf_lib.errors import ConfigurationError

CONVOLUTIONS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "stride": {"kernel_size": 3, "padding": (2, 0), "stride": (2, 1)},
    "dilation": {"kernel_size": (3, 2), "dilation": (1, 2), "bias": False},
    "same": {"kernel_size": (3, 5), "padding": "same"},
    "valid": {"kernel_size": 2, "padding": "valid"},
    "circular": {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "bias": False},
    "groups": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
}


def convolution(name):
    torch.manual_seed(0)
    return nn.Conv2d(4, 8, **CONVOLUTIONS[name]).double(), torch.randn(3, 4, 5, 6, dtype=torch.float64)


LINEAR = {"vectors": (3,), "tokens": (3, 7), "two axes of tokens": (3, 2, 4)}


def linear(name):
    torch.manual_seed(0)
    return nn.Linear(5, 3).double(), torch.randn(*LINEAR[name], 5, dtype=torch.float64)


CASES = [(convolution, name) for name in CONVOLUTIONS] + [(linear, name) for name in LINEAR]


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
def test_blocks_make_up_the_gradient(make, name, bias):
    layer, raw = make(name)
    output = layer(raw)
    vector = torch.randn_like(output)
    layers = {"layer": Layer(layer)}
    gradients = torch.autograd.grad(output, layer_parameters(layers), vector)
    blocks = layer_blocks(layers, bias)
    expected = split_into_blocks(gradient_matrices(layers, gradients), blocks)
    pulled = (
        vector.flatten(2).transpose(1, 2) if make is convolution else vector.reshape(len(raw), -1, vector.shape[-1])
    )
    assert sum(matrix.numel() for matrix in expected.values()) == sum(p.numel() for p in layer.parameters())
    for block_name, block in blocks.items():
        inputs = block.inputs(raw)
        assert inputs.shape == (len(raw), position_count(layer, raw), block.shape[1])
        actual = torch.einsum("bpo,bpi->oi", block.output_gradients(pulled), inputs)
        torch.testing.assert_close(actual, expected[block_name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
def test_the_input_covariance_is_its_definition(make, name, bias):
    layer, raw = make(name)
    for block in layer_blocks({"layer": Layer(layer)}, bias).values():
        torch.testing.assert_close(
            input_covariance_sum(block, raw), input_factor_sum(block.inputs(raw)), rtol=1e-10, atol=1e-12
        )
        weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
        expected = sum(w * input_factor_sum(block.inputs(raw[i : i + 1])) for i, w in enumerate(weights))
        torch.testing.assert_close(
            input_covariance_sum(block, raw, draw_weights=weights), expected, rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize(("height", "width"), [(5, 6), (2, 3), (1, 4), (3, 1)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_rows_of_patches_give_the_same_covariance(height, width, has_bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 2, 3, padding=1, bias=has_bias).double()
    raw = torch.randn(3, 8, height, width, dtype=torch.float64)
    assert rows_of_patches_fit(layer)
    for bias in ("joint", "separate"):
        block = next(iter(layer_blocks({"layer": Layer(layer)}, bias).values()))
        torch.testing.assert_close(
            row_patch_covariance(block, raw), input_factor_sum(block.inputs(raw)), rtol=1e-12, atol=1e-13
        )


def test_rows_of_patches_are_for_the_shapes_they_are_right_for():
    for options in ({"stride": 2}, {"padding": 0}, {"dilation": 2}, {"groups": 2}, {"padding_mode": "circular"}):
        assert not rows_of_patches_fit(nn.Conv2d(8, 8, 3, **{"padding": 1} | options))
    assert not rows_of_patches_fit(nn.Conv2d(8, 8, 1))


@pytest.mark.parametrize(("make", "name"), CASES, ids=[name for _, name in CASES])
def test_sampled_inputs_are_inputs_at_those_positions(make, name):
    layer, raw = make(name)
    places = torch.rand(len(raw), 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for block in layer_blocks({"layer": Layer(layer)}).values():
        inputs = block.inputs(raw)
        index = (places * inputs.shape[1]).long()
        expected = torch.stack([inputs[draw, index[draw]] for draw in range(len(raw))])
        assert torch.equal(sampled_inputs(block, raw, places), expected)


def test_a_bias_of_its_own_sees_ones():
    layer, raw = convolution("plain")
    assert torch.equal(layer_positions(layer, raw), torch.ones(3, 30, 1, dtype=torch.float64))


def test_bad_bias_rule_is_refused():
    with unchecked(), pytest.raises(ConfigurationError, match="bias='both'"):
        layer_blocks({"layer": Layer(nn.Linear(2, 2))}, "both")
