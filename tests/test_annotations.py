"""The check of annotations is on, and finds what does not fit."""

from collections.abc import Iterator

import pytest
import torch
from annotations import checked, unchecked
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from diffinf_lib.configuration import DrawConfig, Process
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import iterate_draws
from diffinf_lib.diffusion.draws import Draws
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import spearman
from diffinf_lib.settings import own_settings

PIXELS, LABELS, IDS = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64), torch.arange(3)


@pytest.mark.parametrize(
    ("images", "timesteps", "noise"),
    [
        pytest.param(torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, 4, 4), id="size"),
        pytest.param(torch.zeros(2, 1, 4, 4), torch.zeros(2), torch.zeros(2, 1, 4, 4), id="dtype"),
        pytest.param(torch.zeros(2, 4, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4, 4), id="axes"),
        pytest.param(
            torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 4, 1), id="broadcast"
        ),
    ],
)
def test_arguments_of_another_shape_or_type_are_found(images, timesteps, noise):
    with pytest.raises(TypeCheckError, match=r"parameters of diffinf_lib\.configuration\.process\.Process\.noisy"):
        Process().noisy(images, timesteps, noise)


def test_a_result_of_another_shape_is_found(monkeypatch):
    monkeypatch.setattr("diffinf_lib.evaluation.statistics.rankdata", lambda values, axis: values[None])
    with pytest.raises(TypeCheckError, match="return value of diffinf_lib.evaluation.statistics.spearman"):
        spearman(torch.rand(2, 5).double().numpy(), torch.rand(2, 5).double().numpy())


def test_fields_of_dataclasses_and_named_tuples_are_checked():
    with pytest.raises(TypeCheckError, match="parameter labels="):
        ImageSet(PIXELS, LABELS[:2], IDS)
    with pytest.raises(TypeCheckError, match="parameter draw_weights="):
        Draws(
            torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 4, 4), torch.zeros(3), torch.zeros(2, dtype=torch.bool)
        )


def test_arguments_of_a_generator_are_checked_at_its_first_step():
    with pytest.raises(TypeCheckError, match="parameter ids="):
        next(iterate_draws(PIXELS, IDS[:2], DrawConfig(2), seed=0, purpose="x", process=Process()))


def test_inner_functions_and_types_named_ahead_are_checked():
    def scaled(factor):
        @checked
        def times(image: Float[Tensor, "H W"], other: "Later") -> Float[Tensor, "H W"]:
            return image * factor

        return times

    square, wide = torch.ones(2, 2), torch.ones(2, 1)
    for times in (scaled(2.0), scaled(3.0)):  # the same code
        with pytest.raises(TypeCheckError, match=r"parameters of test_annotations\..*times: .* other="):
            times(square, 1)
        times(square, Later())
    with pytest.raises(TypeCheckError, match=r"return value of test_annotations\..*times"):
        scaled(square)(wide, Later())


class Later:
    """A type that an annotation names before it is there."""


def test_sizes_that_are_computed_from_arguments_are_checked():
    @checked
    def three(count: int) -> Float[Tensor, "{count}"]:  # noqa: F821
        return torch.ones(3)

    assert len(three(3)) == 3
    with pytest.raises(TypeCheckError, match=r"return value of test_annotations\..*three"):
        three(count=2)


def test_a_checked_generator_steps_in_settings_of_its_own():
    @own_settings
    @checked
    def kinds() -> Iterator[bool]:
        yield torch.is_inference_mode_enabled()

    with torch.inference_mode():
        assert list(kinds()) == [False]


def test_configurations_answer_in_their_own_words():
    with pytest.raises(ConfigurationError, match="draws='many': give a positive whole number"):
        DrawConfig("many")
    assert DrawConfig(2, timestep_rule="importance", proposal=[1, 2]).proposal == (1.0, 2.0)


def test_without_the_check_the_library_refuses_by_itself():
    with unchecked(), pytest.raises(DataError, match=r"\(3, 2, 3\) images, labels and ids"):
        ImageSet(PIXELS, LABELS[:2], IDS)
    with pytest.raises(TypeCheckError):  # and it is on again
        ImageSet(PIXELS, LABELS[:2], IDS)
