"""Claims are corrected as one family, and their verdicts are counted."""

import numpy as np
import pytest

from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import holm, interval_p_value
from diffinf_lib.evaluation.claims import Claim, Difference, counted, judged


def difference(value, error, queries="held-out"):
    """A difference whose interval is symmetric."""
    return Difference("digits", queries, value, (value - 1.96 * error, value + 1.96 * error))


CLAIMS = [
    Claim("a is ahead", [difference(0.3, 0.05), difference(0.06, 0.02, "generated")]),
    Claim("b is ahead", [difference(-0.2, 0.05)]),
    Claim("c is alike", [difference(0.4, 0.05), difference(-0.4, 0.05), difference(0.05, 0.04)], tests=False),
]


def test_all_differences_are_one_family():
    """The one of 0.06 passes alone and within its claim; with the others it does not, those that test nothing included."""
    found = judged(CLAIMS)
    family = [one for claim in CLAIMS for one in claim.differences]
    alone = [interval_p_value(one.value, one.interval) for one in family]
    rows = [one for claim in CLAIMS for one in found[claim.name]]
    assert [one.difference for one in rows] == family
    assert [one.p_value for one in rows] == alone
    assert [one.corrected for one in rows] == holm(np.array(alone)).tolist()
    weak = found["a is ahead"][1]
    assert weak.p_value < 0.05 / 2 and weak.verdict == "holds"
    more = [Claim(f"d{i}", [difference(0.01, 0.1)]) for i in range(20)]
    assert judged([*CLAIMS, *more])["a is ahead"][1].verdict == "open"
    assert judged(CLAIMS, level=1e-3)["a is ahead"][1].verdict == "open"


def test_what_tests_nothing_is_neither_for_nor_against():
    found = judged(CLAIMS)
    assert [one.verdict for one in found["b is ahead"]] == ["against"]
    assert [one.verdict for one in found["c is alike"]] == ["above 0", "below 0", "open"]
    assert counted(found["a is ahead"]) == "2 hold"
    assert counted(found["b is ahead"]) == "1 against"
    assert counted(found["c is alike"]) == "1 above 0, 1 below 0, 1 open"
    assert counted([*found["a is ahead"][:1], *found["b is ahead"]]) == "1 holds, 1 against"


def test_claims_that_cannot_be_judged_are_refused():
    with pytest.raises(ConfigurationError, match="two of this name"):
        judged([CLAIMS[0], CLAIMS[0]])
    with pytest.raises(ConfigurationError, match="it has no differences"):
        judged([Claim("nothing", [])])
    with pytest.raises(ConfigurationError, match="it must hold the value"):
        judged([Claim("outside", [Difference("digits", "held-out", 2.0, (0.0, 1.0))])])
