"""Shared settings of the tests: annotations are checked, explicit threads, no network, a scratch place for runs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DIFFINF_OFFLINE"] = "1"

import matplotlib
import pytest
import torch
from annotations import check_annotations, check_named_tuples
from browser import browser, opened  # noqa: F401

LONG = ("test_lab.py", "test_limited.py", "test_experiment.py")
"""Files of a few tests that take minutes: begun last, they would leave the other workers without work."""

check_annotations()
matplotlib.use("Agg")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Long files first, then notebooks, whose cells take as long; else the order in which they were found."""
    items.sort(key=lambda item: (item.path.name not in LONG, item.path.suffix != ".ipynb"))


@pytest.fixture(autouse=True)
def _scratch_runs(tmp_path, monkeypatch):
    """Nothing a test makes lands in the checkout."""
    monkeypatch.setenv("DIFFINF_RUNS", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _named_tuples():
    """Annotations of named tuples are checked too, of whatever was imported before the test."""
    check_named_tuples()
