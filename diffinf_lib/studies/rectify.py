"""Rectify study: what becomes of each method's LDS when low scores are flattened, and what the images of low scores really do.

A cell is a cell of the methods study, held against the ground truth of what it attributes. Its scores are read from there, and
computed there where they are missing. A high score is one of an image without which the query would be less likely: of a
log-likelihood, which falls without it, scores and measurements are turned round. Rectifiers are judged as the options of a
method are: chosen on one half of the subsets, judged on the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from diffinf_lib.attribution.methods import get_method
from diffinf_lib.configuration import MeasurementConfig, proxy_sign
from diffinf_lib.evaluation import (
    Estimate,
    GroundTruth,
    Resampled,
    TunedLDS,
    mean_measurements,
    predicted_changes,
    sampled_lds,
    spearman,
    tuned_difference,
    tuned_lds,
)
from diffinf_lib.evaluation.rectification import (
    RECTIFIERS,
    effect_spread,
    effects_by_score,
    rectified,
    slopes_of_signs,
    standardised,
    without_detail,
)
from diffinf_lib.studies.methods import MethodCell, MethodsStudy
from diffinf_lib.studies.study import Arrays, Study

READ = ("ekfac", "kfac", "kfac-along", "cg", "trak", "gradient-dot", "gradient-cosine", "pixel")
"""Methods whose scores the book looks at."""
EDGES = (-1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Between the bins of effects by score, in standard deviations of a query's scores."""
CONTROLS = ("low averaged", "low shuffled", "high averaged", "high shuffled")
"""Scores whose differences below or above the query's mean are lost."""
SHUFFLES = 5
SPLITS, BOOTSTRAP = 4, 50
"""Of each choice; a cell makes three."""


@dataclass(eq=False)
class RectifyStudy(Study[MethodCell]):
    """The study of one run.

    Its bundle's metrics have `results`, one entry a cell, see `results`. Its arrays are, for each ground truth, with cells in
    the order of `results`: `<truth>/lds [cells, T, Q]` of each query by each of the T rectifiers at the method's default;
    `<truth>/lds-by-option [cells, D, T]`, mean over queries, NaN beyond a method's grid; `<truth>/effects [cells, B, 5]`: mean
    score of each bin, mean effect, both ends of its interval, images per query.

    Attributes:
        truths: ground truths by `<set of queries>/<measurement>`.
        methods: names.
        attributed: labels of the measurements whose gradients are taken.
        further: methods for all measurements but the first; default those of `methods` that attribute any measurement.
    """

    methods: Sequence[str] = READ
    attributed: Sequence[str] = ("loss",)
    further: Sequence[str] | None = None

    name = "rectify"

    @cached_property
    def scored(self) -> MethodsStudy:
        """The study that holds the scores."""
        return MethodsStudy(
            self.run, self.truths, methods=self.methods, attributed=self.attributed, further=self.further
        )

    def cells(self) -> list[MethodCell]:
        """Those with a ground truth of what they attribute."""
        return [cell for cell in self.scored.cells() if self._key(cell) in self.truths]

    def _key(self, cell: MethodCell) -> str:
        return f"{cell.queries}/{cell.attributed}"

    def options(self) -> dict[str, Any]:
        return super().options() | {"rectifiers": list(RECTIFIERS), "edges": EDGES, "cells": self.cells()}

    def depends(self, cell: MethodCell) -> dict[str, Any]:
        """The values of the method's option, its scores, and what is done with them."""
        done = {"rectifiers": list(RECTIFIERS), "edges": EDGES, "controls": CONTROLS, "shuffles": SHUFFLES,
                "splits": SPLITS, "bootstrap": BOOTSTRAP}  # fmt: skip
        turned = {"sign": self._sign(cell)} if self._sign(cell) < 0 else {}
        return self.scored.depends(cell) | done | turned

    def _sign(self, cell: MethodCell) -> int:
        """−1 where a higher value of what is measured means a query that is more likely."""
        return proxy_sign(self.scored.measurement(cell.attributed), MeasurementConfig("loss"))

    def computed(self, cell: MethodCell) -> Arrays:
        """Everything that a row says, as arrays of values with both ends of their intervals."""
        method, truth, sign = get_method(cell.method), self.truths[self._key(cell)], self._sign(cell)
        truth = replace(truth, measurements=sign * truth.measurements, full_measurements=None)
        scores = sign * self.scored.scores(cell).scores.numpy()
        default = scores[method.grid.index(method.default)]
        by_option = np.stack([_lds(matrix, truth) for matrix in scores])
        curve = effects_by_score(default, truth, EDGES)
        found = {
            "lds": by_option[method.grid.index(method.default)],
            "by_option": by_option.mean(-1),
            "gains": _rows(_gains(default, truth)),
            "effects": np.column_stack([curve.scores, curve.effects, curve.intervals, curve.images]),
            "slopes": _rows(slopes_of_signs(default, truth)),
            "spread": _rows(vars(effect_spread(default, truth)).values()),
            "skewness": (standardised(default) ** 3).mean(1),
        }
        return found | _choices(scores, truth, method.grid, method.default)

    def results(self, cell: MethodCell) -> dict[str, Any]:
        """One cell in words and numbers.

        Differences are to the LDS of the same scores as they are, at the same option, paired: `gains` of each rectifier, and
        `controls`; `chosen` is that of the rectifier chosen on one half of the subsets and judged on the other, and `favourite`
        was chosen most often. `option_chosen` and `both_chosen` are LDS with the option alone, and with the option and the
        rectifier, chosen so; `both_gain` is their difference. The rest is as in `slopes_of_signs` and `effect_spread`.
        """
        method, held = get_method(cell.method), self.arrays(cell)
        gains = dict(zip((*list(RECTIFIERS)[1:], *CONTROLS), _pairs(held["gains"]), strict=True))
        row: dict[str, Any] = {
            "method": method.name, "label": method.label, "queries": cell.queries, "measured": cell.attributed,
            "lds": float(held["lds"][0].mean()), "gains": {name: gains[name] for name in list(RECTIFIERS)[1:]},
            "controls": {name: gains[name] for name in CONTROLS}, "favourite": list(RECTIFIERS)[int(held["shares"].argmax())],
            "score_skewness": float(held["skewness"].mean()),
        }  # fmt: skip
        row |= dict(zip(("chosen", "option_chosen", "both_chosen", "both_gain"), _pairs(held["choices"]), strict=False))
        row |= dict(zip(("high_slope", "low_slope", "slope_ratio"), _pairs(held["slopes"]), strict=True))
        named = ("low_variance", "high_variance", "variance_ratio", "effect_skewness")
        return row | dict(zip(named, _pairs(held["spread"]), strict=True))

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        for key in self.truths:
            found = [self.arrays(cell) for cell in self.cells() if self._key(cell) == key]
            if found:
                most = max(len(one["by_option"]) for one in found)
                padded = [np.pad(one["by_option"], ((0, most - len(one["by_option"])), (0, 0)), constant_values=np.nan)
                          for one in found]  # fmt: skip
                parts = {name: [one[name] for one in found] for name in ("lds", "effects")} | {"lds-by-option": padded}
                arrays |= {f"{key}/{name}": np.stack(values).astype(np.float32) for name, values in parts.items()}
        return arrays, {"results": [self.results(cell) for cell in self.cells()], "ceilings": self.ceilings()}


def _lds(scores: Float[np.ndarray, "Q N"], truth: GroundTruth) -> Float[np.ndarray, "T Q"]:
    measured = mean_measurements(truth)
    return np.stack([spearman(predicted_changes(rectified(scores, name), truth), measured) for name in RECTIFIERS])


def _gains(scores: Float[np.ndarray, "Q N"], truth: GroundTruth) -> list[Estimate]:
    """LDS by each rectifier, then of each control, less that of the scores as they are."""
    values = standardised(scores)
    parts = [rectified(scores, name) for name in RECTIFIERS]
    for among in (values <= 0, values > 0):
        parts += [
            without_detail(values, among),
            *(without_detail(values, among, seed=seed) for seed in range(SHUFFLES)),
        ]
    found = sampled_lds(parts, truth)
    first, *others = found[: len(RECTIFIERS)]
    for start in (len(RECTIFIERS), len(RECTIFIERS) + 1 + SHUFFLES):
        others += [found[start], Resampled.average(found[start + 1 : start + 1 + SHUFFLES])]
    return [(other - first).estimate() for other in others]


def _choices(scores: Float[np.ndarray, "D Q N"], truth: GroundTruth, grid: Sequence[float], default: float) -> Arrays:
    """The rectifier, the option and both chosen on other subsets than they are judged on."""
    place, names = grid.index(default), list(RECTIFIERS)
    every = np.stack([[rectified(matrix, name) for name in names] for matrix in scores])
    alone = _tuned(every[place], truth, 0)
    estimates = [alone.difference]
    if len(grid) > 1:
        option = _tuned(every[:, 0], truth, place)
        both = _tuned(every.reshape(-1, *scores.shape[1:]), truth, place * len(names))
        estimates += [option.tuned, both.tuned, tuned_difference(both, option)]
    return {"choices": _rows(estimates), "shares": alone.chosen}


def _tuned(options: Float[np.ndarray, "D Q N"], truth: GroundTruth, default: int) -> TunedLDS:
    return tuned_lds(options, truth, options=range(len(options)), default=default, splits=SPLITS, bootstrap=BOOTSTRAP)


def _rows(estimates: Any) -> Float[np.ndarray, "n 3"]:
    return np.array([[value, *interval] for value, interval in estimates])


def _pairs(rows: Float[np.ndarray, "n 3"]) -> list[Estimate]:
    return [Estimate(value, (low, high)) for value, low, high in rows.tolist()]
