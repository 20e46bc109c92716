"""Shared settings of the tests: annotations are checked, explicit threads, no network, a scratch place for runs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DIFFINF_OFFLINE"] = "1"

import matplotlib
import pytest
import torch
from annotations import check_annotations, check_named_tuples
from browser import browser, opened  # noqa: F401

check_annotations()
matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _scratch_runs(tmp_path, monkeypatch):
    """Nothing a test makes lands in the checkout."""
    monkeypatch.setenv("DIFFINF_RUNS", str(tmp_path / "runs"))


@pytest.fixture(autouse=True)
def _named_tuples():
    """Annotations of named tuples are checked too, of whatever was imported before the test."""
    check_named_tuples()
