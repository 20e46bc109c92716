"""Matrices: a matrix beside an approximation of it, and the error."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import fill
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
    """Heat maps; a cell under the pointer or the arrow keys tells its values.

    Attributes:
        exact, approximation: `[rows, columns]` each, or with leading axes for controls, such as a dial.
        names: of the three heat maps.
        row_names, column_names: default: their numbers.
        notes: for each state, a sentence for every cell, row by row.
        free: let the scale of colours follow the state; otherwise one serves all states.
        own_scale: give the third map colours of its own, where differences are small beside the values.
        written: write the value into each cell, and the names of rows and columns, where both are given, beside them; of
            small matrices.
        form: of the cells; `error_form` of the relative error in Frobenius' norm, None where there is none to tell.
    """

    exact: Any
    approximation: Any
    names: tuple[str, str, str] = ("exact", "approximation", "error")
    row_names: Sequence[str] = ()
    column_names: Sequence[str] = ()
    notes: SwitchedText | None = None
    free: bool = False
    own_scale: bool = False
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

    @property
    def _named(self) -> bool:
        return self.written and bool(self.row_names and self.column_names)

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
            "named": self._named,
            "notes": self.notes and self.notes.payload(),
            "free": self.free,
            "ownScale": self.own_scale,
            "written": self.written,
            "form": self.form,
            "errorForm": self.error_form,
        }

    def still(self, state: State) -> str:
        """The heat maps of one state."""
        exact, near = (matrix.at(state) for matrix in self._pair)
        shown = [exact, near, near - exact]
        figure, axes = subplots(1, 3, figsize=(9 if self._named else 7, 2.8))
        drawn = [
            axis.imshow(values, cmap=_COLOURS, vmin=-largest, vmax=largest)
            for axis, values, largest in zip(axes, shown, self._largest(shown), strict=True)
        ]
        for axis, values, name in zip(axes, shown, self.names, strict=True):
            axis.set(title=name, xticks=[], yticks=[])
            for (row, column), value in np.ndenumerate(values) if self.written else ():
                axis.text(column, row, text(value, self.form), ha="center", va="center", color="black")
            if self._named:
                axis.set_xticks(range(len(self.column_names)), self.column_names)
                axis.set_yticks(range(len(self.row_names)), [fill(row, 10) for row in self.row_names])
                axis.tick_params(length=0, labelsize="small")
        if self.own_scale:
            figure.colorbar(drawn[0], ax=axes[:2], shrink=0.8)
        figure.colorbar(drawn[2], ax=axes[2] if self.own_scale else axes, shrink=0.8)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}", colours=128)

    def _largest(self, shown: Sequence[np.ndarray]) -> list[float]:
        """What stands at the end of each map's colours."""
        sizes = [float(np.abs(values).max()) for values in shown]
        pair = max(sizes[:2]) if self.own_scale else max(sizes)
        return [largest or 1.0 for largest in (pair, pair, sizes[2] if self.own_scale else pair)]
