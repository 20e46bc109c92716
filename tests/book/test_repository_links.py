"""Buttons that open a chapter elsewhere lead to the fork that the book was built from."""

import importlib.util
import subprocess

import pytest

from diffinf_lib.artifacts import project_root


@pytest.fixture
def repository(monkeypatch):
    monkeypatch.delenv("DIFFINF_REPOSITORY", raising=False)
    path = project_root() / "book/_ext/repository_links.py"
    spec = importlib.util.spec_from_file_location("repository_links", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.repository


FORK = "https://github.com/some/fork.of-it"


@pytest.mark.parametrize(
    "remote", [FORK, FORK + ".git", "git@github.com:some/fork.of-it.git", "ssh://git@github.com/some/fork.of-it"]
)
def test_a_clone_s_origin_names_the_fork(repository, tmp_path, remote):
    for words in (["init", "-q"], ["remote", "add", "origin", remote]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert repository(tmp_path) == FORK


def test_the_variable_goes_before(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_REPOSITORY", FORK)
    assert repository(tmp_path) == FORK


def test_no_buttons_without_a_repository_on_github(repository, tmp_path):
    assert repository(tmp_path) is None
    for words in (["init", "-q"], ["remote", "add", "origin", "/some/folder"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    assert repository(tmp_path) is None
