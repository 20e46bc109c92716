"""Readouts: numbers that follow the controls."""

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from diffinf_lib.errors import require
from diffinf_lib.interactive.controls import Control, State, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import check_form, text


@dataclass(frozen=True, eq=False)
class Readouts(Figure):
    """Named numbers, one for every state, such as the hours and bytes of a plan.

    Attributes:
        values: by name, `by(values, *controls)`.
        forms: how each is written, see `numbers.text`; default `.3g`.
    """

    values: Mapping[str, Any]
    forms: Mapping[str, str] = field(default_factory=dict)

    kind: ClassVar[str] = "readouts"

    def __post_init__(self) -> None:
        for name, values in self.values.items():
            shape = switched(values).shape
            require(shape == (), f"{name}: a value of shape {shape} a state; give one number for each")
            check_form(name, self._form(name))
        unknown = sorted(set(self.forms) - set(self.values))
        require(not unknown, f"forms: {unknown} are not among the values")

    def _form(self, name: str) -> str:
        return self.forms.get(name, ".3g")

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """Those of the values."""
        return tuple(control for values in self.values.values() for control in switched(values).controls)

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or ", ".join(self.values)

    def written(self, state: State) -> dict[str, str]:
        """The numbers of a state, as they are shown."""
        return {name: text(float(switched(values).at(state)), self._form(name)) for name, values in self.values.items()}

    def tell(self, state: State) -> str:
        """All of them."""
        return "; ".join(f"{name}: {value}" for name, value in self.written(state).items()) + "."

    def payload(self) -> dict[str, Any]:
        """The numbers of every state."""
        return {
            "values": [
                {"name": name, "form": self._form(name), "value": switched(values).payload()}
                for name, values in self.values.items()
            ]
        }

    def still(self, state: State) -> str:
        """A table."""
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{value}</td></tr>" for name, value in self.written(state).items()
        )
        return f"<table>{rows}</table>"
