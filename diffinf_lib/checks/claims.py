"""Checks of many claims at once: p-values adjusted for how many there are (chapter 16)."""

from collections.abc import Iterator
from itertools import combinations

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers


def _left(p_values: Tensor) -> Tensor:
    """How many are left at each place of the sorted ones, itself among them."""
    return torch.arange(len(p_values), 0, -1, dtype=torch.float64)


def _in_place(p_values: Tensor, stepped: Tensor) -> Tensor:
    return torch.empty_like(stepped).index_copy(0, p_values.argsort(stable=True), stepped)


def _stepped(p_values: Tensor) -> Tensor:
    return (p_values.sort().values * _left(p_values)).cummax(0).values


def _from_above(values: Tensor) -> Tensor:
    """The least of each and all after it."""
    return values.flip(0).cummin(0).values.flip(0)


def _hochberg(p_values: Tensor) -> Tensor:
    return _in_place(p_values, _from_above(p_values.sort().values * _left(p_values)).clamp(max=1))


def _false_discoveries(p_values: Tensor) -> Tensor:
    places = torch.arange(1, len(p_values) + 1, dtype=torch.float64)
    return _in_place(p_values, _from_above(p_values.sort().values * len(p_values) / places).clamp(max=1))


def _falling(p_values: Tensor) -> Tensor:
    return _in_place(p_values, (p_values.sort().values * _left(p_values)).clamp(max=1))


def _wrong_way(p_values: Tensor) -> Tensor:
    return _in_place(p_values, (p_values.sort().values * _left(p_values).flip(0)).cummax(0).values.clamp(max=1))


@exercise(
    gives="the adjusted p-values",
    mistakes={
        "this is Bonferroni's correction: only the least p-value is multiplied by the whole number": lambda p: (
            (p * len(p)).clamp(max=1)
        ),
        "a later one may fall below an earlier one: no claim can hold when one with a lower p-value does not": _falling,
        "they come back sorted; give them in the order they came in": lambda p: _stepped(p).clamp(max=1),
        "some are above 1; a p-value is at most 1": lambda p: _in_place(p, _stepped(p)),
        "the least one is multiplied by 1 and the greatest by the whole number; it is the other way round": _wrong_way,
        "this steps up from the greatest (Hochberg), which needs independence; step down from the least": _hochberg,
        "this bounds the share of false claims (Benjamini and Hochberg), not the chance of a single one": _false_discoveries,
        "nothing is adjusted": lambda p: p,
    },
)  # fmt: skip
def holm() -> Iterator[Case]:
    """`holm(p_values)` → adjusted p-values `[n]` in the same order: the family's error rate bounded by Holm's method.

    p_values `[n]`, unsorted.
    """
    # sorted .01, .03, .04: times 3, 2, 1 is .03, .06, .04, and .04 may not fall below .06
    yield Case("three p-values, by hand", numbers(0.03, 0.06, 0.06), (numbers(0.01, 0.04, 0.03),))
    # sorted .3, .6, .7: times 3, 2, 1 is .9, 1.2, .7, and 1 is the most
    yield Case("three large ones, by hand", numbers(1.0, 0.9, 1.0), (numbers(0.7, 0.3, 0.6),))
    many = torch.special.ndtr(normal("p-values", 7) - 1.5)
    yield Case("seven, by all their subsets", numbers(*_closed(many.tolist())), (many,))


def _closed(p_values: list[float]) -> list[float]:
    """A claim holds when Bonferroni refuses every set of claims that it belongs to: the largest p-value of these sets."""
    count, largest = len(p_values), [0.0] * len(p_values)
    for size in range(1, count + 1):
        for some in combinations(range(count), size):
            bound = min(1.0, size * min(p_values[i] for i in some))
            for i in some:
                largest[i] = max(largest[i], bound)
    return largest
