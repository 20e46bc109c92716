"""Options: what a field takes is what its annotation says, in Python, from text and from JSON."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pytest

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.options import NonNegativeFloat, Options, PositiveFloat, PositiveInt, Range, Share, with_options


@dataclass(frozen=True)
class Inner(Options, called={"count": "draws"}):
    count: PositiveInt = 4


@dataclass(frozen=True)
class Example(Options):
    count: PositiveInt = 1
    rate: PositiveFloat = 0.1
    decay: NonNegativeFloat = 0.0
    share: Share = 0.5
    odd: Annotated[int, Range(lambda value: value % 2 == 1, "an odd {}")] = 1
    any_number: float = 0.0
    rule: Literal["first", "second", "third"] = "first"
    padding: Literal[0, 1] = 0
    flag: bool = False
    text: str = ""
    listed: tuple[PositiveInt, ...] = ()
    classes: tuple[str | int, ...] | None = None
    pair: tuple[int, int] | None = None
    most: PositiveInt | None = None
    inner: Inner = Inner()
    other: Inner | None = None


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        *(("count", value, "a positive whole number") for value in (0, -3, 2.5, 2.0, "64", True, None, math.nan, [4])),
        *(("rate", value, "a positive number") for value in (0, math.nan, math.inf, "0.1", True, None, 1j)),
        ("decay", -1e-9, "a number >= 0"),
        ("share", 1.5, "a share from 0 to 1"),
        ("odd", 2, "an odd whole number"),
        *(("any_number", value, "a number") for value in (math.nan, math.inf, "1", False)),
        ("rule", "fourth", "first, second or third"),
        ("rule", 3, "first, second or third"),
        *(("padding", value, "0 or 1") for value in (2, True, "1", 1.0)),
        *(("flag", value, "true or false") for value in (1, "true", None)),
        ("text", 3, "a text"),
        *(
            ("listed", value, "a list with each entry a positive whole number")
            for value in (3, "3,4", (3, 0), (3, 1.5), None)
        ),
        ("pair", (1, 2, 3), "a list of 2 numbers or None"),
        ("most", 0, "a positive whole number or None"),
        ("inner", 4, "a Inner"),
        ("other", {"count": 4}, "a Inner or None"),
    ],
)
def test_what_a_field_does_not_take_is_refused_in_one_line(field, value, wanted):
    with pytest.raises(ConfigurationError) as refused:
        Example(**{field: value})
    assert str(refused.value) == f"{field}={value!r}: give {wanted}"
    if not isinstance(value, (str, dict)):  # a text is read first, a mapping taken apart
        with pytest.raises(ConfigurationError, match=f"{field}="):
            with_options(Example(), {field: value})


def test_classes_are_the_same_on_every_road():
    preset = di.get_preset("digits")
    for given in ("3,8", "[3, 8]", "['3', '8']", [3, 8], ["3", "8"], (3, "8")):
        assert with_options(preset, {"dataset.classes": given}) == preset, given
    assert di.DatasetConfig("digits", classes=("03", "cat", "٣")).classes == ("03", "cat", "٣")
    with pytest.raises(ConfigurationError, match="each once"):
        di.DatasetConfig("digits", classes=(3, "3"))


def test_what_does_not_go_together_is_named_by_its_path():
    preset = di.get_preset("digits")
    for options, message in [
        ({"curvature.draws.count": "7"}, r"^curvature\.draws\.count=7: draws=7: antithetic draws come in pairs"),
        ({"gradient_draws.count": 7}, r"^gradient_draws\.count=7: draws=7"),
        ({"measurement.name": "elbo"}, r"elbo is there twice.*--set 'further_measurements=\[\]'"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            with_options(preset, options)
    assert with_options(preset, {"measurement.name": "elbo", "further_measurements": "[]"}).measurement.name == "elbo"


def test_a_field_is_called_what_it_is_known_as():
    with pytest.raises(ConfigurationError, match="^draws=0: give a positive whole number$"):
        Inner(0)
    with pytest.raises(ConfigurationError, match=r"^inner\.count=0: give"):
        with_options(Example(), {"inner.count": "0"})


def test_numbers_and_lists_become_python_s_own():
    made = Example(count=np.int64(3), rate=1, listed=[np.int32(2), 3], classes=["a", 3], pair=[1, 2])
    assert made == Example(3, 1.0, listed=(2, 3), classes=("a", 3), pair=(1, 2)) and hash(made)
    assert [type(value) for value in (made.count, made.rate, *made.listed)] == [int, float, int, int]


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"count": "3", "rate": "1e-3", "flag": "True"}, {"count": 3, "rate": 1e-3, "flag": True}),
        ({"rule": "second", "padding": "1"}, {"rule": "second", "padding": 1}),
        ({"listed": "3, 4"}, {"listed": (3, 4)}),
        ({"listed": [3, 4], "pair": [1, 2]}, {"listed": (3, 4), "pair": (1, 2)}),
        ({"most": "5"}, {"most": 5}),
        ({"most": "none", "classes": "null"}, {}),
        ({"inner.count": 8}, {"inner": Inner(8)}),
        ({"inner": {"count": "8"}, "other.count": "2"}, {"inner": Inner(8), "other": Inner(2)}),
    ],
)
def test_text_and_json_are_read_as_the_field_s_kind(options, changed):
    assert with_options(Example(), options) == Example(**changed)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (di.DrawConfig, {"count": 2.5}, "draws=2.5: give a positive whole number"),
        (di.DrawConfig, {"count": "64"}, "draws='64'"),
        (di.DrawConfig, {"count": True}, "draws=True"),
        (di.DrawConfig, {"count": math.nan}, "draws=nan"),
        (di.DrawConfig, {"shared": 1}, "shared=1: give true or false"),
        (di.CurvatureConfig, {"draws": 4}, "draws=4: give a DrawConfig"),
        (di.TrainingConfig, {"lr_schedule": "linear"}, "lr_schedule='linear': give cosine or constant"),
        (di.TrainingConfig, {"horizontal_flip": "no"}, "horizontal_flip='no': give true or false"),
        (di.configuration.SamplingConfig, {"method": "best"}, "method='best': give ddpm, "),
        (di.MeasurementConfig, {"likelihood": 3}, "likelihood=3: give a LikelihoodConfig or None"),
        (di.configuration.LikelihoodConfig, {"tolerance": math.inf}, "tolerance=inf: give a positive number"),
        (di.StoreFormat, {"rank": 1.5}, "rank=1.5: give a positive whole number"),
        (di.configuration.UNetConfig, {"downsample_padding": 2}, "downsample_padding=2: give 0 or 1"),
        (di.Expectation, {"timestep_range": (0, 1, 2)}, "timestep_range="),
        (di.configuration.Objective, {"name": "lose"}, "objective='lose': give loss, weighted_loss"),
        (di.studies.RemovalConfig, {"shares": (0.6,)}, "give a list of shares above 0 and at most 0.5"),
    ],
)
def test_every_configuration_holds_to_its_kinds(config, options, message):
    with pytest.raises(ConfigurationError) as refused:
        config(**options)
    assert message in str(refused.value)
