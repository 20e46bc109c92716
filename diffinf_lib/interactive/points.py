"""Points: one quantity against another, with rank correlation and slope."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.evaluation import spearman
from diffinf_lib.figures.style import BLUE, VERMILION, subplots
from diffinf_lib.interactive.controls import Control, State, Switched, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.lines import Handle
from diffinf_lib.interactive.numbers import check_form, text
from diffinf_lib.interactive.stills import chart


@dataclass(frozen=True, eq=False)
class Points(Figure):
    """A point for each pair, such as predicted and measured change.

    Attributes:
        x, y: `[n]` each, or with leading axes for controls; NaN leaves a point out, where states differ in how many there are.
        labels: of the points; default "point 1" and so on.
        marked: points that stand out and lie on top, by position.
        slope: draw and tell the least-squares line of y on x.
        identity: draw the line y = x.
        handle: a point that is dragged to move a control.
        free: let the axes follow the state; otherwise they hold all states.
        equal: the same unit on both axes.
        x_form, y_form: how values are written, see `numbers.text`.
    """

    x: Any
    y: Any
    x_label: str
    y_label: str
    labels: Sequence[str] = ()
    marked: Sequence[int] = ()
    slope: bool = True
    identity: bool = False
    handle: Handle | None = None
    free: bool = False
    equal: bool = False
    height: int = 300
    x_form: str = "+.2e"
    y_form: str = "+.2e"

    kind: ClassVar[str] = "points"

    def __post_init__(self) -> None:
        (x,), (y,) = self._x.shape, self._y.shape
        require(x == y and x > 1, f"{x} values of x and {y} of y: give as many of each, two or more")
        require(len(self.labels) in (0, x), f"labels: {len(self.labels)} for {x} points; give one for each")
        check_form("x_form", self.x_form)
        check_form("y_form", self.y_form)

    @cached_property
    def _x(self) -> Switched:
        return switched(self.x)

    @cached_property
    def _y(self) -> Switched:
        return switched(self.y)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """Those of both axes and of the handle."""
        return (*self._x.controls, *self._y.controls, *(self.handle.controls if self.handle else ()))

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or f"Scatter plot: {self.y_label} against {self.x_label}"

    def there(self, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The points of a state: which they are, their x and their y."""
        x, y = self._x.at(state), self._y.at(state)
        which = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        return which, x[which], y[which]

    def fit(self, state: State) -> tuple[float, float]:
        """Least-squares slope and intercept."""
        _, x, y = self.there(state)
        squares = float(((x - x.mean()) ** 2).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / squares if squares > 0 else float("nan")
        return slope, float(y.mean()) - slope * float(x.mean())

    def tell(self, state: State) -> str:
        """Spearman's correlation and the slope."""
        _, x, y = self.there(state)
        slope = f", slope {text(self.fit(state)[0], '.3g')}" if self.slope else ""
        return f"Rank correlation (Spearman) {text(float(spearman(x, y)), '.3f')}{slope} over {len(x)} points."

    def payload(self) -> dict[str, Any]:
        """Both axes and how they are drawn."""
        return {
            "x": self._x.payload(),
            "y": self._y.payload(),
            "labels": list(self.labels) or [f"point {i + 1}" for i in range(self._x.shape[0])],
            "marked": list(self.marked),
            "handle": self.handle and self.handle.payload(),
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xForm": self.x_form,
            "yForm": self.y_form,
        } | {key: getattr(self, key) for key in ("slope", "identity", "free", "equal", "height")}

    def still(self, state: State) -> str:
        """The points of one state."""
        which, x, y = self.there(state)
        figure, axes = subplots(figsize=(4.6, 3.2))
        stands_out = np.isin(which, self.marked)
        for some, colour in ((~stands_out, BLUE), (stands_out, VERMILION)):
            axes.scatter(x[some], y[some], color=colour, s=16)
        if self.slope and np.isfinite(self.fit(state)[0]):
            axes.axline((float(x.mean()), float(y.mean())), slope=self.fit(state)[0], color=VERMILION)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}")
