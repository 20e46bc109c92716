"""Controls: what a reader can choose in a figure, arrays that depend on it, and presets that choose well.

A state gives every control an option. `by` says which controls the leading axes of an array belong to, so one array holds
what a figure shows in each of its states.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from diffinf_lib.errors import first_few, require
from diffinf_lib.interactive.numbers import check_form, text
from diffinf_lib.interactive.packing import packed_numbers, rounded

State = Mapping[str, int]
"""For each control, by name, the place of the option chosen."""


@dataclass(frozen=True)
class Control:
    """One choice among named options; controls of one name in one figure are one control.

    Attributes:
        name: its label.
        options: as readers see them.
    """

    name: str
    options: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        require(bool(self.name), "name: a control without a label; give one")
        require(len(self.options) > 0, f"{self.name}: no options; give at least one")
        require(len(set(self.options)) == len(self.options), f"{self.name}: an option is there twice; give each once")

    @property
    def look(self) -> str:
        """The native element: `slider`, `list` or `radio`."""
        return "radio" if len(self.options) <= 4 and sum(map(len, self.options)) <= 60 else "list"

    def place(self, wanted: Any) -> int:
        """The place of an option.

        Raises:
            ConfigurationError: there is no such option.
        """
        known = (
            wanted in self.options
            if isinstance(wanted, str)
            else isinstance(wanted, int) and 0 <= wanted < len(self.options)
        )
        require(known, f"{self.name}={wanted!r}: give one of {first_few(self.options, 8)}, or its place")
        return self.options.index(wanted) if isinstance(wanted, str) else int(wanted)

    def payload(self, start: int) -> dict[str, Any]:
        """What the script needs of it."""
        return {"name": self.name, "options": self.options, "look": self.look, "start": start}


@dataclass(frozen=True)
class Choice(Control):
    """One of a few names: radio buttons up to four, a list beyond."""


@dataclass(frozen=True)
class Slider(Control):
    """A number out of an ascending row; `options` are written from the values.

    Attributes:
        values: ascending.
        form: of the numbers, see `numbers.text`.
    """

    options: tuple[str, ...] = field(init=False, default=())
    values: tuple[float, ...] = ()
    form: str = ".3g"

    def __init__(self, name: str, values: Iterable[float], form: str | None = None):
        found = tuple(float(value) for value in values)
        whole = all(value.is_integer() for value in found)
        chosen = form or ("d" if whole else ".3g")
        check_form("form", chosen)
        require(
            all(a < b for a, b in zip(found, found[1:], strict=False)),
            f"{name}: values must ascend; got {first_few(found)}",
        )
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "values", found)
        object.__setattr__(self, "form", chosen)
        object.__setattr__(self, "options", tuple(_short(text(value, chosen), chosen) for value in found))
        self.__post_init__()

    @property
    def look(self) -> str:
        """The native element."""
        return "slider"

    def place(self, wanted: Any) -> int:
        """The place of a value, or of an option as it is written."""
        if isinstance(wanted, str):
            return super().place(wanted)
        near = [i for i, value in enumerate(self.values) if math.isclose(value, wanted, rel_tol=1e-9, abs_tol=1e-12)]
        require(bool(near), f"{self.name}={wanted!r}: give one of {first_few(self.options, 8)}")
        return near[0]


def _short(written: str, form: str) -> str:
    """A number of the slider without the zeros that only `g` keeps at its end."""
    mantissa, e, exponent = written.partition("e")
    return (mantissa.rstrip("0").rstrip(".") if form.endswith("g") and "." in mantissa else mantissa) + e + exponent


@dataclass(frozen=True)
class Preset:
    """A button that makes one point.

    Attributes:
        name: on the button, such as "the outlier".
        state: the option of each control that it sets; it leaves the others alone.
        note: what to see there, a sentence or two.
    """

    name: str
    state: Mapping[str, Any]
    note: str = ""


def merged(controls: Iterable[Control]) -> tuple[Control, ...]:
    """Each control once, in the order of first appearance.

    Raises:
        ConfigurationError: two of one name differ.
    """
    found: dict[str, Control] = {}
    for control in controls:
        known = found.setdefault(control.name, control)
        same = known.options == control.options and known.look == control.look
        require(same, f"{control.name}: two controls of one name with other options; give them other names")
    return tuple(found.values())


def resolved(controls: Sequence[Control], wanted: Mapping[str, Any]) -> dict[str, int]:
    """The places of the options wanted.

    Raises:
        ConfigurationError: no such control or option.
    """
    known = {control.name: control for control in controls}
    for name in wanted:
        require(name in known, f"{name!r}: no such control; there are {first_few(sorted(known), 8)}")
    return {name: known[name].place(option) for name, option in wanted.items()}


@dataclass(frozen=True, eq=False)
class Switched:
    """Numbers that depend on controls, as exact as the page holds them.

    Attributes:
        values: `[*options of each control, ...]`, float64.
        controls: of the leading axes.
        bits: 32 for single precision; 16 for 65,536 even steps between the least and the largest value.
    """

    values: np.ndarray
    controls: tuple[Control, ...] = ()
    bits: int = 32

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what one state shows."""
        return self.values.shape[len(self.controls) :]

    def at(self, state: State) -> np.ndarray:
        """What one state shows."""
        return np.asarray(self.values[tuple(state[control.name] for control in self.controls)])

    def payload(self) -> dict[str, Any]:
        """What the script needs of it."""
        return packed_numbers(self.values, self.bits) | {"by": [control.name for control in self.controls]}


@dataclass(frozen=True, eq=False)
class SwitchedText:
    """Texts that depend on controls, such as captions or pieces of HTML.

    Attributes:
        values: nested lists of strings.
        controls: of the axes, the outermost first.
    """

    values: Any
    controls: tuple[Control, ...] = ()

    def at(self, state: State) -> Any:
        """What one state shows."""
        found = self.values
        for control in self.controls:
            found = found[state[control.name]]
        return found

    def payload(self) -> dict[str, Any]:
        """What the script needs of it."""
        return {"values": self.values, "by": [control.name for control in self.controls]}


def by(values: Any, *controls: Control, bits: int = 32) -> Switched:
    """Numbers whose leading axes are the options of `controls`, in this order.

    Raises:
        ConfigurationError: the axes do not fit the controls, or `bits` is neither 16 nor 32.
    """
    require(bits in (16, 32), f"bits={bits}: give 32, or 16")
    array = np.asarray(values, dtype=np.float64)
    options = tuple(len(control.options) for control in controls)
    fits = array.shape[: len(options)] == options
    names = " × ".join(f"{control.name} ({len(control.options)})" for control in controls)
    require(fits, f"values of shape {array.shape}: the leading axes must be {names}")
    return Switched(rounded(array, bits), tuple(controls), bits)


def computed(function: Callable[..., Any], *controls: Control, bits: int = 32) -> Switched:
    """Numbers of every state: `function` is called with a value of each control, or with an option where it has no values.

    Raises:
        ConfigurationError: the results differ in shape, or `bits` is neither 16 nor 32.
    """
    choices = [control.values if isinstance(control, Slider) else control.options for control in controls]
    found = [np.asarray(function(*chosen), dtype=np.float64) for chosen in product(*choices)]
    shapes = sorted({one.shape for one in found})
    require(
        len(shapes) == 1, f"results of shapes {first_few(shapes)}: give one shape in every state, filled up with NaN"
    )
    return by(np.stack(found).reshape(*map(len, choices), *shapes[0]), *controls, bits=bits)


def texts_by(values: Any, *controls: Control) -> SwitchedText:
    """Texts in nested lists, one level for each control.

    Raises:
        ConfigurationError: the lists do not fit the controls.
    """

    def checked(level: Any, rest: tuple[Control, ...]) -> Any:
        if not rest:
            return level
        fits = not isinstance(level, str) and len(level) == len(rest[0].options)
        require(fits, f"texts: {rest[0].name} has {len(rest[0].options)} options; give a text for each")
        return [checked(inner, rest[1:]) for inner in level]

    return SwitchedText(checked(values, controls), tuple(controls))


def switched(values: Any) -> Switched:
    """Numbers, whether they depend on controls or not."""
    return values if isinstance(values, Switched) else by(values)
