import subprocess

import pytest

from diffinf_lib.artifacts import is_finished, manifest, read_json, stage, write_json
from diffinf_lib.artifacts.comparison import differences
from diffinf_lib.errors import ArtifactError


def make(folder, configuration, text="result", force=False):
    with stage(folder, configuration, name="test", force=force) as needed:
        if needed:
            (folder / "value.txt").write_text(text)
    return needed


def test_a_finished_stage_is_skipped(tmp_path):
    assert make(tmp_path / "s", {"a": 1})
    assert not make(tmp_path / "s", {"a": 1}, text="other")
    assert (tmp_path / "s" / "value.txt").read_text() == "result"


def test_an_interrupted_stage_is_entered_again(tmp_path):
    with pytest.raises(KeyboardInterrupt), stage(tmp_path / "s", {"a": 1}, name="test"):
        raise KeyboardInterrupt
    assert make(tmp_path / "s", {"a": 1})
    assert read_json(tmp_path / "s" / "manifest.json")["measured"]["resumed"]


def test_what_killed_writers_left_is_deleted(tmp_path):
    with stage(tmp_path / "s", {}, name="test"):
        (tmp_path / "s" / "inner").mkdir()
        for name in (".value.txt.123.part", "inner/.tmpKmoqL6", "inner/.inmost.lock", "inner/kept.txt"):
            (tmp_path / "s" / name).touch()
    left = {path.name for path in (tmp_path / "s").rglob("*") if path.is_file()}
    assert left == {"manifest.json", "kept.txt", ".inmost.lock"}


@pytest.mark.parametrize("finished", [True, False])
def test_another_configuration_is_refused_by_name(tmp_path, finished):
    if finished:
        make(tmp_path / "s", {"training": {"steps": 100}, "seed": 0})
    else:
        with pytest.raises(KeyboardInterrupt), stage(tmp_path / "s", {"training": {"steps": 100}, "seed": 0}, name="t"):
            raise KeyboardInterrupt
    with pytest.raises(ArtifactError, match=r"training\.steps is 100 there, 200 asked"):
        make(tmp_path / "s", {"training": {"steps": 200}, "seed": 0})
    assert make(tmp_path / "s", {"training": {"steps": 200}, "seed": 0}, force=True)


def test_a_damaged_file_is_named_and_redone(tmp_path):
    make(tmp_path / "s", {})
    (tmp_path / "s" / "value.txt").write_text("resulT")
    with pytest.warns(UserWarning, match=r"value\.txt missing or damaged"):
        assert make(tmp_path / "s", {})
    assert (tmp_path / "s" / "value.txt").read_text() == "result"


def test_a_manifest_of_before_it_held_a_digest_is_believed(tmp_path):
    make(tmp_path / "s", {"a": (1, 2)})
    told = read_json(tmp_path / "s" / "manifest.json")
    assert told.pop("digest")
    write_json(tmp_path / "s" / "manifest.json", told)
    assert is_finished(tmp_path / "s", {"a": (1, 2)})
    (tmp_path / "s" / "value.txt").write_text("resulT")
    with pytest.warns(UserWarning, match=r"value\.txt missing or damaged"):
        assert not is_finished(tmp_path / "s", {"a": (1, 2)})


def test_differences_name_the_path():
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c is 2 there, 3 asked"]
    assert differences({"a": 1}, {"a": 1, "b": 2}) == ["b is None there, 2 asked"]


def test_a_commit_is_marked_when_code_differs_from_it_and_not_when_a_bundle_does(tmp_path, monkeypatch):
    def commit():
        manifest.git_commit.cache_clear()
        return manifest.git_commit()

    monkeypatch.setattr(manifest, "project_root", lambda: tmp_path)
    assert commit() == "unknown"
    code, bundle = tmp_path / "code.py", tmp_path / "book" / "results" / "metrics.json"
    bundle.parent.mkdir(parents=True)
    code.write_text("1")
    bundle.write_text("1")
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-qm", "first")):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    first = commit()
    assert len(first) == 12 and not first.endswith("+")
    bundle.write_text("2")
    assert commit() == first
    code.write_text("2")
    assert commit() == first + "+"
    manifest.git_commit.cache_clear()  # the tests that follow read the checkout's own
