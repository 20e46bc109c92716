"""Ladder: from the paper's recipe to the best scores one training run gives, a change at a time.

Each rung says which draws gradients are averaged over, from which checkpoints they are taken, and how the curvature is
inverted. What a rung needs at one checkpoint is a cell, a stage of its own; rungs that average checkpoints read several.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
from diffinf_lib.attribution.influence import QUERY_STAGE
from diffinf_lib.attribution.methods import conjugate_gradients_at, influence_at
from diffinf_lib.attribution.task import Checkpoint, Cost
from diffinf_lib.attribution.trajectory import average_scores, split_draws
from diffinf_lib.diffusion import DrawConfig
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, ceiling, lds, paired_difference
from diffinf_lib.loading import load_model
from diffinf_lib.models import build_model
from diffinf_lib.stages.model import measured_queries
from diffinf_lib.stages.run import Run
from diffinf_lib.stages.tasks import checkpoint, task_of_run
from diffinf_lib.training import train

Inverse = Literal["ekfac", "kfac", "cg"]
ITERATIONS = 4

UNIFORM = DrawConfig(250, timesteps="uniform", noise="independent")
ANTITHETIC = DrawConfig(250)
SHARED = DrawConfig(64, timesteps="signal", shared=True)


@dataclass(frozen=True)
class Rung:
    """One recipe.

    Attributes:
        change: what it changes against the rung it is compared with.
        after: name of that rung; empty for the first.
        draws: of training gradients, shared out over the checkpoints.
        query_draws: of query gradients; None for the measurement's own.
        checkpoints: where in the run, as shares of the full training's steps.
        inverse: EK-FAC, K-FAC, or conjugate gradients on the exact GGN that start from EK-FAC.
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
class _Cell:
    """What a rung needs at one checkpoint of one model."""

    inverse: Inverse
    step: int
    draws: DrawConfig
    query_draws: DrawConfig | None
    queries: str
    model_seed: int


class LadderStudy:
    """The ladder of one run, for models of several training seeds.

    Args:
        truths: ground truths of the preset's measurement by set of queries, from `load_ground_truth`.
    """

    def __init__(self, run: Run, truths: Mapping[str, GroundTruth]):
        self.run, self.truths = run, dict(truths)
        self.queries = measured_queries(run)

    def scores(self, rung: Rung, queries: str, model_seed: int = 0) -> tuple[Tensor, Cost]:
        """The scores of one rung `[Q, N]`, and what they cost."""
        total = self.run.preset.training.steps
        cells = [
            _Cell(rung.inverse, round(share * total), rung.draws_at_one(), rung.query_draws, queries, model_seed)
            for share in rung.checkpoints
        ]
        found = [self._cell(cell, len(cells) if rung.split else 1) for cell in cells]
        scores = found[0][0] if len(found) == 1 else average_scores([values for values, _ in found])
        return scores, Cost(sum(cost.draws for _, cost in found), sum(cost.seconds for _, cost in found))

    def _cell(self, cell: _Cell, parts: int) -> tuple[Tensor, Cost]:
        identity = {"cell": cell, "parts": parts, "preset": self.run.preset.name, "curvature": self.run.preset.curvature,
                    "training": self.run.preset.training, "seed": self.run.seed}  # fmt: skip
        folder = self.run.path("ladder", json_digest(plain(identity))[:12])
        with stage(folder, identity, name="ladder") as needed:
            if needed:
                scores, cost = self._computed(cell, parts)
                write_arrays(folder / "scores.npz", scores=scores.float().numpy())
                write_json(folder / "cost.json", cost._asdict())
        return torch.from_numpy(read_arrays(folder / "scores.npz")["scores"]).double(), Cost(
            **read_json(folder / "cost.json")
        )

    def _computed(self, cell: _Cell, parts: int) -> tuple[Tensor, Cost]:
        at = self._checkpoint(cell, parts)
        task = task_of_run(self.run, self.queries[cell.queries], at=at)
        if cell.query_draws is not None:
            task.query_stage = QUERY_STAGE
            task.measurement = replace(task.measurement, draws=cell.query_draws)

        def score() -> Tensor:
            if cell.inverse == "cg":
                return conjugate_gradients_at(task, at, [ITERATIONS], cell.draws)
            return influence_at(task, at, [self.run.preset.damping], cell.inverse, cell.draws)

        scores, cost = task.costed(score)
        return scores[0], cost

    def _checkpoint(self, cell: _Cell, parts: int) -> Checkpoint:
        """A checkpoint's averaged weights with a curvature of its share of the draws."""
        run, config = self.run, self.run.preset.curvature
        folder = self._training(cell.model_seed)
        weights = folder / "ema" / f"step-{cell.step:06d}"
        require(
            weights.exists(),
            f"checkpoint={cell.step}: the run keeps {run.preset.training.keep_ema_at}; keep this step too",
        )
        config = replace(config, draws=split_draws(config.draws, parts))
        name = f"seed-{cell.model_seed}-step-{cell.step:06d}"
        model, label = load_model(weights, device=run.device), f"{config.draws.count}-draws"
        return checkpoint(run, model, name, config, step=cell.step, curvature=label)

    def _training(self, model_seed: int) -> Path:
        """The folder of a training with checkpoints; that of the run, or of another seed on the same images."""
        run, preset = self.run, self.run.preset
        folder = run.path("model") if model_seed == run.seed else run.path("ladder-models", f"r{model_seed}")
        train(
            build_model(preset.unet, preset.process, seed=model_seed), run.data.train, preset.training,
            seed=model_seed, out=folder, device=run.device, progress=run.progress,
        )  # fmt: skip
        return folder

    def bundle(
        self,
        name: str,
        rungs: Sequence[Rung] = LADDER,
        model_seeds: Sequence[int] = (0, 1),
        root: Path | str | None = None,
    ) -> Path:
        """All rungs as a bundle: LDS and paired difference to the rung before, for each model; the cost of each.

        Arrays: `<set>/lds [rungs, seeds, Q]`.
        """
        by_name, rows, arrays = {rung.name: rung for rung in rungs}, [], {}
        for queries, truth in self.truths.items():
            per_query = [
                [
                    torch.from_numpy(lds(self.scores(rung, queries, s)[0], truth, bootstrap=2).per_query)
                    for s in model_seeds
                ]
                for rung in rungs
            ]
            arrays[f"{queries}/lds"] = torch.stack([torch.stack(row) for row in per_query]).float().numpy()
            rows += [self._row(rung, by_name, queries, seed) for rung in rungs for seed in model_seeds]
        configuration = {"preset": self.run.preset, "rungs": list(rungs), "model_seeds": list(model_seeds)}
        metrics = {"results": rows, "ceilings": {q: ceiling(truth) for q, truth in self.truths.items()}}
        return write_bundle(name, arrays, metrics, configuration, root=root)

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
