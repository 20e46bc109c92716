"""Papermill templates run as a user runs them: whole, in shards, interrupted, with bad parameters."""

import json
import subprocess
import sys

import nbformat
import pytest

import diffinf_lib as di
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.experiments import check_parameters, launch, parse_parameters


def test_parameters_are_read_as_json_or_text():
    pairs = ["shard=0", "preset=smoke", 'options={"damping": 1}', "a=b=c"]
    assert parse_parameters(pairs) == {"shard": 0, "preset": "smoke", "options": {"damping": 1}, "a": "b=c"}
    together = parse_parameters(['options={"damping": 1}'], {"training.steps": "300"})
    assert together == {"options": {"damping": 1, "training.steps": "300"}}
    with pytest.raises(ConfigurationError, match="options='damping=1': give --set OPTION=VALUE"):
        parse_parameters(["options=damping=1"])
    with pytest.raises(ConfigurationError, match="'shard': give NAME=VALUE"):
        parse_parameters(["shard"])


def test_a_list_is_spelt_as_in_an_option_or_as_json():
    for text in ("trak,das", "[trak, das]", '["trak", "das"]', "('trak', 'das')"):
        assert parse_parameters([f"methods={text}"]) == {"methods": ["trak", "das"]}
    assert parse_parameters(["methods=trak", "counts=8,16", "shares=0.1", "formats=[]", "bundle=7"]) == {
        "methods": ["trak"], "counts": [8, 16], "shares": [0.1], "formats": [], "bundle": "7",
    }  # fmt: skip
    check_parameters("e05_methods", {"attributed": ["loss_at_time-100", "elbo"], "methods": ["trak"]})
    for name, given, message in [
        ("e07_compression", {"formats": ["int9"]}, "formats=int9: give some of "),
        ("e04_draws", {"counts": ["many"]}, r"counts=\['many'\]: give a list with each entry a positive whole number"),
        ("e08_removal", {"queries": 0}, "queries=0: give a positive whole number"),
        ("e10_ladder", {"rungs": "steps"}, "rungs='steps'.*ladder.*budget"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            check_parameters(name, given)


def test_misspelt_parameters_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(
        ConfigurationError, match="parameter='presett': e01_model has none of that name; give one of preset"
    ):
        launch("e01_model", {"presett": "smoke"}, log=tmp_path / "log.ipynb")
    assert not (tmp_path / "log.ipynb").exists()
    check_parameters("e01_model", {"preset": "smoke"})


def test_a_refusal_inside_a_template_comes_out_as_one_line_and_paths_are_those_of_the_caller(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="8 of 8 retrained models are missing"):
        launch("e03_bundle", {"preset": "smoke", "run": "mine"}, log="mine/log.ipynb", progress=False)
    assert (tmp_path / "mine" / "log.ipynb").exists() and (tmp_path / "mine" / "config.json").exists()


def test_reproduce_leaves_logs_and_a_bundle(tmp_path):
    run, results = tmp_path / "run", tmp_path / "results"
    words = ["reproduce", "smoke", "--workers", "2", "-p", f"run={run}", "-p", f"results={results}"]
    subprocess.run([sys.executable, "-m", "diffinf_lib", *words], check=True, timeout=300, capture_output=True)
    bundle = di.load_bundle("smoke-ground-truth", root=results)
    assert bundle.arrays["held-out/measured/loss"].shape == (4, 2, 6)
    logs = {path.stem: nbformat.read(path, as_version=4) for path in (run / "logs").glob("*.ipynb")}
    assert set(logs) == {"e01_model", "e02_ground_truth-0-of-2", "e02_ground_truth-1-of-2", "e03_bundle"}
    assert "subset" in json.dumps(logs["e02_ground_truth-1-of-2"].cells[-1].outputs)
