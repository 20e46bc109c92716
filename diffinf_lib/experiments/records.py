"""Records: which manifests a launch went through, so that a workflow engine's notes never disagree with the run folder.

A record stands for a job that was done. It names every stage and bundle that the job made or found whole, each by the digest of
its manifest. Once one of them is missing or another, the record no longer holds, and the job is run again; what is still whole
is skipped by the stages themselves.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffinf_lib.artifacts.noted import NOTED
from diffinf_lib.experiments.graph import Experiment, Job
from diffinf_lib.experiments.templates import launch


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def launch_recorded(
    name: str, parameters: Mapping[str, Any], *, log: Path, record: Path, progress: bool = True
) -> Path:
    """`launch`, and the record of it once it has ended well; the same errors."""
    from diffinf_lib.artifacts import write_json

    with _notes() as notes:
        launch(name, parameters, log=log, progress=progress)
        manifests = sorted(set(notes.read_text().splitlines()))
    places = {os.path.relpath(place, record.parent): _digest(Path(place)) for place in manifests}
    write_json(record, {"template": name, "parameters": dict(parameters), "manifests": places})
    return log


@contextmanager
def _notes() -> Iterator[Path]:
    """A file in which every process started inside notes its manifests."""
    with tempfile.TemporaryDirectory(prefix="diffinf-") as folder:
        notes, before = Path(folder) / "manifests", os.environ.get(NOTED)
        notes.touch()
        os.environ[NOTED] = str(notes)
        try:
            yield notes
        finally:
            os.environ.pop(NOTED)
            if before is not None:
                os.environ[NOTED] = before


def holds(record: Path, job: Job) -> bool:
    """Whether a record is there, of this very job, and all that it names is as it was."""
    try:
        found = json.loads(record.read_text())
        if found["parameters"] != json.loads(json.dumps(dict(job.parameters))):
            return False
        return all(_digest(record.parent / place) == digest for place, digest in found["manifests"].items())
    except (OSError, KeyError, TypeError, AttributeError, ValueError):
        return False  # none, or not whole: the job is simply run again


def drop_stale_records(experiment: Experiment) -> list[str]:
    """Delete the records that no longer hold; return the jobs whose they were."""
    stale = [job.name for job in experiment.jobs.values() if not holds(experiment.record(job.name), job)]
    for name in stale:
        experiment.record(name).unlink(missing_ok=True)
    return stale


def remaining(experiment: Experiment) -> list[Job]:
    """The jobs that would be run: those without a record that holds, and all after them."""
    found: dict[str, Job] = {}
    for job in experiment.jobs.values():
        if not holds(experiment.record(job.name), job) or any(name in found for name in job.after):
            found[job.name] = job
    return list(found.values())
