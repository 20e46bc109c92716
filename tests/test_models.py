from dataclasses import replace

import pytest
import torch

from diffinf_lib.errors import ConfigurationError
from diffinf_lib.models import build_unet, count_parameters
from diffinf_lib.presets import get_preset


@pytest.mark.parametrize(
    ("preset", "parameters", "in_layers"),
    [("digits", 159_697, None), ("cifar2", 38_306_691, 38_278_787), ("artbench10", 37_398_532, None)],
)
def test_presets_build_the_published_sizes(preset, parameters, in_layers):
    with torch.device("meta"):
        model = build_unet(get_preset(preset).unet)
    assert count_parameters(model) == parameters
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert in_layers is None or sum(map(count_parameters, layers)) == in_layers


def test_weights_depend_on_the_seed_only():
    config = get_preset("smoke").unet
    first = build_unet(config, seed=1).state_dict()
    torch.randn(10)
    again, other = build_unet(config, seed=1).state_dict(), build_unet(config, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    build_unet(get_preset("smoke").unet)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (32, 64)}, "block_out_channels=32,64: 2 block.*down_block_types has 3.*give as many of each"),
        ({"up_block_types": ("UpBlock2D",)}, "block_out_channels=32,64,96: 3 block.*up_block_types 1"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "block_out_channels=: give a positive"),
        ({"block_out_channels": (32, -64, 96)}, "block_out_channels=32,-64,96: give a positive number for each"),
        ({"norm_num_groups": 7}, "norm_num_groups=7: it does not divide .*32,64,96; give 1, 2, 4, 8, 16, 32, or other"),
        ({"norm_num_groups": 0}, "norm_num_groups=0: give a positive number"),
        ({"layers_per_block": 0}, "layers_per_block=0: give a positive number"),
        ({"sample_size": -3}, "sample_size=-3: give a positive number"),
        ({"attention_head_dim": 0}, "attention_head_dim=0: give a number from 1 to 64"),
        ({"attention_head_dim": 65}, "attention_head_dim=65: give a number from 1 to 64"),
        ({"dropout": 1.5}, "dropout=1.5: give a share"),
        ({"norm_eps": -1.0}, "norm_eps=-1.0: give a positive number"),
        ({"downsample_padding": 2}, "downsample_padding=2: give 0 or 1"),
        ({"resnet_time_scale_shift": "shift"}, "resnet_time_scale_shift='shift': give default or scale_shift"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be_are_refused_with_the_option_and_the_way_out(changes, message):
    with pytest.raises(ConfigurationError, match=message):
        replace(get_preset("cifar2-small").unet, **changes)


def test_what_is_not_refused_can_be_built():
    """The checks of attention count the blocks that have one: both presets would fail a check of every block."""
    narrow = replace(get_preset("smoke").unet, block_out_channels=(4, 4), norm_num_groups=4, attention_head_dim=8)
    widest = replace(get_preset("cifar2-small").unet, attention_head_dim=64)
    for config in (narrow, widest):
        with torch.device("meta"):
            build_unet(config)


def test_blocks_of_an_unknown_type_are_refused():
    config = replace(get_preset("smoke").unet, down_block_types=("DownBlock2D", "Down"))
    with pytest.raises(ConfigurationError, match="down_block_types.*Down does not exist.*give DownBlock2D"):
        build_unet(config)
