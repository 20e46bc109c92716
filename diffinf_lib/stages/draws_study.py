"""Draws study: the LDS that a rule for the draws of training gradients reaches, against the number of draws.

Each cell (rule, number of draws, seed) is a stage of its own, so a killed study goes on with the next cell. Query gradients
are taken once, over the measurement's own draws, and the curvature is the run's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_arrays, stage, write_arrays, write_bundle
from diffinf_lib.attribution import scores_from_gradients
from diffinf_lib.attribution.influence import together
from diffinf_lib.diffusion import DrawConfig
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, ceiling, predicted_changes, spearman
from diffinf_lib.gradients import GradientConfig, LayerGradients, gradient_shards
from diffinf_lib.stages.attribution import curvature_of_run, query_gradients
from diffinf_lib.stages.model import full_model, model_identity
from diffinf_lib.stages.run import Run

RULES: dict[str, dict[str, Any]] = {
    "uniform": {"timesteps": "uniform", "noise": "independent"},
    "stratified": {"timesteps": "stratified", "noise": "independent"},
    "stratified, antithetic": {},
    "signal": {"timesteps": "signal", "noise": "independent"},
    "signal, antithetic": {"timesteps": "signal"},
    "signal, antithetic, shared": {"timesteps": "signal", "shared": True},
}
"""What `DrawConfig` each rule of the study is, but for the number of draws."""


@dataclass(frozen=True)
class DrawsCell:
    """One point of the study."""

    rule: str
    count: int
    seed: int

    @property
    def draws(self) -> DrawConfig:
        """The draws of a training gradient."""
        require(self.rule in RULES, f"rule={self.rule!r}: give one of {', '.join(RULES)}")
        return DrawConfig(self.count, **RULES[self.rule])


class DrawsStudy:
    """The study of one run against its ground truths.

    Args:
        truths: ground truths by query set, from `load_ground_truth`.
    """

    def __init__(self, run: Run, truths: Mapping[str, GroundTruth]):
        self.run, self.truths = run, truths
        self.model, self.curvature = full_model(run).model, curvature_of_run(run)

    @cached_property
    def query_gradients(self) -> dict[str, LayerGradients]:
        """The gradients of each set of queries."""
        return {name: query_gradients(self.run, truth.queries) for name, truth in self.truths.items()}

    def scores(self, cell: DrawsCell) -> dict[str, Tensor]:
        """Scores of every query set, `[Q, N]`, from the training gradients of one cell."""
        preset, images = self.run.preset, self.run.data.train
        config = GradientConfig(cell.draws, seed=cell.seed)
        shards = gradient_shards(self.model, self.curvature, images, config)
        scores = {name: torch.empty(len(truth.query_ids), len(images)).double() for name, truth in self.truths.items()}
        for rows, gradients in together(shards):
            for name, queries in self.query_gradients.items():
                scores[name][:, rows] = scores_from_gradients(
                    queries, gradients, self.curvature, count=len(images), damping=preset.damping
                )[0]
        return scores

    def lds(self, cell: DrawsCell) -> dict[str, np.ndarray]:
        """The LDS of each query of each set, `[Q]`, with the training gradients of one cell; computed once and kept."""
        identity = {
            "cell": cell,
            "draws": cell.draws,
            "model": model_identity(self.run),
            "curvature": self.curvature.digest,
            "measurement": self.run.preset.measurement,
            "damping": self.run.preset.damping,
            "truths": {name: truth.provenance for name, truth in self.truths.items()},
        }
        folder = self.run.path("draws-study", json_digest(plain(cell))[:12])
        with stage(folder, identity, name="draws-study") as needed:
            if needed:
                found = {
                    name: spearman(predicted_changes(scores, truth), truth.measurements.mean(1).T.numpy())
                    for (name, scores), truth in zip(self.scores(cell).items(), self.truths.values(), strict=True)
                }
                write_arrays(folder / "lds.npz", **found)
        return read_arrays(folder / "lds.npz")

    def bundle(
        self,
        name: str,
        counts: Sequence[int],
        seeds: Mapping[int, int],
        rules: Sequence[str] = tuple(RULES),
        root: Path | str | None = None,
    ) -> Path:
        """All cells of the study as a bundle: LDS `[rules, counts, seeds, Q]` of each query set, NaN where a seed was not run.

        Args:
            seeds: how many seeds each number of draws gets.
        """
        cells = [DrawsCell(rule, count, seed) for rule in rules for count in counts for seed in range(seeds[count])]
        found = {cell: self.lds(cell) for cell in cells}
        most = max(seeds.values())
        arrays = {}
        for queries, truth in self.truths.items():
            values = np.full((len(rules), len(counts), most, len(truth.query_ids)), np.nan, dtype=np.float32)
            for cell, results in found.items():
                values[rules.index(cell.rule), counts.index(cell.count), cell.seed] = results[queries]
            arrays[f"{queries}/lds"] = values
        configuration = {
            "preset": self.run.preset, "rules": {rule: RULES[rule] for rule in rules}, "counts": counts, "seeds": seeds,
        }  # fmt: skip
        metrics = {
            "counts": list(counts),
            "rules": list(rules),
            "ceiling": {q: ceiling(t) for q, t in self.truths.items()},
        }
        return write_bundle(name, arrays, metrics, configuration, root=root)
