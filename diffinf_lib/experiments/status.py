"""Status: what of a run is done, running, failed and missing, and how long it will take; nothing is written."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.experiments.costs import COSTS
from diffinf_lib.experiments.engine import ENGINE_LOCK, read_engine
from diffinf_lib.experiments.graph import EXPERIMENT, GROUND_TRUTH, LOGS, Experiment, Job
from diffinf_lib.experiments.plans import makespan
from diffinf_lib.experiments.records import holds

State = Literal["done", "running", "failed", "stopped", "waiting"]
STATES = get_args(State)
MANIFEST = "manifest.json"


def job_lock(log: Path) -> Path:
    """What a launch holds locked while it runs, beside its log."""
    return log.with_name(f".{log.stem}.lock")


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock; a file that is not there is held by none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


@dataclass(frozen=True)
class StageState:
    """The units of one stage of a run: finished, at work, and begun but left; and the seconds of the finished ones."""

    name: str
    done: int = 0
    running: int = 0
    stopped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class JobState:
    """One job of an experiment, and where it failed the reason in a line."""

    name: str
    state: State
    reason: str = ""


@dataclass(frozen=True)
class RunStatus:
    """A run as it stands; `str()` is for people.

    Attributes:
        models: retrained and measured, and of how many.
        seconds_left: of the experiment with as many jobs at once as its engine runs; None where no engine was started.
    """

    folder: Path
    stages: tuple[StageState, ...]
    jobs: tuple[JobState, ...]
    models: tuple[int, int] | None
    engine: bool
    seconds_left: float | None

    def __str__(self) -> str:
        from diffinf_lib.planner.plan import readable_time

        lines = [f"{self.folder}: {'an engine is at work' if self.engine else 'no engine is at work'}"]
        lines.append(f"{'stage':16}{'done':>6}{'running':>9}{'stopped':>9}{'took':>10}")
        for s in self.stages:
            lines.append(f"{s.name:16}{s.done:6}{s.running:9}{s.stopped:9}{readable_time(s.seconds):>10}")
        if self.models:
            lines.append(f"retrained models: {self.models[0]} of {self.models[1]} measured")
        counts = {
            state: sum(job.state == state for job in self.jobs)
            for state in ("done", "running", "failed", "stopped", "waiting")
        }
        if self.jobs:
            told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            lines.append(f"jobs: {told}, of {len(self.jobs)}")
        lines += [f"  {job.state}: {job.name}{job.reason and f': {job.reason}'}" for job in self.jobs
                  if job.state in ("running", "failed", "stopped")]  # fmt: skip
        if self.seconds_left is not None and counts["done"] < len(self.jobs):
            lines.append(f"left: about {readable_time(self.seconds_left)}")
        return "\n".join(lines)


def run_status(folder: Path | str) -> RunStatus:
    """The state of a run folder, from its manifests, records, locks and logs alone.

    Raises:
        ArtifactError: there is no run.
    """
    folder = Path(folder)
    asked = read_engine(folder / LOGS)
    require((folder / "config.json").is_file() or asked is not None, f"run={folder}: no run there; give a folder such as "
            "runs/PRESET", ArtifactError)  # fmt: skip
    stages = {name: list(found) for name, found in _by_stage(folder)}
    experiment = Experiment.of(dict(asked) | {"run": str(folder)}) if asked else None
    jobs = tuple(_job_states(folder / LOGS, experiment))
    models = _models(folder, experiment, stages)
    left = _seconds_left(experiment, dict(asked or {}), stages, jobs, models) if experiment else None
    states = tuple(_stage_state(name, found) for name, found in sorted(stages.items()))
    return RunStatus(folder, states, jobs, models, is_locked(folder / LOGS / ENGINE_LOCK), left)


Unit = tuple[Path, dict[str, Any]]


def _by_stage(folder: Path) -> Iterator[tuple[str, Iterator[Unit]]]:
    for stage in sorted(
        path for path in folder.iterdir() if path.is_dir() and path.name[0] != "." and path.name != LOGS
    ):
        yield stage.name, ((path.parent, _read(path)) for path in sorted(stage.rglob(MANIFEST)))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}  # being written or removed this very moment


def _stage_state(name: str, units: list[Unit]) -> StageState:
    done = [manifest for _, manifest in units if manifest.get("finished")]
    begun = [place for place, manifest in units if not manifest.get("finished")]
    running = sum(is_locked(place.with_name(f".{place.name}.lock")) for place in begun)
    return StageState(name, len(done), running, len(begun) - running, sum(map(_took, done)))


def _took(manifest: Mapping[str, Any]) -> float:
    """Seconds of a finished unit; of one that was made together with others, its share."""
    return float(manifest.get("measured", {}).get("wall_seconds", 0.0)) / int(
        manifest.get("how", {}).get("together", 1)
    )


def _job_states(logs: Path, experiment: Experiment | None) -> Iterator[JobState]:
    """Those of the experiment; where no engine was started, those that left a log."""
    jobs: dict[str, Job | None] = {path.stem: None for path in sorted(logs.glob("*.ipynb"))}
    for name, job in (experiment.jobs if experiment else jobs).items():
        log = logs / f"{name}.ipynb"
        if job and experiment and holds(experiment.record(name), job):
            yield JobState(name, "done")
        elif is_locked(job_lock(log)):
            yield JobState(name, "running", _progress(log))
        elif not log.exists():
            yield JobState(name, "waiting")
        else:
            yield _from_log(name, log)


def _from_log(name: str, log: Path) -> JobState:
    """A job without a record that is not at work: its executed notebook says how it ended."""
    notebook = _read(log)
    outputs = [output for cell in notebook.get("cells", []) for output in cell.get("outputs", [])]
    errors = [output for output in outputs if output.get("output_type") == "error"]
    if errors:
        reason = f"{errors[0]['ename']}: {errors[0]['evalue']}".splitlines()[0]
        return JobState(name, "failed", f"{reason}  (log: {log})")
    ended = notebook.get("metadata", {}).get("papermill", {}).get("end_time") is not None
    return JobState(name, "done" if ended else "stopped")


def _progress(log: Path) -> str:
    """The last line that a job at work has said, as its log was last saved."""
    cells = _read(log).get("cells", [])
    texts = ["".join(output.get("text", "")) for cell in cells for output in cell.get("outputs", [])]
    lines = [line.strip() for text in texts for line in text.splitlines() if re.match(r" *\d+ s  ", line)]
    return lines[-1] if lines else ""


def _models(folder: Path, experiment: Experiment | None, stages: Mapping[str, list[Unit]]) -> tuple[int, int] | None:
    """How many retrained models are measured, and of how many; None where none was begun."""
    if "measurements" not in stages and experiment is None:
        return None
    from diffinf_lib.options import with_options
    from diffinf_lib.presets import get_preset

    given = experiment.parameters if experiment else {}
    name = experiment.preset if experiment else _read(folder / "config.json")["preset"]["name"]
    subsets = with_options(get_preset(name), dict(given.get("options") or {})).subsets
    total = (given.get("subsets") or subsets.count) * (given.get("seeds") or subsets.seeds)
    units = stages.get("measurements", [])
    names = {place.name.rpartition("-")[0] for place, manifest in units if manifest.get("finished")}
    return min(len(names), total), total


def _seconds_left(
    experiment: Experiment, asked: Mapping[str, Any], stages: Mapping[str, list[Unit]], jobs: tuple[JobState, ...],
    models: tuple[int, int] | None,
) -> float:  # fmt: skip
    """What is left at the pace of the models finished since the engine was started, other jobs by their plans at that pace."""
    found = _read(experiment.logs / COSTS).get("costs", {})
    planned = {name: float(found.get(name, {}).get("seconds", 0.0)) for name in experiment.jobs}
    done, total = models or (0, 0)
    shards = [name for name, job in experiment.jobs.items() if job.template == GROUND_TRUTH]
    open_shards = [job.name for job in jobs if job.name in shards and job.state != "done"]
    at_once = int(asked.get("at_once") or len(shards))
    unit = sum(planned[name] for name in shards) / total if total else 0.0
    pace = _seconds_a_model(stages.get("measurements", []), (experiment.logs / EXPERIMENT).stat().st_mtime)
    each = pace * min(at_once, len(shards)) if pace else unit
    left = {name: each / (unit or 1.0) * seconds for name, seconds in planned.items()}
    left |= {name: each * (total - done) / len(open_shards) for name in open_shards}
    todo = [experiment.jobs[job.name] for job in jobs if job.state != "done"]
    return makespan(todo, left, at_once)


def _seconds_a_model(units: list[Unit], since: float) -> float | None:
    """Seconds from one finished model to the next, all shards together; None while fewer than two were finished since then."""
    ends = sorted((place / MANIFEST).stat().st_mtime for place, manifest in units if manifest.get("finished"))
    ends = [end for end in ends if end > since]
    return (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else None
