"""Graph: the launches of an experiment, from the model over the shards of the ground truth to its bundle and every study."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from diffinf_lib.artifacts.paths import resolved, run_folder
from diffinf_lib.errors import require
from diffinf_lib.experiments.templates import check_parameters, known_parameters, templates_root
from diffinf_lib.options import words_of

MODEL, GROUND_TRUTH, BUNDLE = "e01_model", "e02_ground_truth", "e03_bundle"
LOGS, DONE, EXPERIMENT = "logs", "done", "experiment.json"
OWN = ("preset", "run", "shard", "shards", "bundle")
"""Parameters that the graph gives itself."""


def all_studies() -> list[str]:
    """The templates of studies, by name."""
    found = sorted(path.stem for path in templates_root().glob("e*.ipynb"))
    return [name for name in found if name not in (MODEL, GROUND_TRUTH, BUNDLE)]


@dataclass(frozen=True)
class Job:
    """One launch of a template.

    Attributes:
        name: what its log and its record are called.
        after: names of the jobs that must be done before.
    """

    name: str
    template: str
    parameters: Mapping[str, Any]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Experiment:
    """All that one preset is asked for: the graph of its jobs.

    Attributes:
        run: the run folder; default `runs/<preset>`.
        shards: of the ground truth, and of each study that can be cut.
        studies: templates asked for beside the ground truth.
        parameters: of every template that has them, such as `options` or `results`.

    Raises:
        ConfigurationError: an unknown study or parameter, or one that the graph gives itself.
    """

    preset: str
    run: Path
    shards: int = 1
    studies: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = all_studies()
        for name in self.studies:
            require(name in known, f"studies={name}: no such study; give some of {', '.join(known)}, or all")
        require(self.shards > 0, f"shards={self.shards}: give a positive whole number")
        templates = (MODEL, GROUND_TRUTH, BUNDLE, *self.studies)
        offered = sorted({name for template in templates for name in known_parameters(template)} - set(OWN))
        for name in self.parameters:
            require(name in offered, f"parameter={name!r}: none of that name here; give one of {', '.join(offered)}")
        for job in self.jobs.values():
            check_parameters(job.template, job.parameters)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Experiment":
        """The experiment that a mapping of plain values asks for: `preset`, and perhaps `run`, `shards`, `studies` (a list, a
        text `e05_methods,e08_removal`, or `all`) and `parameters`."""
        preset, studies = str(config.get("preset", "")), config.get("studies") or ()
        require(bool(preset), "preset: none given; give preset=NAME, see `diffinf presets`")
        if isinstance(studies, str):
            studies = all_studies() if studies == "all" else words_of(studies)
        folder = run_folder(_preset_name(preset), config.get("run") or None)
        return cls(preset, folder, int(config.get("shards", 1)), tuple(studies), dict(config.get("parameters") or {}))

    @property
    def logs(self) -> Path:
        """Where executed notebooks, records and the engine's own notes lie."""
        return self.run / LOGS

    def record(self, name: str) -> Path:
        """The record of a job that was done."""
        return self.logs / DONE / f"{name}.json"

    @property
    def plain(self) -> dict[str, Any]:
        """The mapping that `of` reads."""
        return {
            "preset": self.preset, "run": str(self.run), "shards": self.shards, "studies": list(self.studies),
            "parameters": dict(self.parameters),
        }  # fmt: skip

    @cached_property
    def jobs(self) -> dict[str, Job]:
        """All jobs by name, each after those that it needs."""
        found: list[Job] = [self._job(MODEL, ())]
        shards = self._shards(GROUND_TRUTH, (MODEL,))
        found += [*shards, self._job(BUNDLE, _names(shards))]
        for template in self.studies:
            after = self._needs(template, _names(shards))
            pieces = self._shards(template, after) if "shard" in known_parameters(template) and self.shards > 1 else []
            found += [*pieces, self._job(template, _names(pieces) or after)]
        return {job.name: job for job in found}

    def _needs(self, template: str, shards: tuple[str, ...]) -> tuple[str, ...]:
        """What a study reads: the bundle of the ground truth, its models, the run's model, or nothing of the run."""
        known = known_parameters(template)
        if "ground_truth" in known:
            return (BUNDLE,)
        if "subsets" in known:
            return shards
        return (MODEL,) if "options" in known else ()

    def _shards(self, template: str, after: tuple[str, ...]) -> list[Job]:
        return [self._job(template, after, index) for index in range(self.shards)]

    def _job(self, template: str, after: tuple[str, ...], shard: int | None = None) -> Job:
        known = known_parameters(template)
        given = {"preset": self.preset, "run": str(self.run)} | dict(self.parameters)
        if shard is not None:
            given |= {"shard": shard, "shards": self.shards}
        return Job(
            job_name(template, given), template, {name: value for name, value in given.items() if name in known}, after
        )


def _names(jobs: Sequence[Job]) -> tuple[str, ...]:
    return tuple(job.name for job in jobs)


def job_name(template: str, parameters: Mapping[str, Any]) -> str:
    """What a launch is called: the template's name, and its shard."""
    shard = f"-{parameters['shard']}-of-{parameters.get('shards', 1)}" if "shard" in parameters else ""
    return f"{template}{shard}"


def default_log(template: str, parameters: Mapping[str, Any]) -> Path:
    """Where the executed notebook of a launch goes."""
    folder = run_folder(_preset_name(str(parameters.get("preset", "digits"))), parameters.get("run"))
    return folder / LOGS / f"{job_name(template, parameters)}.ipynb"


def _preset_name(preset: str) -> str:
    from diffinf_lib.presets import get_preset

    return get_preset(preset).name


def words_of_job(job: Job) -> list[str]:
    """The words of `diffinf launch` for a job."""
    given = (("-p", f"{name}={json.dumps(value)}") for name, value in job.parameters.items())
    return [job.template, *(word for pair in given for word in pair)]


def with_absolute_paths(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that mean the same wherever a job is started."""
    found = dict(parameters)
    for name in ("results",):
        if found.get(name):
            found[name] = str(resolved(found[name]))
    dataset = (options := dict(found.get("options") or {})).get("dataset.name", "")
    if str(dataset).startswith("folder:"):
        found["options"] = options | {"dataset.name": f"folder:{resolved(dataset.removeprefix('folder:'))}"}
    return found
