"""A model of a plain diffusers loop and a folder with planted faults, through the command, in a process of its own."""

import json

from benchmarks import planted


def test_the_report_names_what_was_planted(tmp_path):
    planted.main(["--preset", "digits", "--count", "120", "--steps", "120", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "planted-digits.json").read_text())["results"]
    assert found["copies"] == [planted.COPIES] * 2 and found["edited copies"] == [planted.EDITED] * 2
    assert found["original first, of edited queries"] == [planted.ASKED] * 2
    assert found["other groups of copies"] == 0
    right, of = found["wrong labels"]
    assert right > of / 2 and found["other labels doubted"] <= 1  # a short training: some may be missed
