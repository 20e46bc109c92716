"""Ladder: from the paper's recipe to the best scores one training run gives, a change at a time.

Each rung says which draws gradients are averaged over, from which checkpoints they are taken, and how the curvature is
inverted. What a rung needs at one checkpoint is a cell; rungs that average checkpoints read several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.checkpoints import average_scores, split_draws
from diffinf_lib.attribution.methods import conjugate_gradients_at, fixed_settings, influence_at
from diffinf_lib.attribution.task import Cost
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.errors import require
from diffinf_lib.evaluation import lds, paired_difference
from diffinf_lib.runs import task_of_run
from diffinf_lib.runs.tasks import checkpoint_at, kept_steps
from diffinf_lib.shapes import Scores
from diffinf_lib.studies.methods import as_arrays, from_arrays
from diffinf_lib.studies.study import Arrays, Study

Inverse = Literal["ekfac", "kfac", "cg"]
ITERATIONS = 4

UNIFORM = DrawConfig(250, timestep_rule="uniform", noise_rule="independent")
ANTITHETIC = DrawConfig(250)
SHARED = DrawConfig(64, timestep_rule="signal", shared=True)


@dataclass(frozen=True)
class Rung:
    """One recipe.

    Attributes:
        change: what it changes against the rung it is compared with.
        after: name of that rung; empty for the first.
        draws: of training gradients, shared out over the checkpoints.
        query_draws: of query gradients; None for the measurement's own.
        checkpoints: where in the run, as shares of the full training's steps.
        inverse: EK-FAC, K-FAC, or conjugate gradients on the exact GGN, preconditioned by EK-FAC.
        split: share the draws out over the checkpoints, so that several cost what one does.
    """

    name: str
    change: str
    after: str = ""
    draws: DrawConfig = SHARED
    query_draws: DrawConfig | None = None
    checkpoints: tuple[float, ...] = (1.0,)
    inverse: Inverse = "ekfac"
    split: bool = True

    def draws_at_one(self) -> DrawConfig:
        """The draws of a training gradient at each checkpoint."""
        return split_draws(self.draws, len(self.checkpoints)) if self.split else self.draws


LADDER = (
    Rung("paper", "uniform draws, final weights, EK-FAC", draws=UNIFORM, query_draws=UNIFORM),
    Rung("antithetic", "stratified, antithetic draws", "paper", draws=ANTITHETIC, query_draws=ANTITHETIC),
    Rung("own draws", "queries take the measurement's draws", "antithetic", draws=ANTITHETIC),
    Rung("shared signal", "64 shared draws by signal for the 250", "own draws"),
    Rung("K-FAC", "K-FAC's eigenvalues", "shared signal", inverse="kfac"),
    Rung("along, EK-FAC", "mean of five checkpoints, the same draws in all", "shared signal",
         checkpoints=(0.2, 0.4, 0.6, 0.8, 1.0)),
    Rung("along", "mean of five checkpoints, the same draws in all", "K-FAC", checkpoints=(0.2, 0.4, 0.6, 0.8, 1.0),
         inverse="kfac"),
    Rung("half-way", "the checkpoint with the retrainings' number of steps", "K-FAC", checkpoints=(0.5,), inverse="kfac"),
    Rung("conjugate gradients", "4 steps of conjugate gradients on the exact GGN", "shared signal", inverse="cg"),
    Rung("conjugate gradients, half-way", "the checkpoint with the retrainings' number of steps", "conjugate gradients",
         checkpoints=(0.5,), inverse="cg"),
    Rung("conjugate gradients, along", "mean of both checkpoints, each at its full price", "conjugate gradients, half-way",
         checkpoints=(0.5, 1.0), inverse="cg", split=False),
)  # fmt: skip
"""From the paper's recipe upwards."""


@dataclass(frozen=True)
class RungCell:
    """What a rung needs at one checkpoint of one model.

    Attributes:
        parts: over how many checkpoints the curvature's draws are shared out.
    """

    inverse: Inverse
    step: int
    draws: DrawConfig
    query_draws: DrawConfig | None
    queries: str
    model_seed: int
    parts: int


@dataclass(eq=False)
class LadderStudy(Study[RungCell]):
    """The ladder of one run, for models of several training seeds.

    Its bundle holds for each model the LDS `<set>/lds [rungs, seeds, Q]` and paired difference to the rung before, and the
    cost of each.

    Attributes:
        model_seeds: trainings that are attributed; the run's own seed is the run's own model.

    Raises:
        ConfigurationError: a rung takes a checkpoint that the preset's training does not keep.
    """

    rungs: Sequence[Rung] = LADDER
    model_seeds: Sequence[int] = (0, 1)

    name = "ladder"
    holds_scores = True

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = kept_steps(self.run)
        for cell in self.cells():
            require(cell.step in kept, f"checkpoint={cell.step}: the run keeps {kept}; keep this step too")

    def cells(self) -> list[RungCell]:
        """What all rungs need, once each, model by model."""
        each = ((rung, queries, seed) for seed in self.model_seeds for rung in self.rungs for queries in self.truths)
        return list(dict.fromkeys(cell for one in each for cell in self._cells(*one)))

    def _cells(self, rung: Rung, queries: str, model_seed: int) -> list[RungCell]:
        total, parts = self.run.preset.training.steps, len(rung.checkpoints) if rung.split else 1
        return [
            RungCell(
                rung.inverse, round(share * total), rung.draws_at_one(), rung.query_draws, queries, model_seed, parts
            )
            for share in rung.checkpoints
        ]

    def label(self, cell: RungCell) -> str:
        return f"seed-{cell.model_seed}-step-{cell.step}-{cell.inverse}-{cell.queries}"

    def depends(self, cell: RungCell) -> dict[str, Any]:
        return {"settings": fixed_settings() | {"iterations": ITERATIONS}}

    def computed(self, cell: RungCell) -> Arrays:
        at = checkpoint_at(self.run, cell.step, parts=cell.parts, model_seed=cell.model_seed)
        task = task_of_run(self.run, self.queries[cell.queries], at=at)
        task.query_draws = cell.query_draws

        def score() -> Float[Tensor, "1 Q N"]:
            if cell.inverse == "cg":
                return conjugate_gradients_at(task, at, [ITERATIONS], cell.draws)
            return influence_at(task, at, [self.run.preset.damping], cell.inverse, cell.draws)

        scores, _ = task.costed(score)
        return as_arrays(scores[0], task.bill)

    def scores(self, rung: Rung, queries: str, model_seed: int = 0) -> tuple[Scores, Cost]:
        """The scores of one rung `[Q, N]`, and what they cost."""
        found = [from_arrays(self.arrays(cell)) for cell in self._cells(rung, queries, model_seed)]
        costs = {str(place): part.cost for place, part in enumerate(found)}
        scores = found[0].scores if len(found) == 1 else average_scores([part.scores for part in found])
        return scores, Cost.of(costs)

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """All rungs, each beside the one it changes."""
        by_name, rows, arrays = {rung.name: rung for rung in self.rungs}, [], {}
        for queries, truth in self.truths.items():
            per_query = [
                [
                    torch.from_numpy(lds(self.scores(rung, queries, s)[0], truth, bootstrap=2).per_query)
                    for s in self.model_seeds
                ]
                for rung in self.rungs
            ]
            arrays[f"{queries}/lds"] = torch.stack([torch.stack(row) for row in per_query]).float().numpy()
            rows += [self._row(rung, by_name, queries, seed) for rung in self.rungs for seed in self.model_seeds]
        return arrays, {"results": rows, "ceilings": self.ceilings()}

    def _row(self, rung: Rung, by_name: Mapping[str, Rung], queries: str, seed: int) -> dict[str, Any]:
        truth = self.truths[queries]
        scores, cost = self.scores(rung, queries, seed)
        result = lds(scores, truth)
        row: dict[str, Any] = {
            "rung": rung.name, "change": rung.change, "after": rung.after, "queries": queries, "model_seed": seed,
            "lds": result.mean, "interval": result.interval, "draws": cost.draws, "seconds": round(cost.seconds, 1),
        }  # fmt: skip
        if rung.after in by_name:
            difference, interval = paired_difference(scores, self.scores(by_name[rung.after], queries, seed)[0], truth)
            row |= {"difference": difference, "difference_interval": interval}
        return row
