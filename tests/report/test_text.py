"""Names from strangers: shown, never run, never hidden."""

import json

import pytest
from made_up import HOSTILE

from diffinf_lib.report.text import cell, counted, escaped, listed, readable, script_json


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_name_can_be_written_anywhere_and_closes_nothing(name):
    shown = escaped(name)
    assert not set("<>\"'\n\t\u202e") & set(shown)
    shown.encode("utf-8")
    packed = script_json({name: [name]})
    assert not set("<>&") & set(packed) and json.loads(packed) == {name: [name]}


def test_what_cannot_be_seen_is_written_out():
    assert readable("a\u202eb\n\udcff") == "a\\u202eb\\n\\udcff"
    assert readable("שלום 日本語 é.png") == "שלום 日本語 é.png"


def test_a_spreadsheet_runs_no_name():
    assert cell("") == ""
    for name in ("=1+1.png", "+1.png", "-1.png", "@x.png", " =1.png"):
        assert cell(name) == f"./{name}"
    assert cell("cats/=1.png") == "cats/=1.png"


def test_words():
    assert counted(1, "image") == "1 image" and counted(1200, "query", "queries") == "1,200 queries"
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c" and listed([]) == ""
