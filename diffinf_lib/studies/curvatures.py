"""Curvature study: which matrix influence divides by, and how well its scores then predict retraining (the paper's App. G).

A fit is one choice of partition (GGN^model, or GGN^loss per draw or per example) and of weight sharing (expand or reduce);
from it EK-FAC and K-FAC are read at every damping. A cell is a fit against one set of queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.attribution.methods import DAMPINGS, influence_at
from diffinf_lib.configuration import Approximation, CurvatureConfig, Partition, Sharing, check_dampings
from diffinf_lib.evaluation import (
    lds,
    mean_measurements,
    paired_difference,
    predicted_changes,
    spearman,
    tuned_lds,
)
from diffinf_lib.evaluation.lds import check_tunable
from diffinf_lib.runs import checkpoint, task_of_run
from diffinf_lib.runs.attribution import fitted
from diffinf_lib.studies.study import Arrays, Study

APPROXIMATIONS: tuple[Approximation, ...] = ("ekfac", "kfac")


@dataclass(frozen=True)
class CurvatureChoice:
    """One fit of the study."""

    partition: Partition
    sharing: Sharing

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.partition}-{self.sharing}".replace("_", "-")

    def config(self, base: CurvatureConfig) -> CurvatureConfig:
        """The preset's curvature with this choice; GGN^loss per example takes the same draws in both passes."""
        factors = None if self.partition == "loss_per_example" else base.factor_draws
        return replace(base, partition=self.partition, sharing=self.sharing, factor_draws=factors)


CHOICES = tuple(
    CurvatureChoice(partition, sharing)
    for partition in ("model", "loss_per_draw", "loss_per_example")
    for sharing in ("expand", "reduce")
)
"""The paper's four (GGN^model and GGN^loss per draw, expand and reduce), and GGN^loss per example beside them."""


@dataclass(frozen=True)
class CurvatureCell:
    """One fit against one set of queries."""

    choice: CurvatureChoice
    queries: str


@dataclass(eq=False)
class CurvatureStudy(Study[CurvatureCell]):
    """The study of one run against its ground truths.

    Its bundle's arrays are `dampings [D]` and `<set>/lds [choices, 2, D, Q]` with EK-FAC before K-FAC; its metrics hold for
    each choice and approximation the LDS at the preset's damping, tuned on other subsets, and the paired difference to the
    first choice.

    Attributes:
        dampings: those of the methods' table, and the preset's own.

    Raises:
        ConfigurationError: one has too few subsets to tune options on one half and judge them on the other.
    """

    choices: Sequence[CurvatureChoice] = CHOICES

    name = "curvatures"
    holds_scores = True

    def __post_init__(self) -> None:
        check_tunable(self.truths)
        super().__post_init__()
        self.dampings = sorted({*DAMPINGS, *check_dampings(self.run.preset.damping)})

    def options(self) -> dict[str, Any]:
        return {"choices": self.choices, "dampings": self.dampings}

    def cells(self) -> list[CurvatureCell]:
        return [CurvatureCell(choice, queries) for choice in self.choices for queries in self.truths]

    def label(self, cell: CurvatureCell) -> str:
        return f"{cell.choice.name}-{cell.queries}"

    def depends(self, cell: CurvatureCell) -> dict[str, Any]:
        return {"curvature": self._config(cell.choice), "dampings": self.dampings}

    def _config(self, choice: CurvatureChoice) -> CurvatureConfig:
        return choice.config(self.run.preset.curvature)

    def computed(self, cell: CurvatureCell) -> Arrays:
        at = checkpoint(self.run, config=self._config(cell.choice))
        task = task_of_run(self.run, self.queries[cell.queries], at=at)
        found = [influence_at(task, at, self.dampings, kind, task.draws) for kind in APPROXIMATIONS]
        return {"scores": torch.stack(found).float().numpy()}

    def scores(self, choice: CurvatureChoice, queries: str) -> Tensor:
        """Scores `[2, D, Q, N]`: EK-FAC and K-FAC at every damping; computed once and kept."""
        return torch.from_numpy(self.arrays(CurvatureCell(choice, queries))["scores"]).double()

    def fit_seconds(self, choice: CurvatureChoice) -> float:
        """What the fit took."""
        return fitted(self.run, self.run.model.model, self._config(choice))[1].seconds

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """The LDS of every choice, approximation and damping."""
        default, rows, arrays = self.dampings.index(self.run.preset.damping), [], {"dampings": np.array(self.dampings)}
        for queries, truth in self.truths.items():
            found = {choice: self.scores(choice, queries) for choice in self.choices}
            mean = mean_measurements(truth)
            arrays[f"{queries}/lds"] = np.stack([
                [[spearman(predicted_changes(s, truth), mean) for s in by_damping] for by_damping in scores]
                for scores in found.values()
            ]).astype(np.float32)  # fmt: skip
            reference = found[self.choices[0]][0, default]
            for choice, scores in found.items():
                for approximation, by_damping in zip(APPROXIMATIONS, scores, strict=True):
                    rows.append(self._row(choice, approximation, by_damping, queries, reference))
        fits = {choice.name: self.fit_seconds(choice) for choice in self.choices}
        return arrays, {"results": rows, "fit_seconds": fits, "ceilings": self.ceilings()}

    def _row(
        self, choice: CurvatureChoice, approximation: Approximation, scores: Tensor, queries: str, reference: Tensor
    ) -> dict[str, Any]:
        truth, damping = self.truths[queries], self.run.preset.damping
        at_default = scores[self.dampings.index(damping)]
        result, tuned = lds(at_default, truth), tuned_lds(scores, truth, options=self.dampings, default=damping)
        row: dict[str, Any] = {
            "partition": choice.partition, "sharing": choice.sharing, "approximation": approximation, "queries": queries,
            "lds": result.mean, "interval": result.interval, "tuned": tuned.tuned.value,
            "tuned_interval": tuned.tuned.interval, "favourite": tuned.favourite,
        }  # fmt: skip
        if not torch.equal(at_default, reference):
            difference, interval = paired_difference(at_default, reference, truth)
            row |= {"difference": difference, "difference_interval": interval}
        return row
