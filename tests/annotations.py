"""Annotations: what the library's signatures say is held against what is given and returned, in every test.

What cannot be checked is what is not there yet, or cannot be seen: what an iterator yields, what a callable takes and returns,
and all entries of a list or mapping but one.

jaxtyping's own decorator binds the arguments of every call to the signature, checks them before the call and after it, and
is made anew for every inner function: a third of the tests' time. The one here makes its checks once, at the first call.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.machinery import PathFinder
from types import CodeType
from typing import Any, NamedTuple, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping._import_hook import Typechecker, _JaxtypingFinder

TYPES = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""The tower: a whole number is a number, as type checkers have it."""


class Checks(NamedTuple):
    """Two functions: of the arguments of a call, and of its result; the sizes of named axes are those of one context."""

    arguments: Callable[..., Any]
    result: Callable[[Any], Any]


_MADE: dict[int, tuple[CodeType, Checks]] = {}
"""By the identity of the code, which is kept: inner functions are made again and again, and equal codes may differ in types."""


class _Inserted(Typechecker):
    """As a decorator of every function and class it is `checked` alone."""

    def get_ast(self) -> ast.expr:
        return ast.parse(f"jaxtyping._import_hook.Typechecker.lookup['{self.hash}']", mode="eval").body


def check_annotations() -> None:
    """Check every function and dataclass of the library, if called before anything of it is imported."""
    sys.meta_path.insert(0, _JaxtypingFinder(["diffinf_lib"], PathFinder, _Inserted("annotations.checked")))


def check_named_tuples() -> None:
    """Check the fields of its named tuples imported so far, which the hook leaves alone."""
    for kind in tuple.__subclasses__():
        if kind.__module__.startswith("diffinf_lib.") and not hasattr(kind.__new__, "__wrapped__"):
            kind.__new__ = staticmethod(checked(kind.__new__))


@contextmanager
def unchecked() -> Iterator[None]:
    """No annotation is checked, as outside the tests: what breaks one must still be refused by whom it is given to."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def checked(made: Any) -> Any:
    """A function whose arguments and results are checked, or a dataclass whose fields are; other classes as they are."""
    if inspect.isclass(made):
        if dataclasses.is_dataclass(made) and "__init__" in vars(made) and not hasattr(made, "__no_type_check__"):
            made.__init__ = checked(made.__init__)
        return made
    if isinstance(made, (classmethod, staticmethod)):
        return type(made)(checked(made.__func__))
    if isinstance(made, property):
        return property(*(part and checked(part) for part in (made.fget, made.fset, made.fdel)))
    if hasattr(made, "__wrapped__"):  # a dataclass takes over the constructor of the one that it extends
        return made
    return _checked_function(made)


def _checked_function(function: Callable[..., Any]) -> Callable[..., Any]:
    if any("{" in str(annotation) for annotation in function.__annotations__.values()):
        return jaxtyping.jaxtyped(function, typechecker=TYPES)  # a size is computed from the arguments

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **options)
        checks = _checks_of(function)
        with jaxtyping.jaxtyped("context"):
            try:
                checks.arguments(*args, **options)
            except BeartypeCallHintViolation as error:
                raise jaxtyping.TypeCheckError(f"parameters of {_name(function)}: {error}") from None
            result = function(*args, **options)
            try:
                return checks.result(result)
            except BeartypeCallHintViolation as error:
                raise jaxtyping.TypeCheckError(f"return value of {_name(function)}: {error}") from None

    return called


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _checks_of(function: Callable[..., Any]) -> Checks:
    found = _MADE.get(id(function.__code__))
    if found is None:
        found = _MADE[id(function.__code__)] = (function.__code__, _made_checks(function))
    return found[1]


def _made_checks(function: Callable[..., Any]) -> Checks:
    hints = {name: _resolved(annotation, function) for name, annotation in function.__annotations__.items()}
    result = {"return": hints.pop("return")} if "return" in hints else {}
    bare = [part.replace(annotation=part.empty, default=part.empty) for part in
            inspect.signature(function).parameters.values()]  # fmt: skip
    arguments = _function(function, f"{inspect.Signature(bare)}: pass", hints)
    arguments.__defaults__, arguments.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return Checks(TYPES(arguments), TYPES(_function(function, "(result): return result", result)))


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """An annotation that is text as the type that it names; anything where the name is for type checkers only."""

    def holder() -> None: ...

    holder.__annotations__ = {"held": annotation}
    try:
        return get_type_hints(holder, function.__globals__, include_extras=True)["held"]
    except NameError:
        return Any


def _function(like: Callable[..., Any], rest: str, hints: dict[str, Any]) -> Any:
    """A function of the name of another, with annotations of its own."""
    scope: dict[str, Any] = {}
    exec(f"def {like.__name__}{rest}", scope)
    made = scope[like.__name__]
    made.__module__, made.__qualname__, made.__annotations__ = like.__module__, like.__qualname__, hints
    return made
