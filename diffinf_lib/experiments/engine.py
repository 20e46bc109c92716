"""Engine: Snakemake over one experiment, one engine a run folder."""

import fcntl
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from diffinf_lib.artifacts.paths import project_root
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.experiments.costs import costs_of
from diffinf_lib.experiments.gpu_slots import visible_gpus
from diffinf_lib.experiments.graph import EXPERIMENT, Experiment

ENGINE_LOCK = ".engine.lock"


def workflow_root() -> Path:
    """Where the Snakefile and its profiles lie."""
    return project_root() / "workflow"


@dataclass(frozen=True)
class Engine:
    """How an experiment is carried out.

    Attributes:
        profile: a name in `workflow/profiles/`, or a folder with a `config.yaml`.
        jobs: at once; default: GPU slots, or cores; on a cluster the profile's.
        gpus: of this machine; default: those it shows. On a cluster each job asks for one if there are any.
        per_gpu: jobs that share a GPU.
        flops: FLOPs a second of what does the work; default: measured here.
        retries: of a job that failed; default: the profile's.
    """

    profile: str = "workstation"
    jobs: int | None = None
    gpus: int | None = None
    per_gpu: int = 1
    flops: float | None = None
    retries: int | None = None

    @property
    def folder(self) -> Path:
        """The profile's folder."""
        named = workflow_root() / "profiles" / self.profile
        found = named if named.is_dir() else Path(self.profile)
        known = sorted(path.parent.name for path in workflow_root().glob("profiles/*/config.yaml"))
        require((found / "config.yaml").is_file(), f"profile={self.profile}: none of that name; give {' or '.join(known)}, "
                "or a folder with a config.yaml")  # fmt: skip
        return found.resolve()

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this very machine."""
        text = (self.folder / "config.yaml").read_text()
        words = [line.partition("#")[0].replace(" ", "") for line in text.splitlines()]
        return not any(word.startswith("executor:") for word in words) or "executor:local" in words

    @property
    def gpu_count(self) -> int:
        """GPUs at hand; of a cluster nothing is known."""
        if self.gpus is not None:
            return self.gpus
        return len(visible_gpus()) if self.is_local else 0

    @property
    def at_once(self) -> int | None:
        """Jobs side by side; None leaves it to the profile."""
        if self.jobs is not None or not self.is_local:
            return self.jobs
        return self.gpu_count * self.per_gpu or os.cpu_count() or 1

    def command(self, config_file: Path) -> list[str]:
        """The words that start Snakemake."""
        words: list[Any] = [sys.executable, "-m", "snakemake", "--snakefile", workflow_root() / "Snakefile",
                            "--profile", self.folder, "--workflow-profile", "none", "--configfile", config_file,
                            "--directory", config_file.parent,
                            "--nolock", "--rerun-incomplete"]  # fmt: skip
        if self.at_once is not None:
            words += ["--jobs", self.at_once]
        if self.is_local and self.gpu_count:
            words += ["--resources", f"gpu={self.gpu_count * self.per_gpu}"]
        if self.retries is not None:
            words += ["--retries", self.retries]
        return [str(word) for word in words]

    def start(self, experiment: Experiment) -> NoReturn:
        """Become the engine of an experiment: this process holds the run folder until it ends, however it ends.

        Raises:
            ConfigurationError: Snakemake is not installed, the folder cannot be written, or another engine is at work there.
        """
        require(importlib.util.find_spec("snakemake") is not None, "experiment: Snakemake is not installed; pip install "
                "'diffinf[runs]', or run the templates one by one with `diffinf launch`")  # fmt: skip
        from diffinf_lib.artifacts import ensure_writable, write_json

        logs = ensure_writable(experiment.logs)
        _hold(logs / ENGINE_LOCK)
        costs_of(experiment, flops=self.flops)
        machine = {"gpus": self.gpu_count, "per_gpu": self.per_gpu, "gpu_slots": self.is_local, "flops": self.flops}
        write_json(logs / EXPERIMENT, experiment.plain | machine | {"origin": os.getcwd(), "at_once": self.at_once})
        sys.stdout.flush()
        command = self.command(logs / EXPERIMENT)
        os.execv(command[0], command)


def _hold(path: Path) -> None:
    """Lock a file for this process and the program it becomes; those it starts do not inherit it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
        raise ConfigurationError(f"run={path.parent.parent}: another engine is at work there ({holder}); wait until it ends, "
                                 "see `diffinf status`, or give another run folder") from None  # fmt: skip
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    os.set_inheritable(descriptor, True)


def read_engine(logs: Path) -> Mapping[str, Any] | None:
    """What the last engine of a run folder was asked for; None where none was."""
    try:
        return dict(json.loads((logs / EXPERIMENT).read_text()))
    except (OSError, ValueError):
        return None
