"""Protocol study: what the protocol of D-TRAK's authors makes of a method, on this project's ground truth.

They take the gradients of images and queries at a few evenly spaced timesteps, one noise at each, and choose λ on the very
retrained models that they report (Zheng et al. 2024, section 3 and their notebooks). Random projections are left out here: the
kernel over images is exact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffinf_lib.attribution.methods import fixed_settings, get_method
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.errors import require
from diffinf_lib.evaluation import lds, tuned_lds
from diffinf_lib.evaluation.lds import check_tunable
from diffinf_lib.runs import task_of_run
from diffinf_lib.studies.methods import as_arrays, from_arrays
from diffinf_lib.studies.study import Arrays, Study


@dataclass(frozen=True)
class ProtocolCell:
    """A method's scores of one set of queries, from so many timesteps."""

    method: str
    queries: str
    timesteps: int

    @property
    def draws(self) -> DrawConfig:
        """The draws of a gradient, of images and queries alike."""
        return DrawConfig(self.timesteps, timestep_rule="grid", noise_rule="independent")


@dataclass(eq=False)
class ProtocolStudy(Study[ProtocolCell]):
    """The study of one run.

    Its bundle's metrics have `results`, one entry a cell: the LDS at the method's default, at the best λ of all (`best`, as
    the protocol has it), and at a λ chosen on other subsets (`tuned`); its arrays are `<set>/lds [methods, counts, D, Q]`.

    Attributes:
        counts: numbers of timesteps.
        methods: names of methods with the same number of values of λ.
    """

    counts: Sequence[int] = (10, 100)
    methods: Sequence[str] = ("trak", "d-trak")

    name = "protocol"
    holds_scores = True

    def __post_init__(self) -> None:
        check_tunable(self.truths)
        super().__post_init__()
        sizes = {name: len(get_method(name).grid) for name in self.methods}
        require(len(set(sizes.values())) == 1, f"methods: {sizes} values of the option; give methods with as many")

    def cells(self) -> list[ProtocolCell]:
        """The few timesteps first."""
        return [
            ProtocolCell(m, queries, count) for count in self.counts for queries in self.truths for m in self.methods
        ]

    def depends(self, cell: ProtocolCell) -> dict[str, Any]:
        return {"options": get_method(cell.method).grid, "settings": fixed_settings(), "draws": cell.draws}

    def computed(self, cell: ProtocolCell) -> Arrays:
        method, task = get_method(cell.method), task_of_run(self.run, self.queries[cell.queries])
        task.draws = task.query_draws = cell.draws
        found, _ = task.costed(lambda: method(task, method.grid))
        return as_arrays(found, task.bill)

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        arrays = {
            f"{queries}/lds": np.stack([
                np.stack([self._per_option(ProtocolCell(m, queries, count)) for count in self.counts])
                for m in self.methods
            ])
            for queries in self.truths
        }  # fmt: skip
        return arrays, {"results": [self._row(cell) for cell in self.cells()], "ceilings": self.ceilings()}

    def _per_option(self, cell: ProtocolCell) -> Float[np.ndarray, "D Q"]:
        truth = self.truths[cell.queries]
        scores = from_arrays(self.arrays(cell)).scores
        return np.stack([lds(part, truth, bootstrap=2).per_query for part in scores]).astype(np.float32)

    def _row(self, cell: ProtocolCell) -> dict[str, Any]:
        method, truth, held = get_method(cell.method), self.truths[cell.queries], from_arrays(self.arrays(cell))
        each = [lds(part, truth) for part in held.scores]
        default, best = each[method.grid.index(method.default)], max(each, key=lambda result: result.mean)
        tuned = tuned_lds(held.scores, truth, options=method.grid, default=method.default)
        return {
            "method": method.name, "label": method.label, "queries": cell.queries, "timesteps": cell.timesteps,
            "lds": default.mean, "interval": default.interval, "best": best.mean, "best_interval": best.interval,
            "best_option": method.grid[each.index(best)], "tuned": tuned.tuned.value,
            "tuned_interval": tuned.tuned.interval, "draws": held.cost.draws,
        }  # fmt: skip
