"""Names that configurations list, so that others are refused early, are those of what is loaded later."""

import ast
from typing import get_args

import papermill
import pytest

import diffinf_lib as di
from diffinf_lib.configuration import DATASETS, KNOWN_SIZES, MethodName
from diffinf_lib.data import _LOADERS
from diffinf_lib.experiments import check_parameters, known_parameters, template_path, templates_root


def test_every_dataset_can_be_loaded_and_planned():
    assert [name.partition(":")[0] for name in DATASETS] == [*_LOADERS]
    assert {*KNOWN_SIZES} == {*DATASETS} - {"digits", "folder:PATH"}


def test_every_method_can_be_named():
    assert [*get_args(MethodName)] == [method.name for method in di.METHODS]


@pytest.mark.parametrize("name", sorted(path.stem for path in templates_root().glob("e*.ipynb")))
def test_parameters_are_read_as_papermill_reads_them(name):
    assert known_parameters(name) == [*papermill.inspect_notebook(str(template_path(name)))]


@pytest.mark.parametrize("name", sorted(path.stem for path in templates_root().glob("e*.ipynb")))
def test_every_parameter_of_a_template_has_a_kind_which_its_default_is_of(name):
    defaults = {key: found["default"] for key, found in papermill.inspect_notebook(str(template_path(name))).items()}
    check_parameters(name, {key: ast.literal_eval(text) for key, text in defaults.items()})
