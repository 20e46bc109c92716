"""Exercise: a reader's function is tried on cases whose answers are known, and told what is wrong with it.

A check is written down as its cases and its known mistakes. A mistake is a whole wrong solution: it is recognised because
the reader's answers equal its answers in every case. What no known mistake explains is described by its sign, its factor,
its shape, or by the case that fails and how far off it is.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from diffinf_lib.checks.answers import (
    SINGLE_PRECISION,
    Answer,
    Function,
    alike,
    as_answer,
    difference,
    factor,
    is_right,
    misshapen,
    named_factor,
    no_answer,
    raised,
)
from diffinf_lib.errors import DiffinfError, require
from diffinf_lib.settings import default_dtype, own_settings

Mistakes = Mapping[str, Function]


class CheckFailed(DiffinfError, AssertionError):
    """A reader's function gives a wrong answer; the message says what is wrong, in one line."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the line alone, for no frame of the check concerns the reader."""
        return [f"CheckFailed: {self}"]


@dataclass(frozen=True)
class Passed:
    """A reader's function was right in every case.

    Attributes:
        name: of the check.
        tried: the cases, by name.
    """

    name: str
    tried: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.name} is right. Tried: {'; '.join(self.tried)}."


@dataclass(frozen=True, eq=False)
class Case:
    """One question whose answer is known.

    Attributes:
        name: what is tried, as messages say it.
        expected: the right answer, in float64; a tuple where the function returns several things.
        arguments: what the function is called with; copied for each call.
        sizes: what a wrong answer may be a factor off by: numbers, by what they count; the same names in all cases.
        ask: what is compared, where it is not what the function returns: `ask(function, *arguments)`.
        last: it counts only where all other cases are right, so that their mistakes are told without it.
    """

    name: str
    expected: Any
    arguments: tuple[Any, ...]
    sizes: Mapping[str, float] = field(default_factory=dict)
    ask: Callable[..., Any] | None = None
    last: bool = False

    def answer(self, function: Function) -> Answer | Exception:
        """What a function answers, or what it raised; `torch.eye(n)` in it is float64, as the arguments are."""
        arguments = [_copied(argument) for argument in self.arguments]
        try:
            with default_dtype(torch.float64):
                return as_answer(self.ask(function, *arguments) if self.ask else function(*arguments))
        except CheckFailed:
            raise
        except Exception as error:
            return error


@dataclass(frozen=True, eq=False)
class Exercise:
    """A check: cases with their answers, and mistakes that it knows.

    Attributes:
        name: of the check.
        cases: makes the cases, given the check's options.
        mistakes: wrong solutions by what is to be said about them, or a function that gives them for the check's options.
        gives: what is compared, as messages say it.
        options: every choice of options the check can be called with.
    """

    name: str
    cases: Callable[..., Iterable[Case]]
    mistakes: Mistakes | Callable[..., Mistakes]
    gives: str
    options: tuple[dict[str, Any], ...] = ({},)

    def known(self, **options: Any) -> Mistakes:
        """The mistakes, for some options."""
        return self.mistakes(**options) if callable(self.mistakes) else self.mistakes

    def tried(self, function: Function, **options: Any) -> Passed:
        """Try a function on all cases.

        Raises:
            CheckFailed: it is no function, or one of its answers is wrong.
        """
        require(callable(function), f"{self.name}: {type(function).__name__} given; give the function itself, not what it "
                "returns", CheckFailed)  # fmt: skip
        cases = list(self.cases(**options))
        found = [case.answer(self._guarded(function)) for case in cases]
        wrong = [n for n, case in enumerate(cases) if not is_right(found[n], as_answer(case.expected))]
        if wrong and not cases[wrong[0]].last:
            cases = [case for case in cases if not case.last]
            found, wrong = found[: len(cases)], [n for n in wrong if n < len(cases)]
        if wrong:
            known = self._recognised(found, cases, self.known(**options))
            raise CheckFailed(f"{self.name}: {known or self._described(function, found, cases, wrong)}")
        return Passed(self.name, tuple(case.name for case in cases))

    def _guarded(self, function: Function) -> Function:
        """The function, refused if it returns what cannot be compared."""

        def called(*arguments: Any) -> Any:
            returned = function(*arguments)
            for value in returned if isinstance(returned, (tuple, list)) else [returned]:
                fault = no_answer(value)
                require(fault is None, f"{self.name}: {fault}", CheckFailed)
            return returned

        return called

    @staticmethod
    def _recognised(found: Sequence[Answer | Exception], cases: Sequence[Case], known: Mistakes) -> str | None:
        """The mistake that gives the same answers in every case."""
        for message, mistake in known.items():
            if all(alike(case.answer(mistake), answer) for case, answer in zip(cases, found, strict=True)):
                return message
        return None

    def _described(
        self, function: Function, found: Sequence[Answer | Exception], cases: Sequence[Case], wrong: Sequence[int]
    ) -> str:
        """What can be said of a mistake that is not known."""
        case, answer = cases[wrong[0]], found[wrong[0]]
        if isinstance(answer, Exception):
            return f"in the case of {case.name} the function raised {raised(answer, function)}"
        expected = as_answer(case.expected)
        if (fault := misshapen(answer, expected, self.gives)) is not None:
            return f"in the case of {case.name} {fault}"
        if all(
            is_right(one, as_answer(each.expected), SINGLE_PRECISION) for one, each in zip(found, cases, strict=True)
        ):
            return f"{self.gives}: right to a few digits only; something in the function is in float32"
        factors = [factor(one, as_answer(each.expected)) for one, each in zip(found, cases, strict=True)]
        if None not in factors and (named := named_factor(cast(list[float], factors), [each.sizes for each in cases])):
            return f"{self.gives}: {named}"
        others = f"{len(wrong)} of {len(cases)} cases are wrong" if len(wrong) > 1 else "the other cases are right"
        return f"in the case of {case.name} {difference(answer, expected, self.gives)}; {others}"


@runtime_checkable
class Check(Protocol):
    """A public check: called with the reader's function, and its options."""

    exercise: Exercise
    __name__: str

    def __call__(self, function: Function, **options: Any) -> Passed:
        """Try the function."""


def exercise(
    *, gives: str, mistakes: Mistakes | Callable[..., Mistakes], options: tuple[dict[str, Any], ...] = ({},)
) -> Callable[[Callable[..., Iterable[Case]]], Check]:
    """Make a public check of a function that makes its cases; see `Exercise`.

    The docstring of that function is the exercise: what the reader's function is called with, and what it returns.
    """

    def made(cases: Callable[..., Iterable[Case]]) -> Check:
        check = Exercise(cases.__name__, cases, mistakes, gives, options)

        @wraps(cases)
        @own_settings
        def door(function: Function, **given: Any) -> Passed:
            return check.tried(function, **given)

        first = inspect.Parameter("function", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        others = inspect.signature(cases).parameters.values()
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in others]
        door.__signature__ = inspect.Signature([first, *keywords])  # type: ignore[attr-defined]
        door.exercise = check  # type: ignore[attr-defined]
        return cast(Check, door)

    return made


def _copied(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return type(argument)(_copied(part) for part in argument)
    return argument.clone() if isinstance(argument, Tensor) else deepcopy(argument)
