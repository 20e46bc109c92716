"""Lines: quantities against one that grows, with intervals, and a slider that reads them off."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np

from diffinf_lib.errors import require
from diffinf_lib.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, subplots
from diffinf_lib.interactive.controls import Control, Slider, State, Switched, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import check_form, text
from diffinf_lib.interactive.stills import chart

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, GREY)


@dataclass(frozen=True, eq=False)
class Line:
    """One line.

    Attributes:
        name: in the legend.
        x, y: `[n]` each, or with leading axes for controls; NaN leaves a gap.
        low, high: ends of the interval of each point.
    """

    name: str
    x: Any
    y: Any
    low: Any = None
    high: Any = None

    def __post_init__(self) -> None:
        require((self.low is None) == (self.high is None), f"{self.name}: give both ends of the intervals, or neither")
        shapes = {part.shape for part in self.parts.values()}
        require(
            len(shapes) == 1 and len(next(iter(shapes))) == 1,
            f"{self.name}: parts of shapes {sorted(shapes)}; give [n] of each",
        )

    @cached_property
    def parts(self) -> dict[str, Switched]:
        """x, y, and where there are intervals low and high."""
        given = {"x": self.x, "y": self.y, "low": self.low, "high": self.high}
        return {key: switched(values) for key, values in given.items() if values is not None}


@dataclass(frozen=True, eq=False)
class Handle:
    """A point in a drawing that is dragged, or moved by arrow keys, to move a control.

    Attributes:
        control: which it moves.
        x, y: where each of its options stands, `[options]` each, or with leading axes for controls.
        series: place of the line whose colour it has; None for the colour of controls.
    """

    control: Slider
    x: Any
    y: Any
    series: int | None = None

    def __post_init__(self) -> None:
        require(self.series in (None, *range(len(COLOURS))), f"handle: series={self.series}; give 0 to 5, or None")
        shapes, count = [switched(values).shape for values in (self.x, self.y)], len(self.control.options)
        require(shapes == [(count,)] * 2, f"handle: places of shapes {shapes}; {self.control.name} has {count} options")

    @property
    def controls(self) -> tuple[Control, ...]:
        """The one it moves, and those that move it."""
        return (*switched(self.x).controls, *switched(self.y).controls, self.control)

    def payload(self) -> dict[str, Any]:
        """What the script needs of it."""
        places = {"x": switched(self.x).payload(), "y": switched(self.y).payload()}
        return places | {"control": self.control.name, "series": self.series}


class Reading(NamedTuple):
    """What a line says: y at x; `place` is the point of the line that it is, None between two."""

    x: float
    y: float
    place: int | None


def reading(x: np.ndarray, y: np.ndarray, where: float, rule: str, log: bool) -> Reading:
    """A line read off.

    Args:
        rule: `at`: the value at `where`, on the straight line between its neighbours; `within`: the largest value among the
            points up to `where`.
        log: the line is straight in log x.
    """
    slack = 1e-9 * abs(where)
    if rule == "within":
        inside = (x <= where + slack) & np.isfinite(y)
        if not inside.any():
            return Reading(np.nan, np.nan, None)
        best = int(np.where(inside, y, -np.inf).argmax())
        return Reading(float(x[best]), float(y[best]), best)
    near = np.flatnonzero(np.abs(x - where) <= slack)
    if len(near):
        return Reading(float(x[near[0]]), float(y[near[0]]), int(near[0]))
    if not x[0] < where < x[-1]:
        return Reading(np.nan, np.nan, None)
    across, here = (np.log(x), np.log(where)) if log else (x, where)
    return Reading(where, float(np.interp(here, across, y)), None)


@dataclass(frozen=True, eq=False)
class Lines(Figure):
    """Lines with intervals; up to 24 points they have markers, beyond they are dashed.

    Attributes:
        lines: up to six.
        log_x, log_y: logarithmic axes.
        equal: the same unit on both axes.
        references: horizontal lines by name, such as a ceiling.
        reading: a slider whose value is a place on the x axis; a table below reads every line off there.
        rule: `at` the place, or the best `within` it, as a budget asks.
        costs: columns of that table by name: for each line, values `[n]` of its points, such as bytes.
        cost_forms: how each is written.
        labels: columns of words of that table by name: for each line, `[n]` of its points, such as the format it stands for.
        handle: a point that is dragged to move a control.
        limits: of the axes, ((left, right), (low, high)); default: what all states need.
    """

    lines: Sequence[Line]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    equal: bool = False
    references: Mapping[str, float] = field(default_factory=dict)
    reading: Slider | None = None
    rule: str = "at"
    costs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    cost_forms: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    handle: Handle | None = None
    limits: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)
    height: int = 320
    x_form: str = ".3g"
    y_form: str = ".3g"

    kind: ClassVar[str] = "lines"

    def __post_init__(self) -> None:
        require(1 <= len(self.lines) <= 6, f"{len(self.lines)} lines: give 1 to 6, more cannot be told apart")
        require(self.rule in ("at", "within"), f"rule={self.rule!r}: give at or within")
        for name, log, axes in (("log_x", self.log_x, ("x",)), ("log_y", self.log_y, ("y", "low", "high"))):
            values = [line.parts[key].values for line in self.lines for key in axes if key in line.parts]
            require(
                not log or all(np.nanmin(part) > 0 for part in values), f"{name}: values of 0 or less have no logarithm"
            )
        for name, costs in self.costs.items():
            shapes = [switched(cost).shape for cost in costs]
            wanted = [line.parts["x"].shape for line in self.lines]
            require(shapes == wanted, f"costs: {name} has shapes {shapes}; give {wanted}, one for each line")
        for name, labels in self.labels.items():
            counts = [len(words) for words in labels]
            points = [line.parts["x"].shape[0] for line in self.lines]
            require(counts == points, f"labels: {name} has {counts} words; give {points}, one for each point of a line")
        for name, form in {"x_form": self.x_form, "y_form": self.y_form, **self.cost_forms}.items():
            check_form(name, form)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """Those of the lines, of what they cost, the slider that reads them off, and what is dragged."""
        found = [control for line in self.lines for part in line.parts.values() for control in part.controls]
        found += [control for costs in self.costs.values() for cost in costs for control in switched(cost).controls]
        found += [self.reading] if self.reading else []
        return (*found, *(self.handle.controls if self.handle else ()))

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return (
            self.alternative or f"{self.y_label} against {self.x_label}: {', '.join(line.name for line in self.lines)}"
        )

    @property
    def _ticks(self) -> list[float] | None:
        """On a logarithmic axis with few points, these."""
        places = np.unique(np.concatenate([line.parts["x"].values.ravel() for line in self.lines]))
        return places.tolist() if self.log_x and len(places) <= 12 else None

    def readings(self, state: State) -> dict[str, Reading]:
        """Every line read off, by name."""
        assert self.reading is not None
        where = self.reading.values[state[self.reading.name]]
        return {
            line.name: reading(line.parts["x"].at(state), line.parts["y"].at(state), where, self.rule, self.log_x)
            for line in self.lines
        }

    def tell(self, state: State) -> str:
        """What the slider reads off."""
        if self.reading is None:
            return ""
        found = {name: one for name, one in self.readings(state).items() if np.isfinite(one.y)}
        limit = f"{self.reading.name} {self.reading.options[state[self.reading.name]]}"
        if not found:
            return f"{limit}: " + (
                "nothing is to be had for so little." if self.rule == "within" else "no line is there."
            )
        if self.rule == "within":
            best = max(found, key=lambda name: found[name].y)
            tied = " and ".join(self._tied(state, found, best))
            told = (
                f"{limit}: best is {best} with {text(found[best].y, self.y_form)} at {text(found[best].x, self.x_form)}"
            )
            return f"{told}; its interval overlaps with {tied}." if tied else f"{told}."
        return f"{limit}: " + ", ".join(f"{name} {text(one.y, self.y_form)}" for name, one in found.items()) + "."

    def _tied(self, state: State, found: Mapping[str, Reading], best: str) -> list[str]:
        """Lines whose interval, where they are read off, overlaps with that of the best."""
        ends = {}
        for line in self.lines:
            if line.name in found and "low" in line.parts:
                place = found[line.name].place
                ends[line.name] = [float(line.parts[end].at(state)[place]) for end in ("low", "high")]
        if best not in ends:
            return []
        low, high = ends.pop(best)
        return [name for name, (lowest, highest) in ends.items() if lowest <= high and low <= highest]

    def payload(self) -> dict[str, Any]:
        """The lines and how they are drawn."""
        (x_limits, y_limits), read = self.limits, self.reading
        return {
            "series": [
                {"name": line.name} | {key: part.payload() for key, part in line.parts.items()} for line in self.lines
            ],
            "references": [{"name": name, "value": float(value)} for name, value in self.references.items()],
            "reading": read and {"control": read.name, "values": read.values, "rule": self.rule},
            "costs": [
                {
                    "name": name,
                    "form": self.cost_forms.get(name, ".3g"),
                    "values": [switched(one).payload() for one in costs],
                }
                for name, costs in self.costs.items()
            ],
            "labels": [
                {"name": name, "values": [list(words) for words in labels]} for name, labels in self.labels.items()
            ],
            "handle": self.handle and self.handle.payload(),
            "ticks": self._ticks,
            "xLimits": x_limits,
            "yLimits": y_limits,
            "xLabel": self.x_label,
            "yLabel": self.y_label,
            "xForm": self.x_form,
            "yForm": self.y_form,
            "logX": self.log_x,
            "logY": self.log_y,
            "equal": self.equal,
            "height": self.height,
        }

    def still(self, state: State) -> str:
        """The lines of one state."""
        figure, axes = subplots(figsize=(6, 3.4))
        for line, colour in zip(self.lines, COLOURS, strict=False):
            x, y, *ends = (part.at(state) for part in line.parts.values())
            axes.plot(x, y, color=colour, marker="o" if len(x) <= 24 else None, markersize=4, label=line.name)
            if ends:
                axes.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)
        for name, value in self.references.items():
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1, label=name)
        if self.reading:
            axes.axvline(self.reading.values[state[self.reading.name]], color="black", linewidth=1)
        scales = {"xscale": "log" if self.log_x else "linear", "yscale": "log" if self.log_y else "linear"}
        axes.set(xlabel=self.x_label, ylabel=self.y_label, **scales)
        axes.set(**{f"{axis}lim": ends for axis, ends in zip("xy", self.limits, strict=True) if ends})
        if self.equal:
            axes.set_aspect("equal", adjustable="datalim")
        axes.legend(fontsize=8)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}".strip())
