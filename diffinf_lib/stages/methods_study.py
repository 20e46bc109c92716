"""Methods study: every method's scores on one run, and how well they predict what retraining does.

Each cell (method, set of queries, measurement attributed) is a stage of its own, so a killed study goes on with the next
cell. Scores are computed at every value of a method's option at once; which value is reported is decided on one half of the
subsets and judged on the other, beside the default.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import (
    json_digest,
    plain,
    read_arrays,
    read_json,
    stage,
    write_arrays,
    write_bundle,
    write_json,
)
from diffinf_lib.attribution.methods import METHODS, Method, get_method
from diffinf_lib.attribution.task import AttributionTask, Cost
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, ceiling, lds, paired_difference, predicted_changes, spearman, tuned_lds
from diffinf_lib.evaluation.lds import check_tunable
from diffinf_lib.measurements import MeasurementConfig, proxy_sign
from diffinf_lib.stages.model import full_model, has_trajectories, measured_queries, model_identity
from diffinf_lib.stages.run import Run
from diffinf_lib.stages.tasks import task_of_run

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
        scores: `[D, Q, N]`, for each value of the method's grid.
        cost: of all of them together, gradients included; shared gradients are counted for each method that reads them.
    """

    scores: Tensor
    cost: Cost


class MethodsStudy:
    """The study of one run.

    Args:
        truths: ground truths by `<set of queries>/<measurement>`, from `load_ground_truth`.
        clip_source: a CLIP model for the method that needs one; empty leaves it out.

    Raises:
        ConfigurationError: a ground truth has too few subsets to tune options on one half and judge them on the other.
    """

    def __init__(self, run: Run, truths: Mapping[str, GroundTruth], *, clip_source: str = ""):
        check_tunable(truths)
        self.run, self.truths, self.clip_source = run, dict(truths), clip_source
        full_model(run)

    @cached_property
    def queries(self) -> dict[str, ImageSet]:
        """The run's queries by set, with trajectories where there are any."""
        return measured_queries(self.run)

    def cells(
        self,
        methods: Sequence[str] | None = None,
        attributed: Sequence[str] = ("loss",),
        further: Sequence[str] | None = None,
    ) -> list[MethodCell]:
        """The cells that this run can fill: methods whose needs are met, on each set of queries.

        Args:
            methods: names; default all of them.
            attributed: labels of the measurements whose gradients are taken.
            further: methods for all measurements but the first; default those of `methods` that attribute any measurement.
        """
        first = METHODS if methods is None else [get_method(name) for name in methods]
        others = [m for m in (first if further is None else map(get_method, further)) if m.any_measurement]
        return [
            MethodCell(method.name, queries, label)
            for label in attributed
            for queries in self.queries
            for method in (first if label == attributed[0] else others)
            if self._possible(method, queries)
        ]

    def _possible(self, method: Method, queries: str) -> bool:
        if method.needs == "trajectories":
            return queries == "generated" and has_trajectories(self.run)
        if method.needs == "checkpoints":
            return len(self.run.preset.training.keep_ema_at) > 1
        return method.needs != "clip" or bool(self.clip_source)

    def measurement(self, label: str) -> MeasurementConfig:
        """The preset's measurement of that label."""
        known = {config.label: config for config in self.run.preset.measurements}
        require(label in known, f"measurement={label!r}: the preset has {', '.join(known)}; give one of these")
        return known[label]

    def task(self, cell: MethodCell) -> AttributionTask:
        """The task that a cell's method is given."""
        return task_of_run(
            self.run, self.queries[cell.queries], self.measurement(cell.attributed), clip_source=self.clip_source
        )

    def scores(self, cell: MethodCell) -> CellScores:
        """The scores of one cell, computed once and kept."""
        method, preset = get_method(cell.method), self.run.preset
        identity = {
            "cell": cell, "options": method.grid, "model": model_identity(self.run), "draws": preset.gradient_draws,
            "measurement": self.measurement(cell.attributed), "curvature": preset.curvature, "sampling": preset.sampling,
            "seed": self.run.seed, "clip": self.clip_source if method.needs == "clip" else "",
        }  # fmt: skip
        folder = self.run.path("methods", json_digest(plain(cell))[:12])
        with stage(folder, identity, name="methods") as needed:
            if needed:
                task = self.task(cell)
                found, cost = task.costed(lambda: method(task, method.grid))
                write_arrays(folder / "scores.npz", scores=found.float().numpy())
                write_json(folder / "cost.json", cost._asdict())
        values = torch.from_numpy(read_arrays(folder / "scores.npz")["scores"]).double()
        return CellScores(values, Cost(**read_json(folder / "cost.json")))

    def results(self, cell: MethodCell, measured: str) -> dict[str, Any]:
        """How well a cell's scores predict one measurement: at the default, tuned on other subsets, and beside EK-FAC.

        Where another measurement than the preset's first is attributed, also how much better the method's scores of the
        first stand for what is measured (`proxy_difference`, paired).
        """
        method, truth = get_method(cell.method), self.truths[f"{cell.queries}/{measured}"]
        scores, cost = self.scores(cell)
        scores = scores * proxy_sign(self.measurement(cell.attributed), self.measurement(measured))
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

    def _at_default(self, cell: MethodCell, measured: str) -> Tensor:
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

    def bundle(self, name: str, cells: Sequence[MethodCell], root: Path | str | None = None) -> Path:
        """All results as a bundle.

        Metrics: `results`, one entry a cell and measurement, see `results`; `ceilings`. Arrays: `<set>/<measured>/lds
        [cells, D, Q]`, the LDS of each query at each value of the option, NaN beyond a method's grid.
        """
        rows = [self.results(cell, measured) for cell, measured in self.rows(cells)]
        most, arrays = max(len(method.grid) for method in METHODS), {}
        for key, truth in self.truths.items():
            queries, _, measured = key.partition("/")
            chosen = [cell for cell in cells if cell.queries == queries]
            values = np.full((len(chosen), most, len(truth.query_ids)), np.nan, dtype=np.float32)
            for index, cell in enumerate(chosen):
                found = self._per_option(cell, measured)
                values[index, : len(found)] = found
            arrays[f"{key}/lds"] = values
        configuration = {"preset": self.run.preset, "seed": self.run.seed, "cells": list(cells)}
        metrics = {"results": rows, "ceilings": {key: ceiling(truth) for key, truth in self.truths.items()}}
        return write_bundle(name, arrays, metrics, configuration, root=root)

    def _per_option(self, cell: MethodCell, measured: str) -> np.ndarray:
        """LDS of each query at each value of the option, `[D, Q]`."""
        truth = self.truths[f"{cell.queries}/{measured}"]
        sign = proxy_sign(self.measurement(cell.attributed), self.measurement(measured))
        mean = truth.measurements.mean(1).T.numpy()
        return np.stack([spearman(sign * predicted_changes(s, truth), mean) for s in self.scores(cell).scores])
