"""Options: configurations whose types, choices and ranges stand once, beside each field, and hold on every road.

A field's annotation says what it takes: a type, `Literal` choices, `Annotated[int, POSITIVE]`, `tuple[int, ...]`, `| None`.
Values are held against it whenever a configuration is made: in Python, from a command line's text, from a notebook's JSON.
"""

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from numbers import Integral, Real
from os import PathLike
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

from diffinf_lib.errors import ConfigurationError, require

Config = TypeVar("Config")


class Range(NamedTuple):
    """Which numbers a field takes, and what a message calls one; `{}` stands for `number` or `whole number`."""

    holds: Callable[[Any], bool]
    called: str


POSITIVE = Range(lambda value: value > 0, "a positive {}")
PositiveInt = Annotated[int, POSITIVE]
PositiveFloat = Annotated[float, POSITIVE]
WholeNumber = Annotated[int, Range(lambda value: value >= 0, "a {} >= 0")]
NonNegativeFloat = Annotated[float, Range(lambda value: value >= 0, "a {} >= 0")]
Share = Annotated[float, Range(lambda value: 0 <= value <= 1, "a share from 0 to 1")]

Device = Annotated[str, Range(re.compile(r"cpu|cuda(:\d+)?").fullmatch, "cpu or cuda")]


class Options:
    """Base of the frozen configurations: every field is held against its annotation when one is made.

    Numbers of other libraries become Python's own, and lists tuples, so that configurations can be hashed and written.

    Args:
        called: of a class: what messages call a field, where that is not its name.
    """

    # A field takes more than it holds (a list for a tuple), and the messages are the check's own: no hook checks it first.
    __no_type_check__: ClassVar[bool] = True
    _called: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, called: Mapping[str, str] | None = None) -> None:
        cls._called = called or {}

    def __post_init__(self) -> None:
        for name, kind in _kinds(self).items():
            object.__setattr__(self, name, checked(self._called.get(name, name), getattr(self, name), kind))


def _kinds(config: Any) -> dict[str, Any]:
    """The annotation of each field of a configuration."""
    kinds = _annotations(type(config))  # type: ignore[arg-type]
    return {field.name: kinds[field.name] for field in fields(config)}


@cache
def _annotations(config: type) -> dict[str, Any]:
    """The annotations of a configuration and its bases; `typing.get_type_hints` knows none of a class that no hook checks."""
    found = (inspect.get_annotations(base, eval_str=True) for base in reversed(config.__mro__))
    return {name: kind for annotations in found for name, kind in annotations.items()}


def checked(name: str, value: Any, kind: Any) -> Any:
    """The value as an option of a kind, an annotation, holds it.

    Raises:
        ConfigurationError: it is none of that kind; the message names the value and what to give.
    """
    try:
        return _fitting(value, kind)
    except (ValueError, OverflowError):
        raise ConfigurationError(f"{name}={value!r}: give {_wanted(kind)}") from None


def check_counts(**options: object) -> None:
    """Refuse what is no positive whole number, by name.

    Raises:
        ConfigurationError: for the first that is none.
    """
    for name, value in options.items():
        checked(name, value, PositiveInt)


def check_folders(**options: object) -> None:
    """Refuse what is neither a path nor None, by name.

    Raises:
        ConfigurationError: for the first that is not.
    """
    for name, value in options.items():
        require(value is None or isinstance(value, (str, PathLike)), f"{name}={value!r}: give a folder, or None")


def check_shard(shard: int, shards: int) -> None:
    """Refuse a part of a job that there is not: `shard` counts from 0 to `shards` − 1."""
    require(shards > 0 and 0 <= shard < shards, f"shard={shard} of {shards}: give 0 <= shard < shards")


def _fitting(value: Any, kind: Any) -> Any:
    """The value in the kind's own type; a ValueError where it is none of it."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        value = _fitting(value, parts[0])
        fits = all(limit.holds(value) for limit in parts[1:])
    elif origin is Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in parts)
    elif _is_union(kind):
        return _first_fitting(value, parts)
    elif origin is tuple:
        fits = isinstance(value, (list, tuple))
        if fits:
            kinds = parts[:1] * len(value) if parts[1:] == (...,) else parts
            return tuple(_fitting(item, each) for item, each in zip(value, kinds, strict=True))
    elif kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        fits = number and math.isfinite(value)
        value = kind(value) if fits else value
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError
    return value


def _first_fitting(value: Any, kinds: tuple[Any, ...]) -> Any:
    for kind in kinds:
        try:
            return _fitting(value, kind)
        except ValueError:
            continue
    raise ValueError


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (types.UnionType, typing.Union)


def _wanted(kind: Any) -> str:
    """What a message asks for: `a positive whole number or None`."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return str(parts[1].called).format(_wanted(parts[0]).removeprefix("a "))
    if origin is Literal:
        return _either([str(choice) for choice in parts])
    if _is_union(kind):
        return _either([_wanted(part) for part in parts])
    if origin is tuple:
        return (
            f"a list with each entry {_wanted(parts[0])}" if parts[1:] == (...,) else f"a list of {len(parts)} numbers"
        )
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", types.NoneType: "None"}
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _either(choices: list[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), *choices[-1:]] if choices[1:] else choices)


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """A configuration with some fields replaced, named by their path: `{"training.steps": 300, "damping": "1e-6"}`.

    Strings are read as the field's own type, as they come from a command line.

    Raises:
        ConfigurationError: no such option, or a value that it does not take.
    """
    tree: dict[str, Any] = {}
    for path, value in options.items():
        *parents, name = path.split(".")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
            require(isinstance(branch, dict), f"option {path!r}: {parent!r} is given as a whole too; give one of both")
        branch[name] = value
    return _replaced(config, tree, "")


def _replaced(config: Any, options: dict[str, Any], prefix: str) -> Any:
    """All options of one configuration at once: some are valid only together."""
    kinds, changes = _kinds(config), {}
    for name, value in options.items():
        path = f"{prefix}{name}"
        require(name in kinds, f"option {path!r}: no {name!r} there; give one of {', '.join(kinds)}")
        part: Any = next((kind for kind in _alternatives(kinds[name]) if is_dataclass(kind)), None)
        if isinstance(value, dict):
            require(part is not None, f"option '{path}.{next(iter(value))}': {name!r} has no parts; give {path}=VALUE")
            current = getattr(config, name)
            changes[name] = _replaced(part() if current is None and part else current, value, f"{path}.")
            continue
        value = read_text(path, value, kinds[name]) if isinstance(value, str) else value
        if part is not None and isinstance(value, str):
            first = fields(part)[0].name
            raise ConfigurationError(f"option {path}={value!r}: it has parts; give {path}.{first}=VALUE")
        changes[name] = checked(path, value, kinds[name])
    try:
        return replace(config, **changes)
    except ConfigurationError as error:  # of options that do not go together; a field's own name says too little
        given = ", ".join(f"{prefix}{name}={value}" for name, value in changes.items() if not is_dataclass(value))
        raise ConfigurationError(f"{given}: {error}" if prefix and given else str(error)) from None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """What a kind may be instead of None, without ranges."""
    parts = typing.get_args(kind) if _is_union(kind) else (kind,)
    plain = (typing.get_args(part)[0] if typing.get_origin(part) is Annotated else part for part in parts)
    return tuple(part for part in plain if part is not types.NoneType)


def read_text(path: str, text: str, kind: Any) -> Any:
    """A text as what a field of that kind holds; a text that is none stays as it is, to be refused."""
    if text.lower() in ("none", "null") and _is_union(kind):
        return None
    kind = _alternatives(kind)[0]
    if typing.get_origin(kind) is tuple:
        return _read_list(path, text, typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == text), text)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    try:
        return kind(text) if kind in (int, float) else text
    except ValueError:
        return text


def words_of(text: str) -> list[str]:
    """The entries of `32,64`, `[32, 64]` or `(32, 64)`, with or without quotes; none of nothing."""
    inner = text.strip()
    if (inner[:1], inner[-1:]) in (("[", "]"), ("(", ")")):
        inner = inner[1:-1].strip()
    return [_unquoted(word.strip()) for word in inner.removesuffix(",").split(",")] if inner else []


def _read_list(path: str, text: str, kind: Any) -> tuple[Any, ...]:
    """A text as a tuple of entries of a kind."""
    words = words_of(text)
    require(not words or not is_dataclass(kind), f"{path}={text!r}: its entries have parts, which no text gives; give [] or "
            "set it in Python")  # fmt: skip
    items = tuple(read_text(path, word, kind) for word in words)
    example = {int: "32,64,96", float: "0.5,1.5"}.get(_alternatives(kind)[0], "first,second")
    try:
        require(all(words) and not "".join(words[:1]).startswith(("[", "(")), "not a list")
        return tuple(checked(path, item, kind) for item in items)
    except ConfigurationError:
        raise ConfigurationError(f"{path}={text!r}: give a list, such as {path}={example} or "
                                 f"{path}='[{example.replace(',', ', ')}]'") from None  # fmt: skip


def _unquoted(word: str) -> str:
    quoted = len(word) > 1 and word[0] == word[-1] and word[0] in "'\""
    return word[1:-1] if quoted else word
