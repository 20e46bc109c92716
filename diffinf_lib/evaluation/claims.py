"""Claims: statements that are made of differences, all tested together (chapter 16).

Every difference is positive where its claim is right. The differences of all claims are one family: their intervals become
p-values, and Holm's method corrects these together. A claim as a whole has no p-value.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.evaluation.statistics import holm, interval_p_value

OF_A_TEST, OF_NO_TEST = ("holds", "against", "open"), ("above 0", "below 0", "open")
PLURAL = {"holds": "hold"}


@dataclass(frozen=True)
class Difference:
    """One difference, positive where its claim is right.

    Attributes:
        images, queries: what it was measured on.
        value: as a fraction.
        interval: its 95 % interval.
    """

    images: str
    queries: str
    value: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class Claim:
    """A statement, and the differences that stand for it.

    Attributes:
        name: the statement.
        differences: at least one.
        item, page, note: where it comes from, where it was measured, what to know.
        published: differences that others report, by dataset, in the unit.
        unit: of a hundredth of a difference.
        digits: after the point, in that unit.
        aside: what must stand beside every count, such as "not a test".
        tests: whether the sign of a difference says anything about the statement. One that says nothing stays in the family,
            since it is shown too, and is counted apart.
    """

    name: str
    differences: Sequence[Difference]
    item: str = ""
    page: str = ""
    note: str = ""
    published: Mapping[str, float] = field(default_factory=dict)
    unit: str = "points"
    digits: int = 1
    aside: str = ""
    tests: bool = True


@dataclass(frozen=True)
class Judged:
    """A difference with its p-values, and what the corrected one says.

    Attributes:
        p_value: of "the difference is 0", by itself.
        corrected: over the family.
        verdict: "holds" or "against" for a test, "above 0" or "below 0" for what tests nothing; "open" if not below the level.
    """

    difference: Difference
    p_value: float
    corrected: float
    verdict: str


def judged(claims: Sequence[Claim], *, level: float = 0.05) -> dict[str, list[Judged]]:
    """Every difference of every claim, corrected over all of them (Holm 1979), by the claim's name.

    Args:
        level: the chance, at most, that any of the differences that are truly 0 passes.

    Raises:
        ConfigurationError: two claims of one name, a claim without differences, or a value outside its interval.
    """
    names = [claim.name for claim in claims]
    for claim in claims:
        require(names.count(claim.name) == 1, f"claim {claim.name!r}: there are two of this name; rename one")
        require(len(claim.differences) > 0, f"claim {claim.name!r}: it has no differences; give at least one")
    family = [difference for claim in claims for difference in claim.differences]
    alone = np.array([interval_p_value(one.value, one.interval) for one in family])
    rows = iter(zip(family, alone.tolist(), holm(alone).tolist(), strict=True))
    return {
        claim.name: [
            Judged(one, p, corrected, _verdict(claim, one.value, corrected < level))
            for one, p, corrected in (next(rows) for _ in claim.differences)
        ]
        for claim in claims
    }


def _verdict(claim: Claim, value: float, passes: bool) -> str:
    above, below, unclear = OF_A_TEST if claim.tests else OF_NO_TEST
    return unclear if not passes else above if value > 0 else below


def counted(found: Sequence[Judged]) -> str:
    """How often each verdict was given, in words: "5 hold, 1 open"."""
    verdicts = [one.verdict for one in found]
    counts = {word: verdicts.count(word) for word in dict.fromkeys((*OF_A_TEST[:2], *OF_NO_TEST))}
    return ", ".join(f"{n} {PLURAL.get(word, word) if n > 1 else word}" for word, n in counts.items() if n)
