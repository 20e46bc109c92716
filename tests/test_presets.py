import json
import os
from dataclasses import replace

import pytest

from diffinf_lib.artifacts import plain
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.options import with_options
from diffinf_lib.presets import PRESETS, get_preset


def test_flavours_differ_where_the_text_and_the_code_do():
    written, run = get_preset("cifar2"), get_preset("cifar2", flavour="as-run")
    assert (written.training.weight_decay, run.training.weight_decay) == (1e-6, 1e-2)
    assert (written.training.ema_max_decay, run.training.ema_max_decay) == (0.9999, 0.999)
    assert (written.dataset.stratified, run.dataset.stratified) == (True, False)
    assert run == get_preset("cifar2:as-run") and written == get_preset("cifar2:as-written")
    assert run.gradient_draws.noise_rule == "independent" and run.gradient_draws.timestep_rule == "uniform"
    assert run.measurement.draws == DrawConfig(5_000, timestep_rule="uniform", noise_rule="independent")
    assert written.measurement.draws == DrawConfig(256)


@pytest.mark.parametrize("name", PRESETS)
def test_names_and_hashes(name):
    preset = get_preset(name)
    assert preset.name == name and preset.summary
    assert hash(preset) == hash(replace(preset))


def test_retraining_changes_the_steps_only():
    preset = get_preset("cifar10")
    assert preset.retraining() == replace(preset.training, steps=80_000, keep_ema_at=())


def test_options_are_read_as_the_field_s_type():
    preset = with_options(
        get_preset("digits"),
        {"training.steps": "30", "damping": "1e-6", "training.horizontal_flip": "true", "training.keep_ema_at": "5,10",
         "unet.attention_head_dim": "none", "gradient_draws.count": 4, "dataset.name": "folder:x"},
    )  # fmt: skip
    assert preset.training.steps == 30 and preset.damping == 1e-6 and preset.training.horizontal_flip
    assert preset.training.keep_ema_at == (5, 10) and preset.unet.attention_head_dim is None
    assert preset.gradient_draws.count == 4 and preset.dataset.name == f"folder:{os.path.realpath('x')}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"training.step": "3"}, "no 'step' there; give one of steps, batch_size"),
        ({"damping.value": "3"}, "'damping' has no parts"),
        ({"training.steps": "many"}, "training.steps='many': give a positive whole number"),
        ({"training.horizontal_flip": "maybe"}, "give true or false"),
        ({"training.steps": "-3"}, "steps=-3"),
        ({"unet.block_out_channels": "16;32"}, r"='16;32': give a list, such as unet.block_out_channels=32,64,96 or"),
        ({"unet.block_out_channels": "[16,,32]"}, r"give a list, such as"),
        ({"unet.block_out_channels": "[16, 32"}, r"or unet.block_out_channels='\[32, 64, 96\]'"),
        ({"unet.down_block_types": "[DownBlock2D"}, r"give a list, such as unet.down_block_types=first,second"),
        ({"further_measurements": "elbo"}, r"further_measurements='elbo': its entries have parts.* give \[\]"),
        ({"curvature.draws": "4"}, "option curvature.draws='4': it has parts; give curvature.draws.count=VALUE"),
        ({"query_format": "int8"}, "give query_format.kind=VALUE"),
        ({"curvature.draws": None, "curvature.draws.count": "4"}, "give one of both"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        with_options(get_preset("digits"), options)


@pytest.mark.parametrize("text", ["8,24", "8, 24", "[8, 24]", "(8,24)", " [ 8 ,24, ] ", "['8', \"24\"]"])
def test_lists_of_numbers_are_read_in_every_spelling(text):
    assert with_options(get_preset("digits"), {"unet.block_out_channels": text}).unet.block_out_channels == (8, 24)


@pytest.mark.parametrize("text", ["3,eight", "[3, eight]", "('3', 'eight')", '["3", "eight"]'])
def test_lists_of_words_are_read_in_every_spelling(text):
    assert with_options(get_preset("digits"), {"dataset.classes": text}).dataset.classes == (3, "eight")


@pytest.mark.parametrize("text", ["", "[]", "()"])
def test_the_empty_list(text):
    assert with_options(get_preset("digits"), {"training.keep_ema_at": text}).training.keep_ema_at == ()
    assert with_options(get_preset("digits"), {"further_measurements": text}).further_measurements == ()


def test_a_printed_preset_can_be_given_back():
    """What `presets NAME` prints of a list is what `--set` takes."""
    unet = plain(get_preset("cifar2").unet)
    lists = {f"unet.{name}": json.dumps(value) for name, value in unet.items() if isinstance(value, list)}
    assert len(lists) == 3
    assert with_options(get_preset("cifar2"), lists) == get_preset("cifar2")


def test_an_unknown_preset_lists_the_names():
    with pytest.raises(ConfigurationError, match="preset='mnist': no such preset; give one of smoke, digits"):
        get_preset("mnist")


def test_options_of_parts_that_are_not_there_yet_and_options_that_need_each_other():
    preset = with_options(
        get_preset("digits"),
        {"query_format.kind": "int8", "curvature.factor_draws.count": "6", "gradient_draws.timestep_rule": "importance",
         "gradient_draws.proposal": "1,2", "gradient_draws.shared": "false"},
    )  # fmt: skip
    assert preset.query_format.kind == "int8" and preset.curvature.factor_draws.count == 6
    assert preset.gradient_draws.proposal == (1.0, 2.0)
    assert with_options(preset, {"query_format": "none"}).query_format is None
