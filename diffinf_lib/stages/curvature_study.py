"""Curvature study: which matrix influence divides by, and how well its scores then predict retraining (the paper's App. G).

Each fit is one choice of partition (GGN^model, or GGN^loss per draw or per example) and of weight sharing (expand or reduce);
from it EK-FAC and K-FAC are read at every damping. A fit against one set of queries is a stage of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_arrays, read_json, stage, write_arrays, write_bundle
from diffinf_lib.attribution.methods import DAMPINGS, influence_at
from diffinf_lib.curvature import Approximation, CurvatureConfig
from diffinf_lib.curvature.config import Partition, Sharing
from diffinf_lib.evaluation import GroundTruth, ceiling, lds, paired_difference, predicted_changes, spearman, tuned_lds
from diffinf_lib.evaluation.lds import check_tunable, mean_measurements
from diffinf_lib.stages.model import full_model, measured_queries
from diffinf_lib.stages.run import Run
from diffinf_lib.stages.tasks import checkpoint, task_of_run

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
REFERENCE = CHOICES[0]


class CurvatureStudy:
    """The study of one run against its ground truths.

    Args:
        truths: ground truths by set of queries, from `load_ground_truth`.

    Raises:
        ConfigurationError: one has too few subsets to tune options on one half and judge them on the other.
    """

    def __init__(self, run: Run, truths: Mapping[str, GroundTruth]):
        check_tunable(truths)
        self.run, self.truths = run, dict(truths)
        self.queries = measured_queries(run)

    def scores(self, choice: CurvatureChoice, queries: str) -> Tensor:
        """Scores `[2, D, Q, N]`: EK-FAC and K-FAC at every damping; computed once and kept."""
        preset = self.run.preset
        config = choice.config(preset.curvature)
        identity = {"curvature": config, "queries": queries, "dampings": DAMPINGS, "draws": preset.gradient_draws,
                    "measurement": preset.measurement, "seed": self.run.seed}  # fmt: skip
        folder = self.run.path("curvature-study", json_digest(plain(identity))[:12])
        with stage(folder, identity, name="curvature-study") as needed:
            if needed:
                at = checkpoint(self.run, full_model(self.run).model, "final", config, curvature=choice.name)
                task = task_of_run(self.run, self.queries[queries], at=at)
                found = [influence_at(task, at, DAMPINGS, kind, task.draws) for kind in APPROXIMATIONS]
                write_arrays(folder / "scores.npz", scores=torch.stack(found).float().numpy())
        return torch.from_numpy(read_arrays(folder / "scores.npz")["scores"]).double()

    def fit_seconds(self, choice: CurvatureChoice) -> float:
        """What the fit took."""
        manifest = read_json(self.run.path("curvatures", f"final-{choice.name}", "manifest.json"))
        return float(manifest["measured"]["wall_seconds"])

    def bundle(self, name: str, choices: Sequence[CurvatureChoice] = CHOICES, root: Path | str | None = None) -> Path:
        """All choices as a bundle.

        Arrays: `dampings [D]`, `<set>/lds [choices, 2, D, Q]` with EK-FAC before K-FAC. Metrics: for each choice and
        approximation the LDS at the preset's damping, tuned on other subsets, and the paired difference to the first choice.
        """
        default = DAMPINGS.index(self.run.preset.damping)
        rows, arrays = [], {"dampings": np.array(DAMPINGS)}
        for queries, truth in self.truths.items():
            found = {choice: self.scores(choice, queries) for choice in choices}
            mean = mean_measurements(truth)
            arrays[f"{queries}/lds"] = np.stack([
                [[spearman(predicted_changes(s, truth), mean) for s in by_damping] for by_damping in scores]
                for scores in found.values()
            ]).astype(np.float32)  # fmt: skip
            reference = found[choices[0]][0, default]
            for choice, scores in found.items():
                for approximation, by_damping in zip(APPROXIMATIONS, scores, strict=True):
                    rows.append(self._row(choice, approximation, by_damping, queries, reference))
        configuration = {"preset": self.run.preset, "choices": list(choices), "dampings": DAMPINGS}
        metrics = {
            "results": rows,
            "fit_seconds": {choice.name: self.fit_seconds(choice) for choice in choices},
            "ceilings": {queries: ceiling(truth) for queries, truth in self.truths.items()},
        }
        return write_bundle(name, arrays, metrics, configuration, root=root)

    def _row(
        self, choice: CurvatureChoice, approximation: Approximation, scores: Tensor, queries: str, reference: Tensor
    ) -> dict[str, Any]:
        truth, damping = self.truths[queries], self.run.preset.damping
        at_default = scores[DAMPINGS.index(damping)]
        result, tuned = lds(at_default, truth), tuned_lds(scores, truth, options=DAMPINGS, default=damping)
        row: dict[str, Any] = {
            "partition": choice.partition, "sharing": choice.sharing, "approximation": approximation, "queries": queries,
            "lds": result.mean, "interval": result.interval, "tuned": tuned.tuned.value,
            "tuned_interval": tuned.tuned.interval, "favourite": tuned.favourite,
        }  # fmt: skip
        if not torch.equal(at_default, reference):
            difference, interval = paired_difference(at_default, reference, truth)
            row |= {"difference": difference, "difference_interval": interval}
        return row
