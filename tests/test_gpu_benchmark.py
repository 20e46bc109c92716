"""The script for a GPU, at its smallest size, on the CPU: the same device twice, so every error is none."""

import json
import time

import pytest

from benchmarks import gpu
from benchmarks.gpu_checks import CHECKS, judged
from diffinf_lib.errors import ConfigurationError

EACH_KIND = [
    *(name for name, part in gpu.PARTS.items() if part.checks), "fit digits", "gradients digits", "training cifar2-small",
    "training digits, several processes", "training digits, stacked", "precision",
]  # fmt: skip


def call(tmp_path, *arguments):
    return gpu.main(["--smoke", "--device", "cpu", "--out", str(tmp_path), *arguments])


def records(tmp_path):
    return json.loads((tmp_path / "gpu.json").read_text())["parts"]


def test_every_kind_of_part_runs_and_is_not_done_twice(tmp_path, capsys):
    assert call(tmp_path, "--only", *EACH_KIND) == 0
    found = records(tmp_path)
    assert {name: record["status"] for name, record in found.items()} == {
        name: "right" if gpu.PARTS[name].checks else "measured" for name in EACH_KIND
    }
    for name in EACH_KIND:
        for row, values in (found[name]["results"].get("errors") or found[name]["results"]).items():
            assert "failed" not in values, (name, row, values)
    assert found["fit digits"]["results"]["ours"]["draws_per_second"] > 0
    assert found["fit digits"]["environment"]["versions"]["torch"] and len(CHECKS) == 5
    capsys.readouterr()
    assert call(tmp_path, "--only", *EACH_KIND) == 0
    assert capsys.readouterr().out.count("before; --force") == len(EACH_KIND) and records(tmp_path) == found


def replaced(monkeypatch, **works):
    monkeypatch.setattr(
        gpu, "PARTS", {name: gpu.Part(work, 0.3, checks=name.startswith("check")) for name, work in works.items()}
    )


def fails(bench):
    raise RuntimeError("out of memory")


def test_what_fails_or_takes_too_long_stops_nothing_else(tmp_path, monkeypatch):
    replaced(monkeypatch, fails=fails, sleeps=lambda bench: time.sleep(5), measures=lambda bench: {"a": {"ratio": 1.0}})
    assert call(tmp_path) == 0
    found = records(tmp_path)
    assert [found[name]["status"] for name in found] == ["failed", "out of time", "measured"]
    assert found["fails"]["message"] == "RuntimeError: out of memory" and found["sleeps"]["seconds"] < 2
    replaced(monkeypatch, fails=lambda bench: {}, sleeps=lambda bench: {}, measures=fails)
    assert call(tmp_path) == 0  # goes on with what is missing, and leaves what is there
    assert {record["status"] for record in records(tmp_path).values()} == {"measured"}
    assert call(tmp_path, "--force") == 0 and records(tmp_path)["measures"]["status"] == "failed"


@pytest.mark.parametrize(
    "check", [fails, lambda bench: judged({"x": (float("nan"), 1.0)}), lambda bench: judged({"x": (2.0, 1.0)})]
)
def test_the_exit_code_says_whether_the_device_is_wrong(check, tmp_path, monkeypatch):
    replaced(monkeypatch, **{"check": check, "check more": lambda bench: judged({"x": (0.5, 1.0)})})
    assert call(tmp_path) == 1
    assert records(tmp_path)["check more"]["status"] == "right"


def test_without_time_nothing_begins(tmp_path, capsys):
    assert call(tmp_path, "--minutes", "0") == 0
    assert not (tmp_path / "gpu.json").exists() and capsys.readouterr().out.count("no time left") == len(gpu.PARTS)


def test_an_unknown_part_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="only=nothing: give names of parts: check curvature"):
        call(tmp_path, "--only", "nothing")
