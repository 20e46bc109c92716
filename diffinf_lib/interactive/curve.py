"""Curve: a point moves along a curve; tangent and secant go with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Real
from torch import Tensor

from diffinf_lib.errors import require
from diffinf_lib.figures.style import BLUE, GREEN, VERMILION, subplots
from diffinf_lib.interactive.controls import Control, Slider, State, Switched, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import check_form, text
from diffinf_lib.interactive.stills import chart


@dataclass(frozen=True, eq=False)
class Curve(Figure):
    """A curve over a grid, and a point that is dragged along it.

    With an `anchor` the tangent stays there, and a secant joins it to the point: what a derivative predicts for a step that
    is not small. Without one the tangent goes with the point.

    Attributes:
        x: the grid, ascending, `[n]`.
        y: the curve, `[n]`, or with leading axes for controls.
        slopes: its derivative at every place of the grid, `[n]`; with an anchor there alone, one number; either with leading
            axes for controls.
        point: what the moving point is called, such as "ε".
        anchor: place of the grid where the tangent stays; None lets it move.
        names: of curve, tangent and secant.
        free: let the axes follow the state; otherwise they hold all states.
        x_form, y_form, slope_form: how numbers are written, without a plus.
    """

    x: Sequence[float] | Real[np.ndarray, "n"] | Real[Tensor, "n"]
    y: Any
    slopes: Any
    x_label: str
    y_label: str
    point: str = "Point"
    anchor: int | None = None
    names: tuple[str, str, str] = ("curve", "tangent", "secant")
    free: bool = False
    height: int = 300
    x_form: str = ".3g"
    y_form: str = ".3g"
    slope_form: str = ".3g"

    kind: ClassVar[str] = "curve"

    def __post_init__(self) -> None:
        grid = (len(self.x),)
        require(self._y.shape == grid, f"y of shape {self._y.shape}: the grid needs {grid}")
        wanted, where = (grid, "without an anchor") if self.anchor is None else ((), "with an anchor")
        require(self._slopes.shape == wanted, f"slopes of shape {self._slopes.shape}: {where} they need {wanted}")
        require(
            self.anchor is None or 0 <= self.anchor < len(self.x),
            f"anchor={self.anchor}: give a place of the grid, 0 to {len(self.x) - 1}",
        )
        for name, form in (("x_form", self.x_form), ("y_form", self.y_form), ("slope_form", self.slope_form)):
            check_form(name, form)

    @cached_property
    def _y(self) -> Switched:
        return switched(self.y)

    @cached_property
    def _slopes(self) -> Switched:
        return switched(self.slopes)

    def slope(self, state: State) -> float:
        """Of the tangent."""
        slopes = self._slopes.at(state)
        return float(slopes if self.anchor is not None else slopes[state[self.point]])

    @cached_property
    def moving(self) -> Slider:
        """Where the point is."""
        return Slider(self.point, self.x, self.x_form)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """The point, and what the curve depends on."""
        return (self.moving, *self._y.controls, *self._slopes.controls)

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or f"Curve of {self.y_label} against {self.x_label} with its tangent"

    def tell(self, state: State) -> str:
        """What the curve does between anchor and point, and what the tangent says of it."""
        here, y, steep, x = state[self.point], self._y.at(state), self.slope(state), self.moving.values
        place = f"{self.point} {self.moving.options[here]}"
        if self.anchor is None:
            return f"{place}: {self.y_label} {text(y[here], self.y_form)}, slope {text(steep, self.slope_form)}."
        change, step = y[here] - y[self.anchor], x[here] - x[self.anchor]
        changed, predicted = (text(value, "+" + self.y_form) for value in (change, steep * step))
        told = f"{place}: the curve changes by {changed}, the tangent says {predicted}"
        if step == 0:
            return told + "."
        secant, tangent = (text(slope, self.slope_form) for slope in (change / step, steep))
        return f"{told}; slope of the secant {secant}, of the tangent {tangent}."

    def payload(self) -> dict[str, Any]:
        """The curve and how it is drawn."""
        return {
            "x": self.moving.values,
            "y": self._y.payload(),
            "slopes": self._slopes.payload(),
            "point": self.point,
            "anchor": self.anchor,
            "names": self.names if self.anchor is not None else self.names[:2],
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "yForm": self.y_form,
            "slopeForm": self.slope_form,
            "free": self.free,
            "height": self.height,
        }

    def still(self, state: State) -> str:
        """The curve of one state."""
        here, y, x = state[self.point], self._y.at(state), np.array(self.moving.values)
        foot = here if self.anchor is None else self.anchor
        figure, axes = subplots(figsize=(5.4, 3.2))
        axes.plot(x, y, color=BLUE, label=self.names[0])
        limits = axes.get_ylim()
        axes.axline((x[foot], y[foot]), slope=self.slope(state), color=VERMILION, linestyle="--", label=self.names[1])
        if here != foot:
            axes.axline((x[foot], y[foot]), (x[here], y[here]), color=GREEN, linestyle=":", label=self.names[2])
        axes.plot(x[here], y[here], "o", color=BLUE)
        axes.set(xlabel=self.x_label, ylabel=self.y_label, ylim=limits)
        axes.legend(fontsize=8)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}")
