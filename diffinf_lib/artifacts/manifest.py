"""Manifests: what a stage of a run was asked for, what it left, and how it came about.

A stage is a folder with a `manifest.json`. The manifest is written twice: when the stage begins (so that a run killed
half-way is known by its configuration) and when it is finished (with the digest of every file, and of what it says itself).

Every file of a stage is hashed when a process asks for the stage: a file of another stage, or one bit that differs, is found
then. Files of a stage that nobody asks for are not looked at: the weights of a retrained model whose measurements are there,
for instance, which would be gigabytes at each start.
"""

import os
import platform
import resource
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from diffinf_lib.artifacts.comparison import check_same, plain
from diffinf_lib.artifacts.files import ensure_writable, file_digest, json_digest, read_sealed, write_sealed
from diffinf_lib.artifacts.noted import note
from diffinf_lib.artifacts.paths import project_root
from diffinf_lib.errors import first_few

MANIFEST = "manifest.json"
PACKAGES = ("torch", "diffusers", "numpy", "scipy", "scikit-learn", "safetensors")


@lru_cache
def git_commit() -> str:
    """The commit of the checkout this process started from, or `unknown`; with `+` when tracked files differed from it.

    Bundles do not count: they are what studies make, and one made just before is no change of the code.
    """
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("diff", "--name-only", "HEAD", "--", ".", ":(exclude)book/results")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return f"{commit}+" if changed else commit


def _git(*words: str) -> str:
    command = ["git", "-C", str(project_root()), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


@lru_cache
def _version(package: str) -> str:
    """That of an installed package; read once, for every stage records it."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def environment() -> dict[str, Any]:
    """What a number depends on besides its configuration: versions, device, threads, commit."""
    return {
        "versions": {"python": platform.python_version()} | {package: _version(package) for package in PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "git_commit": git_commit(),
    }


def _peak_memory_bytes() -> dict[str, int]:
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if torch.cuda.is_available():
        peak["device"] = torch.cuda.max_memory_allocated()
    return peak


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a stage, by its path below `folder`; hidden files are half-written ones of a killed run."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def is_finished(folder: Path | str, configuration: Any) -> bool:
    """Whether the stage in `folder` is complete and its files are those it was finished with.

    Damaged or missing files are named in a warning, the manifest among them, and the stage counts as unfinished.

    Raises:
        ArtifactError: the folder holds a stage of another configuration.
    """
    folder = Path(folder)
    manifest = read_sealed(folder / MANIFEST)
    if manifest is None:
        return False
    check_same(manifest.get("configuration"), configuration, folder)
    if not manifest.get("finished"):
        return False
    found = file_digests(folder)
    damaged = sorted(name for name, digest in manifest["files"].items() if found.get(name) != digest)
    if damaged:
        warnings.warn(f"{folder}: {first_few(damaged)} missing or damaged; the stage is redone", stacklevel=2)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
        return False
    note(folder / MANIFEST)
    return True


@contextmanager
def stage(
    folder: Path | str,
    configuration: Any,
    *,
    name: str,
    force: bool = False,
    how: Mapping[str, Any] | None = None,
    wait: bool = True,
) -> Iterator[bool]:
    """Run a stage once: `with stage(...) as needed: if needed: ...`.

    Yields False when the stage is already finished with this very configuration. Otherwise yields True, and when the
    body ends without an error, records the digests of the files it left. A body that was killed is simply entered
    again by the next call; it may find its own checkpoints in the folder. Of two processes that ask for the same stage,
    one makes it and the other waits.

    Args:
        configuration: everything the files depend on (dataclasses and plain values).
        force: delete what another configuration left, and redo.
        how: what the files depend on by their rounding alone, such as a route that was taken; recorded, not compared.
        wait: for another process that makes this stage.

    Raises:
        ArtifactError: the folder holds a stage of another configuration.
        ConfigurationError: the folder cannot be written.
        filelock.Timeout: another process makes this stage, and `wait` is False.
    """
    folder = ensure_writable(folder)
    with FileLock(folder.with_name(f".{folder.name}.lock")).acquire(blocking=wait):
        if force:
            shutil.rmtree(folder)
            folder.mkdir()
        if is_finished(folder, configuration):
            yield False
        else:
            yield from _recorded(folder, configuration, name, dict(how or {}))


def _remove_half_written(folder: Path) -> None:
    """Delete what killed writers left: our own `.part` files, and those of libraries under names of their own."""
    for path in folder.rglob(".*"):
        if path.is_file() and path.suffix != ".lock":
            path.unlink(missing_ok=True)


def _recorded(folder: Path, configuration: Any, name: str, how: dict[str, Any]) -> Iterator[bool]:
    """Yield True once, with a manifest written before and another after."""
    resumed = (folder / MANIFEST).exists()
    before = _quietly_read(folder / MANIFEST).get("how", how)
    record = {"stage": name, "configuration": plain(configuration), "finished": False}
    record["configuration_digest"] = json_digest(record["configuration"])
    record |= {"how": how | ({} if before == how else {"begun": before})} if how else {}
    write_sealed(folder / MANIFEST, record)
    started = time.monotonic()
    yield True
    _remove_half_written(folder)
    measured = {"wall_seconds": round(time.monotonic() - started, 3), "peak_memory_bytes": _peak_memory_bytes()}
    record |= {"finished": True, "files": file_digests(folder), "environment": environment()}
    record["measured"] = measured | {"resumed": resumed, "processors": os.cpu_count()}
    write_sealed(folder / MANIFEST, record)
    note(folder / MANIFEST)


def _quietly_read(manifest: Path) -> dict[str, Any]:
    """A manifest that was looked at before; one that is damaged says nothing."""
    with warnings.catch_warnings(action="ignore"):
        return read_sealed(manifest) or {}


def show_versions() -> None:
    """Print what this process runs on: versions, device, threads, commit."""
    made = environment()
    print(" · ".join(f"{package} {number}" for package, number in made["versions"].items()))
    print(f"{made['platform']} · {made['device']} · {made['threads']} thread(s) · commit {made['git_commit']}")
