"""Draws study: the LDS that a rule for the draws of training gradients reaches, against the number of draws.

A cell is a rule, a number of draws and a seed. Query gradients are taken once, over the measurement's own draws, and the
curvature is the run's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import KeptQueries
from diffinf_lib.configuration import DrawConfig, Expectation
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import require
from diffinf_lib.evaluation import mean_measurements, predicted_changes, spearman
from diffinf_lib.gradients import GradientSet, gradients_of
from diffinf_lib.runs import curvature_of_run, query_gradients
from diffinf_lib.studies.study import Arrays, Study

RULES: dict[str, dict[str, Any]] = {
    "uniform": {"timestep_rule": "uniform", "noise_rule": "independent"},
    "stratified": {"timestep_rule": "stratified", "noise_rule": "independent"},
    "stratified, antithetic": {},
    "signal": {"timestep_rule": "signal", "noise_rule": "independent"},
    "signal, antithetic": {"timestep_rule": "signal"},
    "signal, antithetic, shared": {"timestep_rule": "signal", "shared": True},
}
"""What `DrawConfig` each rule of the study is, but for the number of draws."""

COUNTS = (8, 16, 32, 64, 128, 250, 500, 1000)


@dataclass(frozen=True)
class DrawsCell:
    """One point of the study."""

    rule: str
    count: int
    seed: int

    @property
    def draws(self) -> DrawConfig:
        """The draws of a training gradient."""
        return DrawConfig(self.count, **RULES[self.rule])


@dataclass(eq=False)
class DrawsStudy(Study[DrawsCell]):
    """The study of one run against its ground truths.

    Its bundle holds the LDS `<set>/lds [rules, counts, seeds, Q]` of each query, NaN where a seed was not run.

    Attributes:
        counts: numbers of draws.
        seeds: how many seeds each number of draws gets; one each unless given.
    """

    counts: Sequence[int] = COUNTS
    seeds: Mapping[int, int] = field(default_factory=dict)
    rules: Sequence[str] = tuple(RULES)

    name = "draws"
    takes_queries_of_truths = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seeds = self.seeds or dict.fromkeys(self.counts, 1)
        for rule in self.rules:
            require(rule in RULES, f"rule={rule!r}: give one of {', '.join(RULES)}")

    def options(self) -> dict[str, Any]:
        return super().options() | {"rules": {rule: RULES[rule] for rule in self.rules}}

    def cells(self) -> list[DrawsCell]:
        """Seeds outermost: a study of fewer seeds is whole early."""
        return [
            DrawsCell(rule, count, seed)
            for seed in range(max(self.seeds.values()))
            for count in self.counts
            if seed < self.seeds[count]
            for rule in self.rules
        ]

    def depends(self, cell: DrawsCell) -> dict[str, Any]:
        return {"draws": cell.draws}

    @cached_property
    def query_gradients(self) -> dict[str, GradientSet]:
        """The gradients of each set of queries."""
        return {name: query_gradients(self.run, images).held() for name, images in self.queries.items()}

    def scores(self, cell: DrawsCell) -> dict[str, Float[Tensor, "_Q N"]]:
        """Scores of every query set, `[Q, N]`, from the training gradients of one cell."""
        run, preset, images = self.run, self.run.preset, self.run.data.train
        curvature = curvature_of_run(run)
        train = gradients_of(run.model.model, curvature, images, Expectation(cell.draws, seed=cell.seed))
        inverses = Inverses([preset.damping])
        kept = {
            name: KeptQueries(queries, train, curvature, inverses) for name, queries in self.query_gradients.items()
        }
        columns = [{name: part.scores(shard)[0] for name, part in kept.items()} for _, shard in train.shards()]
        return {name: torch.cat([column[name] for column in columns], dim=1) / len(images) for name in kept}

    def computed(self, cell: DrawsCell) -> Arrays:
        """The LDS of each query."""
        scores = self.scores(cell)
        return {
            name: spearman(predicted_changes(scores[name], truth), mean_measurements(truth))
            for name, truth in self.truths.items()
        }

    def lds(self, cell: DrawsCell) -> Arrays:
        """The LDS of each query of each set, `[Q]`, with the training gradients of one cell; computed once and kept."""
        return self.arrays(cell)

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """All cells, an axis each for rules, numbers and seeds."""
        shape, arrays = (len(self.rules), len(self.counts), max(self.seeds.values())), {}
        for queries, truth in self.truths.items():
            values = np.full((*shape, len(truth.query_ids)), np.nan, dtype=np.float32)
            for cell in self.cells():
                place = self.rules.index(cell.rule), self.counts.index(cell.count), cell.seed
                values[place] = self.lds(cell)[queries]
            arrays[f"{queries}/lds"] = values
        return arrays, {"counts": self.counts, "rules": self.rules, "ceiling": self.ceilings()}
