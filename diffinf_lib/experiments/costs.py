"""Costs: what each job of an experiment will take, by the planner, and what the book's own studies took."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from diffinf_lib.experiments.graph import BUNDLE, GROUND_TRUTH, MODEL, Experiment, Job
from diffinf_lib.experiments.templates import known_parameters

if TYPE_CHECKING:
    from diffinf_lib.planner import Plan, StageEstimate

COSTS = "costs.json"
ATTRIBUTION = ("curvature", "train gradients", "query gradients", "scores")
TRUTH = ("retrained", "measurements")
IDLE_BYTES = 3e9
"""Memory of the processes of a job before any work: an engine, a launcher, a kernel with torch."""
START_MINUTES = 10
"""Minutes that a job is given beyond twice its plan: loading, reading what is there, a busy disk."""


@dataclass(frozen=True)
class Cost:
    """What one job will take.

    Attributes:
        seconds: of one device.
        peak_bytes: memory at its most, above an idle process; on the device, where there is one.
        guessed: the planner does not know this study; it is counted as one attribution of all queries.
    """

    seconds: float
    disk_bytes: float
    peak_bytes: float
    guessed: bool = False

    def minutes(self, attempt: int = 1) -> int:
        """A limit on a job's time: twice its plan, and more at each attempt."""
        return math.ceil(attempt * (START_MINUTES + 2 * self.seconds / 60))

    def megabytes(self, attempt: int = 1) -> int:
        """A limit on a job's memory, more at each attempt."""
        return math.ceil(attempt * (1.5 * self.peak_bytes + IDLE_BYTES) / 1e6)


def costs_of(experiment: Experiment, *, flops: float | None = None) -> dict[str, Cost]:
    """The cost of every job by name; worked out once, and read from the run's logs after that.

    Args:
        flops: FLOPs a second of the machine that will do the work; default: measured here, in a few seconds.
    """
    asked = {"experiment": experiment.plain, "flops": flops}
    file = experiment.logs / COSTS
    try:
        found = json.loads(file.read_text())
        if found["asked"] == json.loads(json.dumps(asked)):
            return {name: Cost(**cost) for name, cost in found["costs"].items()}
    except (OSError, KeyError, TypeError, ValueError):
        pass  # none yet, or of another experiment
    costs = _worked_out(experiment, flops)
    _keep(file, {"asked": asked, "costs": {name: asdict(cost) for name, cost in costs.items()}})
    return costs


def _keep(file: Any, found: Mapping[str, Any]) -> None:
    from diffinf_lib.artifacts import write_json

    if file.parent.is_dir():  # a plan alone makes no folder
        write_json(file, found)


def _worked_out(experiment: Experiment, flops: float | None) -> dict[str, Cost]:
    from diffinf_lib.devices import usable_device
    from diffinf_lib.options import with_options
    from diffinf_lib.planner import estimate
    from diffinf_lib.presets import get_preset

    given = experiment.parameters
    preset = with_options(get_preset(experiment.preset), dict(given.get("options") or {}))
    counts = {
        f"subsets.{name}": given[key] for name, key in (("count", "subsets"), ("seeds", "seeds")) if given.get(key)
    }
    plan = estimate(with_options(preset, counts), device=usable_device(None), flops_per_second=flops)
    return {job.name: _cost(job, plan, experiment.shards) for job in experiment.jobs.values()}


def _cost(job: Job, plan: "Plan", shards: int) -> Cost:
    share = 1 / shards if "shard" in job.parameters else 1.0
    stages = {stage.name: stage for stage in plan.stages}
    if job.template == MODEL:
        return _sum(stages[name] for name in ("latents", "model", "samples", "trajectories") if name in stages)
    if job.template == GROUND_TRUTH:
        return _sum((stages[name] for name in TRUTH if name in stages), share)
    if job.template == BUNDLE or (share == 1.0 and "shard" in known_parameters(job.template) and shards > 1):
        return Cost(0.0, 0.0, stages["measurements"].peak_bytes)  # what the shards left is read
    found = _sum((stages[name] for name in ATTRIBUTION if name in stages), share)
    multiple = _multiple(job.template)
    return Cost((multiple or 1) * found.seconds, found.disk_bytes, found.peak_bytes, multiple is None)


def _sum(stages: Iterable["StageEstimate"], share: float = 1.0) -> Cost:
    listed = list(stages)
    return Cost(
        share * sum(stage.seconds for stage in listed), share * sum(stage.disk_bytes for stage in listed),
        max(stage.peak_bytes for stage in listed),
    )  # fmt: skip


def _multiple(template: str) -> float | None:
    """How many attributions of all queries a study is worth, by what it took on the digits beside their ground truth.

    None where the book holds no such bundle with its seconds.
    """
    from diffinf_lib.artifacts.paths import results_root
    from diffinf_lib.planner import estimate
    from diffinf_lib.presets import get_preset

    def metrics(name: str) -> dict[str, Any]:
        return dict(json.loads((results_root() / f"digits-{name}" / "metrics.json").read_text()))

    try:
        study, truth = metrics(template.partition("_")[2]), metrics("ground-truth")
        took = _seconds(study)
        truth_took = truth["training_seconds"] + truth["measurement_seconds"]
    except (OSError, KeyError, ValueError):
        return None
    if took is None:
        return None
    plan = estimate(get_preset("digits"), flops_per_second=1.0)  # of any machine: only proportions count
    worth = took * sum(plan[name].seconds for name in TRUTH) / truth_took
    return float(worth / sum(plan[name].seconds for name in ATTRIBUTION))


def _seconds(metrics: Mapping[str, Any]) -> float | None:
    """What a study took, where its bundle says so: as a whole, or result by result."""
    for name in ("seconds", "measurement_seconds"):
        if name in metrics:
            return float(metrics[name])
    rows = metrics.get("results")
    rows = rows if isinstance(rows, list) else []
    found = [row["seconds"] for row in rows if isinstance(row, dict) and "seconds" in row]
    return float(sum(found)) if found else None
