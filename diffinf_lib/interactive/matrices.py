"""Matrices: a matrix beside an approximation of it, and the error."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from diffinf_lib.errors import require
from diffinf_lib.figures.style import subplots
from diffinf_lib.interactive.controls import Control, State, Switched, SwitchedText, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import check_form, text
from diffinf_lib.interactive.stills import chart

LARGEST = 64
"""Longest side that can be told apart on a page."""
LARGEST_WRITTEN = 6
"""Longest side whose cells have room for a number."""
_COLOURS = LinearSegmentedColormap.from_list("difference", ["#E47628", "white", "#2E8ACD"])


@dataclass(frozen=True, eq=False)
class Matrices(Figure):
    """Heat maps on one scale; a cell under the pointer or the arrow keys tells its values.

    Attributes:
        exact, approximation: `[rows, columns]` each, or with leading axes for controls, such as a dial.
        names: of the three heat maps.
        row_names, column_names: default: their numbers.
        notes: for each state, a sentence for every cell, row by row.
        free: let the scale of colours follow the state; otherwise one serves all states.
        written: write the value into each cell; of small matrices.
        form: of the cells; `error_form` of the relative error in Frobenius' norm, None where there is none to tell.
    """

    exact: Any
    approximation: Any
    names: tuple[str, str, str] = ("exact", "approximation", "error")
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    notes: SwitchedText | None = None
    free: bool = False
    written: bool = False
    form: str = ".3g"
    error_form: str | None = ".1%"

    kind: ClassVar[str] = "matrices"

    def __post_init__(self) -> None:
        shapes = [matrix.shape for matrix in self._pair]
        require(
            shapes[0] == shapes[1] and len(shapes[0]) == 2, f"matrices of shapes {shapes}: give [rows, columns] of both"
        )
        require(
            max(shapes[0]) <= LARGEST,
            f"{shapes[0]} cells: more than {LARGEST} a side cannot be told apart; average blocks first",
        )
        require(
            not self.written or max(shapes[0]) <= LARGEST_WRITTEN,
            f"written: {shapes[0]} cells; numbers have room up to {LARGEST_WRITTEN} a side",
        )
        for name, given, count in zip(
            ("row_names", "column_names"), (self.row_names, self.column_names), shapes[0], strict=True
        ):
            require(len(given) in (0, count), f"{name}: {len(given)} for {count}; give one for each")
        check_form("form", self.form)
        if self.error_form is not None:
            check_form("error_form", self.error_form)

    @cached_property
    def _pair(self) -> tuple[Switched, Switched]:
        return switched(self.exact), switched(self.approximation)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """What the matrices and the notes depend on."""
        notes = self.notes.controls if self.notes else ()
        return (*self._pair[0].controls, *self._pair[1].controls, *notes)

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or "Heat maps of a matrix, its approximation and the error"

    def relative_error(self, state: State) -> float:
        """‖approximation − exact‖ / ‖exact‖ in Frobenius' norm."""
        exact, near = (matrix.at(state) for matrix in self._pair)
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.linalg.norm(near - exact) / np.float64(np.linalg.norm(exact)))

    def tell(self, state: State) -> str:
        """The relative error, if it is to be told."""
        if self.error_form is None:
            return ""
        exact, near, _ = self.names
        return f"Relative error ‖{near} − {exact}‖ / ‖{exact}‖ = {text(self.relative_error(state), self.error_form)}."

    def payload(self) -> dict[str, Any]:
        """Both matrices; the error is computed on the page."""
        rows, columns = self._pair[0].shape
        return {
            "matrices": [matrix.payload() for matrix in self._pair],
            "names": self.names,
            "rowNames": list(self.row_names) or [f"row {i + 1}" for i in range(rows)],
            "columnNames": list(self.column_names) or [f"column {j + 1}" for j in range(columns)],
            "notes": self.notes and self.notes.payload(),
            "free": self.free,
            "written": self.written,
            "form": self.form,
            "errorForm": self.error_form,
        }

    def still(self, state: State) -> str:
        """The heat maps of one state."""
        exact, near = (matrix.at(state) for matrix in self._pair)
        shown = [exact, near, near - exact]
        largest = max(float(np.abs(values).max()) for values in shown) or 1.0
        figure, axes = subplots(1, 3, figsize=(7, 2.8))
        for axis, values, name in zip(axes, shown, self.names, strict=True):
            drawn = axis.imshow(values, cmap=_COLOURS, vmin=-largest, vmax=largest)
            axis.set(title=name, xticks=[], yticks=[])
            for (row, column), value in np.ndenumerate(values) if self.written else ():
                axis.text(column, row, text(value, self.form), ha="center", va="center", color="black")
        figure.colorbar(drawn, ax=axes, shrink=0.8)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}", colours=128)
