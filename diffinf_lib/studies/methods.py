"""Methods study: every method's scores on one run, and how well they predict what retraining does.

A cell is a method, a set of queries and the measurement that is attributed. Scores are computed at every value of a method's
option at once; which value is reported is decided on one half of the subsets and judged on the other, beside the default.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.clip import clip_identity
from diffinf_lib.attribution.methods import METHODS, Method, fixed_settings, get_method
from diffinf_lib.attribution.task import AttributionTask, Cost
from diffinf_lib.configuration import MeasurementConfig, proxy_sign
from diffinf_lib.data import ImageSet
from diffinf_lib.evaluation import (
    lds,
    mean_measurements,
    paired_difference,
    predicted_changes,
    spearman,
    tuned_lds,
)
from diffinf_lib.evaluation.lds import check_tunable
from diffinf_lib.runs import generated_trajectories, measured_queries, task_of_run
from diffinf_lib.runs.attribution import keeps_training_gradients
from diffinf_lib.runs.tasks import ENSEMBLE, kept_steps
from diffinf_lib.shapes import Scores
from diffinf_lib.studies.study import Arrays, Study

REFERENCE = "ekfac"
"""The method that others are compared with in pairs."""


@dataclass(frozen=True)
class MethodCell:
    """One method's scores of one set of queries, attributing one measurement."""

    method: str
    queries: str
    attributed: str = "loss"


class CellScores(NamedTuple):
    """What a cell holds.

    Attributes:
        scores: `[D, Q, N]`, for each value of the method's grid, or `[Q, N]` of one.
        bill: what each thing took that the method used, for all values together, gradients included; shared gradients are on
            the bill of each method that reads them.
    """

    scores: Float[Tensor, "*D Q N"]
    bill: dict[str, Cost]

    @property
    def cost(self) -> Cost:
        """The sum of the bill."""
        return Cost.of(self.bill)


def as_arrays(scores: Float[Tensor, "*D Q N"], bill: Mapping[str, Cost]) -> Arrays:
    """Scores with the bill for them, as they are kept."""
    draws, seconds = zip(*bill.values(), strict=True)
    paid = {"used": list(bill), "draws": draws, "seconds": seconds}
    return {"scores": scores.float().numpy(), **{name: np.array(values) for name, values in paid.items()}}


def from_arrays(arrays: Arrays) -> CellScores:
    """What `as_arrays` was given."""
    items = zip(arrays["used"].tolist(), arrays["draws"].tolist(), arrays["seconds"].tolist(), strict=True)
    bill = {name: Cost(draws, seconds) for name, draws, seconds in items}
    return CellScores(torch.from_numpy(arrays["scores"]).double(), bill)


@dataclass(eq=False)
class MethodsStudy(Study[MethodCell]):
    """The study of one run.

    Its bundle's metrics have `results`, one entry a cell and measurement, see `results`, and `ceilings`; its arrays are
    `<set>/<measured>/lds [cells, D, Q]`, the LDS of each query at each value of the option, NaN beyond a method's grid.

    Attributes:
        truths: ground truths by `<set of queries>/<measurement>`.
        methods: names; default all whose requirements the run meets. Trajectories are sampled for a method that is named, or
            where the preset measures along them.
        attributed: labels of the measurements whose gradients are taken.
        further: methods for all measurements but the first; default those of `methods` that attribute any measurement.
        clip_source: a CLIP model for the method that needs one; empty leaves it out.

    Raises:
        ConfigurationError: a ground truth has too few subsets to tune options on one half and judge them on the other, or a
            method or measurement is unknown.
    """

    methods: Sequence[str] | None = None
    attributed: Sequence[str] = ("loss",)
    further: Sequence[str] | None = None
    clip_source: str = ""

    name = "methods"
    holds_scores = True

    def __post_init__(self) -> None:
        check_tunable(self.truths)
        super().__post_init__()
        for label in self.attributed:
            self.measurement(label)
        named, preset = [get_method(name) for name in self.methods or []], self.run.preset
        along = any(method.requires == "trajectories" for method in named) and preset.has_trajectories
        self._along = along or preset.measures_trajectories
        first = METHODS if self.methods is None else named
        others = [m for m in (first if self.further is None else map(get_method, self.further)) if m.any_measurement]
        self._methods = dict.fromkeys(self.attributed, others) | {self.attributed[0]: list(first)}

    @cached_property
    def queries(self) -> dict[str, ImageSet]:
        """The run's queries by set, with trajectories where a method or a measurement needs them."""
        along = {"generated": generated_trajectories(self.run)} if self._along else {}
        return self._checked(measured_queries(self.run) | along)

    def cells(self) -> list[MethodCell]:
        """The cells that this run can fill: methods whose requirements are met, on each set of queries."""
        return [
            MethodCell(method.name, queries, label)
            for label in self.attributed
            for queries in self.queries
            for method in self._methods[label]
            if self._possible(method, queries)
        ]

    def _possible(self, method: Method, queries: str) -> bool:
        if method.reads_again and self.methods is None and not keeps_training_gradients(self.run):
            return False  # one that is named says so itself
        if method.requires == "trajectories":
            return queries == "generated" and self._along
        if method.requires == "checkpoints":
            return len(kept_steps(self.run)) >= method.checkpoints
        return method.requires != "clip" or bool(self.clip_source)

    def depends(self, cell: MethodCell) -> dict[str, Any]:
        """The values of the method's option, and what all methods take besides."""
        method = get_method(cell.method)
        clip = clip_identity(self.clip_source) if method.requires == "clip" else None
        return {"options": method.grid, "settings": fixed_settings(), "ensemble": ENSEMBLE, "clip": clip}

    def options(self) -> dict[str, Any]:
        return {"cells": self.cells()}

    def measurement(self, label: str) -> MeasurementConfig:
        """The preset's measurement of that label."""
        return self.run.preset.measurement_labelled(label)

    def task(self, cell: MethodCell) -> AttributionTask:
        """The task that a cell's method is given."""
        return task_of_run(
            self.run, self.queries[cell.queries], self.measurement(cell.attributed), clip_source=self.clip_source
        )

    def computed(self, cell: MethodCell) -> Arrays:
        method, task = get_method(cell.method), self.task(cell)
        found, _ = task.costed(lambda: method(task, method.grid))
        return as_arrays(found, task.bill)

    def scores(self, cell: MethodCell) -> CellScores:
        """The scores of one cell, computed once and kept."""
        return from_arrays(self.arrays(cell))

    def results(self, cell: MethodCell, measured: str) -> dict[str, Any]:
        """How well a cell's scores predict one measurement: at the default, tuned on other subsets, and beside EK-FAC.

        Where another measurement than the preset's first is attributed, also how much better the method's scores of the
        first stand for what is measured (`proxy_difference`, paired).
        """
        method, truth = get_method(cell.method), self.truths[f"{cell.queries}/{measured}"]
        held = self.scores(cell)
        cost, scores = (
            held.cost,
            held.scores * proxy_sign(self.measurement(cell.attributed), self.measurement(measured)),
        )
        place = method.grid.index(method.default)
        default = lds(scores[place], truth)
        found: dict[str, Any] = {
            "method": method.name, "label": method.label, "queries": cell.queries, "attributed": cell.attributed,
            "measured": measured, "lds": default.mean, "interval": default.interval, "sem": default.sem,
            "disattenuated": default.disattenuated, "draws": cost.draws, "seconds": round(cost.seconds, 2),
            "option": method.option, "default": method.default,
        }  # fmt: skip
        if len(method.grid) > 1:
            tuned = tuned_lds(scores, truth, options=method.grid, default=method.default)
            found |= {
                "tuned": tuned.tuned.value, "tuned_interval": tuned.tuned.interval, "half_default": tuned.default.value,
                "half_default_interval": tuned.default.interval, "gain": tuned.difference.value,
                "gain_interval": tuned.difference.interval, "favourite": tuned.favourite,
            }  # fmt: skip
        if method.name != REFERENCE:
            reference = self._at_default(replace(cell, method=REFERENCE), measured)
            difference, interval = paired_difference(scores[place], reference, truth)
            found |= {"difference": difference, "difference_interval": interval}
        first = self.run.preset.measurement.label
        if cell.attributed != first:
            proxy = self._at_default(replace(cell, attributed=first), measured)
            difference, interval = paired_difference(proxy, scores[place], truth)
            found |= {"proxy": first, "proxy_difference": difference, "proxy_difference_interval": interval}
        return found

    def _at_default(self, cell: MethodCell, measured: str) -> Scores:
        """A cell's scores at the method's default, signed to stand for what is measured."""
        method = get_method(cell.method)
        scores = self.scores(cell).scores[method.grid.index(method.default)]
        return scores * proxy_sign(self.measurement(cell.attributed), self.measurement(measured))

    def rows(self, cells: Sequence[MethodCell]) -> Iterator[tuple[MethodCell, str]]:
        """Every cell with every measurement it is held against: a direct one, or one that it stands in for."""
        for cell in cells:
            for name in self.truths:
                queries, _, measured = name.partition("/")
                if queries == cell.queries:
                    yield cell, measured

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        cells, most, arrays = self.cells(), max(len(method.grid) for method in METHODS), {}
        for key, truth in self.truths.items():
            queries, _, measured = key.partition("/")
            chosen = [cell for cell in cells if cell.queries == queries]
            values = np.full((len(chosen), most, len(truth.query_ids)), np.nan, dtype=np.float32)
            for row, cell in zip(values, chosen, strict=True):
                found = self._per_option(cell, measured)
                row[: len(found)] = found
            arrays[f"{key}/lds"] = values
        rows = [self.results(cell, measured) for cell, measured in self.rows(cells)]
        return arrays, {"results": rows, "ceilings": self.ceilings()}

    def _per_option(self, cell: MethodCell, measured: str) -> Float[np.ndarray, "D Q"]:
        """LDS of each query at each value of the option, `[D, Q]`."""
        truth = self.truths[f"{cell.queries}/{measured}"]
        sign = proxy_sign(self.measurement(cell.attributed), self.measurement(measured))
        mean = mean_measurements(truth)
        return np.stack([spearman(sign * predicted_changes(s, truth), mean) for s in self.scores(cell).scores])
