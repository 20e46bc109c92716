"""Solves: scores with the exact GGN, after each of many steps of conjugate gradients.

A solve that is stopped early gives small scores whatever the curvature is. So predicted sizes are those of the GGN only where
further steps no longer change them. A cell is a number of draws of the GGN and a damping.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.iterative import as_columns, as_gradients, solved_scores, training_ggn
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.curvature import conjugate_gradient_path, curvature_preconditioner
from diffinf_lib.errors import require
from diffinf_lib.gradients import GradientSet
from diffinf_lib.runs import QUERY_SETS, curvature_of_run, query_gradients, train_gradients
from diffinf_lib.studies.study import Arrays, Study

BATCH = 100
"""Draws a pass of a product with the GGN."""


@dataclass(frozen=True)
class SolveCell:
    """One solve.

    Attributes:
        draws: of the GGN, for each training image.
        damping: λ of the system and of EK-FAC as its preconditioner.
        steps: of conjugate gradients.
    """

    draws: int
    damping: float
    steps: int

    @property
    def draw_config(self) -> DrawConfig:
        """The draws: antithetic where they are even."""
        return DrawConfig(self.draws, noise_rule="independent" if self.draws % 2 else "antithetic")


@dataclass(eq=False)
class SolvesStudy(Study[SolveCell]):
    """The solves of one run for a few queries.

    Its bundle holds `scores [cells, steps, Q, N]` after each step, NaN beyond a cell's last; `residuals [cells, Q]`, those of
    the last step relative to the query's gradient, computed anew; `draws`, `dampings` and `steps [cells]`; of the queries
    `sets` and `positions [Q]`.

    Attributes:
        solves: the cells.
        asked: sets and positions of the queries.
    """

    solves: Sequence[SolveCell] = ()
    asked: Sequence[tuple[str, int]] = ()

    name = "solves"
    holds_scores = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.solves) > 0, "solves: give at least one")
        require(len(self.asked) > 0, "asked: give at least one query")
        for name, position in self.asked:
            require(name in QUERY_SETS, f"asked={name!r}: give one of {', '.join(QUERY_SETS)}")
            count = len(self.queries[name])
            require(0 <= position < count, f"asked={position} of {name}: give a position from 0 to {count - 1}")

    def cells(self) -> list[SolveCell]:
        return list(self.solves)

    def depends(self, cell: SolveCell) -> dict[str, Any]:
        return {"asked": list(self.asked)}

    @cached_property
    def _gradients(self) -> GradientSet:
        """Of the asked queries, in the order asked."""
        names = sorted({name for name, _ in self.asked})
        whole = {name: query_gradients(self.run, self.queries[name]).whole() for name in names}
        blocks = whole[names[0]]
        return GradientSet.of(
            {b: torch.stack([whole[name][b][position] for name, position in self.asked]) for b in blocks}
        )

    def computed(self, cell: SolveCell) -> Arrays:
        """Scores after each step, and the residuals of the last."""
        run, curvature = self.run, curvature_of_run(self.run)
        model, images = run.model.model, run.data.train
        ggn = training_ggn(model, images, cell.draw_config, seed=run.seed, batch_size=BATCH, covers=curvature.covers)
        right = as_columns(model, curvature, self._gradients)
        path = list(conjugate_gradient_path(
            ggn, cell.damping, right, iterations=cell.steps,
            preconditioner=curvature_preconditioner(model, curvature, cell.damping),
        ))  # fmt: skip
        left = right - (ggn @ path[-1] + cell.damping * path[-1])
        solved = [as_gradients(model, curvature, vectors) for vectors in path]
        scores: Float[Tensor, "steps Q N"] = solved_scores(solved, train_gradients(run))
        return {"scores": scores.float().numpy(), "residuals": (left.norm(dim=0) / right.norm(dim=0)).numpy()}

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """All cells, an axis for the steps."""
        cells, most = self.cells(), max(cell.steps for cell in self.cells())
        found = [self.arrays(cell) for cell in cells]
        scores = np.full((len(cells), most, *found[0]["scores"].shape[1:]), np.nan, dtype=np.float32)
        for row, part in zip(scores, found, strict=True):
            row[: len(part["scores"])] = part["scores"]
        names, positions = zip(*self.asked, strict=True)
        arrays = {"scores": scores, "residuals": np.stack([part["residuals"] for part in found]), "sets": np.array(names),
                  "positions": np.array(positions)}  # fmt: skip
        arrays |= {key: np.array([getattr(cell, key[:-1] if key == "dampings" else key) for cell in cells])
                   for key in ("draws", "dampings", "steps")}  # fmt: skip
        return arrays, {"seconds": self.seconds()}
