"""What a process notes of the stages and bundles it went through, and records made of that."""

import json

import numpy as np

from diffinf_lib.artifacts import is_finished, stage, write_bundle
from diffinf_lib.artifacts.noted import NOTED
from diffinf_lib.experiments import Job, holds
from diffinf_lib.experiments.records import _digest


def test_stages_are_noted_when_they_are_made_and_when_they_are_found_whole(tmp_path, monkeypatch):
    notes = tmp_path / "notes"

    def noted():
        found = notes.read_text().splitlines() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return found

    def make():
        with stage(tmp_path / "one", {"a": 1}, name="one") as needed:
            (tmp_path / "one" / "file").write_text("x")
            return needed

    assert make() and not noted()  # nobody asked
    monkeypatch.setenv(NOTED, str(notes))
    manifest = str(tmp_path / "one" / "manifest.json")
    assert not make() and noted() == [manifest]
    assert is_finished(tmp_path / "one", {"a": 1}) and noted() == [manifest]
    (tmp_path / "one" / "manifest.json").unlink()
    assert not is_finished(tmp_path / "one", {"a": 1}) and not noted()
    assert make() and noted() == [manifest]
    folder = write_bundle("b", {"x": np.zeros(1)}, {}, {}, root=tmp_path)
    assert noted() == [str(folder / "manifest.json")]


def test_a_record_holds_while_all_that_it_names_is_as_it_was(tmp_path):
    job, record, manifest = Job("j", "e01_model", {"seed": 1}, ()), tmp_path / "done" / "j.json", tmp_path / "m.json"
    assert not holds(record, job)
    manifest.write_text("{}")
    record.parent.mkdir()
    whole = json.dumps(
        {"template": "e01_model", "parameters": {"seed": 1}, "manifests": {"../m.json": _digest(manifest)}}
    )
    record.write_text(whole)
    assert holds(record, job) and not holds(record, Job("j", "e01_model", {"seed": 2}, ()))
    for damaged in (whole[:-2], "", "[]", '{"parameters": {"seed": 1}, "manifests": 3}', "\xff"):
        record.write_bytes(damaged.encode("latin1"))
        assert not holds(record, job), damaged
    record.write_text(whole)
    manifest.write_text("{} ")
    assert not holds(record, job)
