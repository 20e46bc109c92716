"""Offers: scores of several recipes, each with its bill, so that a reader can spend a budget of passes without computing any.

Recipes differ in checkpoint, draws and inverse. Two that read the same curvature or gradients share that part of the bill.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from diffinf_lib.attribution.methods import conjugate_gradients_at, fixed_settings, influence_at
from diffinf_lib.compression import int8_rows
from diffinf_lib.evaluation import lds
from diffinf_lib.runs import task_of_run
from diffinf_lib.runs.tasks import checkpoint_at
from diffinf_lib.studies.ladder import SHARED
from diffinf_lib.studies.methods import CellScores, as_arrays, from_arrays
from diffinf_lib.studies.study import Arrays, Study

Inverse = Literal["ekfac", "kfac", "cg"]

PLACES = {"half-way": 0.5, "final": 1.0}
"""Checkpoints by name, as shares of the full training's steps."""
COUNTS = (8, 64)
"""Draws of a training gradient."""
STEPS = (1, 2, 3, 4)
"""Of conjugate gradients; each is an offer of its own."""
INVERSES: dict[Inverse, tuple[str, ...]] = {
    "ekfac": ("EK-FAC",), "kfac": ("K-FAC",), "cg": tuple(f"conjugate gradients, {k}" for k in STEPS),
}  # fmt: skip
"""The offers of each inverse by name."""


@dataclass(frozen=True)
class OfferCell:
    """Scores by one inverse at one checkpoint; with conjugate gradients after each of `STEPS`."""

    queries: str
    place: str
    draws: int
    inverse: Inverse


@dataclass(eq=False)
class OffersStudy(Study[OfferCell]):
    """The offers of one run.

    Its bundle holds the scores in eight bits, `<set>/scores [offers, Q, N]` times `<set>/scales [offers, Q, 1]`; its metrics
    have `offers`, in this order: name, LDS, and the passes of each part of the bill. Parts of one name are one.

    Attributes:
        sets: sets of queries.
        counts: draws of a training gradient.
    """

    sets: Sequence[str] = ("held-out",)
    counts: Sequence[int] = COUNTS

    name = "offers"
    holds_scores = True

    def cells(self) -> list[OfferCell]:
        """Checkpoint by checkpoint."""
        return [
            OfferCell(queries, place, draws, inverse)
            for queries in self.sets
            for place in PLACES
            for draws in self.counts
            for inverse in INVERSES
        ]

    def depends(self, cell: OfferCell) -> dict[str, Any]:
        return {"settings": fixed_settings() | {"steps": STEPS, "places": PLACES}}

    def computed(self, cell: OfferCell) -> Arrays:
        at = checkpoint_at(self.run, round(PLACES[cell.place] * self.run.preset.training.steps))
        task = task_of_run(self.run, self.queries[cell.queries], at=at)
        draws = replace(SHARED, count=cell.draws)

        def score() -> torch.Tensor:
            if cell.inverse == "cg":
                return conjugate_gradients_at(task, at, list(map(float, STEPS)), draws)
            return influence_at(task, at, [self.run.preset.damping], cell.inverse, draws)

        scores, _ = task.costed(score)
        return as_arrays(scores, task.bill)

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        offers: dict[str, list[dict[str, Any]]] = {queries: [] for queries in self.sets}
        for queries in self.sets:
            held = [(cell, from_arrays(self.arrays(cell))) for cell in self.cells() if cell.queries == queries]
            packed = int8_rows(torch.cat([found.scores for _, found in held]))
            arrays[f"{queries}/scores"] = packed["values"].numpy()
            arrays[f"{queries}/scales"] = packed["scale"].float().numpy()
            for cell, found in held:
                offers[queries] += self._offers(cell, found)
        return arrays, {"offers": offers, "ceilings": self.ceilings()}

    def _offers(self, cell: OfferCell, found: CellScores) -> list[dict[str, Any]]:
        """One for each matrix of scores; a step of conjugate gradients pays for the products up to it."""
        names, rows = INVERSES[cell.inverse], []
        for place, (name, scores) in enumerate(zip(names, found.scores, strict=True)):
            paid = {part: cost.draws for part, cost in found.bill.items() if cost.draws}
            products = {part: passes * (place + 1) // len(names) for part, passes in paid.items() if "-ggn" in part}
            rows.append({
                "name": f"{cell.place}, {cell.draws} draws, {name}", "passes": paid | products,
                "lds": lds(scores, self.truths[cell.queries], bootstrap=2).mean,
            })  # fmt: skip
        return rows
