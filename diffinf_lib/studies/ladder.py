"""Ladder: from the paper's recipe to the best scores, a change at a time where it can be.

Each rung says which draws gradients are averaged over, from which checkpoints they are taken, how the curvature is inverted,
and whether low scores are flattened. What a rung needs at one checkpoint is a cell; rungs that average checkpoints read
several, and rungs that differ in flattening alone share theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.checkpoints import average_scores, split_draws
from diffinf_lib.attribution.methods import (
    SAMPLED_WEIGHT,
    conjugate_gradients_at,
    fixed_settings,
    influence_at,
    sampled_ggn_at,
)
from diffinf_lib.attribution.task import Cost
from diffinf_lib.configuration import CurvatureConfig, DrawConfig
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, lds, paired_difference
from diffinf_lib.evaluation.rectification import RECTIFIERS, rectified
from diffinf_lib.evaluation.statistics import split_half_reliability
from diffinf_lib.runs import task_of_run
from diffinf_lib.runs.tasks import checkpoint_at, kept_steps
from diffinf_lib.shapes import Scores
from diffinf_lib.studies.methods import as_arrays, from_arrays
from diffinf_lib.studies.study import Arrays, Study

Inverse = Literal["ekfac", "kfac", "cg", "sampled"]
ITERATIONS = 4
PROBES = 16

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
        inverse: EK-FAC, K-FAC, conjugate gradients on the exact GGN preconditioned by EK-FAC, or on a sampled one
            preconditioned by K-FAC.
        split: share the draws out over the checkpoints, so that several cost what one does.
        curvature: what is fitted, and over which draws; None for the preset's.
        iterations: steps of conjugate gradients.
        probes: sampled gradients of each training image, of the sampled GGN.
        trainings: models of several seeds to average over; each beyond the first is charged its training up to the last
            checkpoint.
        rectifier: what the scores are passed through at last, one of `RECTIFIERS`; costs no passes.

    Raises:
        ConfigurationError: no rectifier of that name.
    """

    name: str
    change: str
    after: str = ""
    draws: DrawConfig = SHARED
    query_draws: DrawConfig | None = None
    checkpoints: tuple[float, ...] = (1.0,)
    inverse: Inverse = "ekfac"
    split: bool = True
    curvature: CurvatureConfig | None = None
    iterations: int = ITERATIONS
    probes: int = PROBES
    trainings: int = 1
    rectifier: str = "none"

    def __post_init__(self) -> None:
        require(
            self.rectifier in RECTIFIERS,
            f"{self.name}: rectifier={self.rectifier!r}; give one of {', '.join(RECTIFIERS)}",
        )

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

KFAC = CurvatureConfig(approximation="kfac", draws=DrawConfig(30))
HALF_WAY: dict[str, Any] = {"checkpoints": (0.5,), "curvature": KFAC}


def _signal(count: int) -> DrawConfig:
    return replace(SHARED, count=count)


def _flattened(rectifier: str, *rungs: Rung) -> tuple[Rung, ...]:
    """Each rung, and after it the same with its low scores flattened."""

    def flat(rung: Rung) -> Rung:
        change = f"low scores flattened, {rectifier}"
        return replace(rung, name=f"{rung.name}, flat", change=change, after=rung.name, rectifier=rectifier)

    return tuple(one for rung in rungs for one in (rung, flat(rung)))


BUDGET = (
    *_flattened(
        "power 1.3",
        Rung("K-FAC, 8 draws", "8 draws, queries 16, at the half-way checkpoint", draws=_signal(8), query_draws=_signal(16),
             inverse="kfac", **HALF_WAY | {"curvature": replace(KFAC, draws=DrawConfig(12))}),
        Rung("K-FAC, 16 draws", "16 draws", "K-FAC, 8 draws", draws=_signal(16), query_draws=_signal(16), inverse="kfac",
             **HALF_WAY),
    ),
    *_flattened(
        "slope 0.3",
        Rung("sampled, 16 draws", "8 sampled gradients an image, queries 32 draws", "K-FAC, 16 draws", draws=_signal(16),
             query_draws=_signal(32), inverse="sampled", probes=8, **HALF_WAY),
        Rung("sampled, 64 draws", "64 draws, the measurement's own for queries, 32 sampled gradients", "sampled, 16 draws",
             inverse="sampled", probes=32, **HALF_WAY),
        Rung("sampled, two models", "mean of two trainings, the second one paid for", "sampled, 64 draws", inverse="sampled",
             probes=32, trainings=2, **HALF_WAY),
    ),
)  # fmt: skip
"""The best scores for few passes; each recipe as it is, and with its low scores flattened."""

ONE_TRAINING = tuple(rung for rung in BUDGET if rung.trainings == 1)
"""Those that need no second model."""

LADDERS: dict[str, tuple[Rung, ...]] = {"ladder": LADDER, "budget": BUDGET, "budget of one training": ONE_TRAINING}


@dataclass(frozen=True)
class RungCell:
    """What a rung needs at one checkpoint of one model.

    Attributes:
        parts: over how many checkpoints the curvature's draws are shared out.
        curvature: None for the preset's.
        iterations, probes: of conjugate gradients and of the sampled GGN; 0 for an inverse without.
    """

    inverse: Inverse
    step: int
    draws: DrawConfig
    query_draws: DrawConfig | None
    queries: str
    model_seed: int
    parts: int
    curvature: CurvatureConfig | None
    iterations: int
    probes: int


@dataclass(eq=False)
class LadderStudy(Study[RungCell]):
    """The ladder of one run, for models of several training seeds.

    Its bundle holds for each model the LDS `<set>/lds [rungs, seeds, Q]` and paired difference to the rung before, and the
    cost of each; `ceilings`, and `most`, the root of the measurements' reliability, which bounds any LDS.

    Attributes:
        model_seeds: trainings that are attributed; the run's own seed is the run's own model. A rung of several trainings goes
            on with the next of them, and from the last to the first.

    Raises:
        ConfigurationError: a rung takes a checkpoint that the preset's training does not keep, or more trainings than there
            are seeds.
    """

    rungs: Sequence[Rung] = LADDER
    model_seeds: Sequence[int] = (0, 1)

    name = "ladder"
    holds_scores = True

    def __post_init__(self) -> None:
        super().__post_init__()
        kept, seeds = kept_steps(self.run), len(self.model_seeds)
        for rung in self.rungs:
            require(0 < rung.trainings <= seeds, f"{rung.name}: trainings={rung.trainings}: there are {seeds} model_seeds; "
                    "give more of these, or average fewer")  # fmt: skip
        for cell in self.cells():
            require(cell.step in kept, f"checkpoint={cell.step}: the run keeps {kept}; keep this step too")

    def cells(self) -> list[RungCell]:
        """What all rungs need, once each, model by model."""
        each = [(rung, queries, seed) for seed in self.model_seeds for rung in self.rungs for queries in self.truths]
        return list(dict.fromkeys(cell for one in each for cell in self._cells(*one)))

    def _cells(self, rung: Rung, queries: str, model_seed: int) -> list[RungCell]:
        total, parts = self.run.preset.training.steps, len(rung.checkpoints) if rung.split else 1
        first = list(self.model_seeds).index(model_seed)
        seeds = [*self.model_seeds[first:], *self.model_seeds[:first]][: rung.trainings]
        return [
            RungCell(
                rung.inverse, round(share * total), rung.draws_at_one(), rung.query_draws, queries, seed, parts,
                rung.curvature, rung.iterations if rung.inverse in ("cg", "sampled") else 0,
                rung.probes if rung.inverse == "sampled" else 0,
            )
            for seed in seeds for share in rung.checkpoints
        ]  # fmt: skip

    def label(self, cell: RungCell) -> str:
        parts = [cell.inverse, *(str(number) for number in (cell.iterations, cell.probes) if number)]
        return f"seed-{cell.model_seed}-step-{cell.step}-{'-'.join(parts)}-{cell.draws.count}-draws-{cell.queries}"

    def depends(self, cell: RungCell) -> dict[str, Any]:
        return {"settings": fixed_settings() | {"sampled_weight": SAMPLED_WEIGHT}}

    def computed(self, cell: RungCell) -> Arrays:
        at = checkpoint_at(self.run, cell.step, cell.curvature, parts=cell.parts, model_seed=cell.model_seed)
        task = task_of_run(self.run, self.queries[cell.queries], at=at)
        task.query_draws = cell.query_draws

        def score() -> Float[Tensor, "1 Q N"]:
            if cell.inverse == "sampled":
                return sampled_ggn_at(task, at, [cell.iterations], "kfac", cell.draws, cell.probes)
            if cell.inverse == "cg":
                return conjugate_gradients_at(task, at, [cell.iterations], cell.draws)
            return influence_at(task, at, [self.run.preset.damping], cell.inverse, cell.draws)

        scores, _ = task.costed(score)
        return as_arrays(scores[0], task.bill)

    def scores(self, rung: Rung, queries: str, model_seed: int = 0) -> tuple[Scores, Cost]:
        """The scores of one rung `[Q, N]`, standardised if they pass through a rectifier, and what they cost."""
        found = [from_arrays(self.arrays(cell)) for cell in self._cells(rung, queries, model_seed)]
        costs = {str(place): part.cost for place, part in enumerate(found)}
        training = self.run.preset.training
        passes = round(max(rung.checkpoints) * training.steps) * training.batch_size
        costs["trainings"] = Cost((rung.trainings - 1) * passes, 0.0)
        scores = found[0].scores if len(found) == 1 else average_scores([part.scores for part in found])
        if rung.rectifier != "none":
            scores = torch.from_numpy(rectified(scores, rung.rectifier))
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
        most = {name: _most(truth) for name, truth in self.truths.items()}
        return arrays, {"results": rows, "ceilings": self.ceilings(), "most": most}

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


def _most(truth: GroundTruth) -> float:
    """The LDS that scores without any error would reach; NaN with one seed."""
    several = truth.measurements.shape[1] > 1
    return max(split_half_reliability(truth.measurements.numpy()), 0.0) ** 0.5 if several else float("nan")
