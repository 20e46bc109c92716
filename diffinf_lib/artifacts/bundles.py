"""Bundles: what a run leaves for the book, small enough to commit.

A bundle is a folder under `book/results/` with `metrics.json` (numbers to print), `arrays.npz` (what figures and scores
are computed from) and `manifest.json` (configuration, seeds, versions, commit, digests of the other two and of itself).
All three are checked whenever a bundle is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffinf_lib.artifacts.arrays import read_arrays, write_arrays
from diffinf_lib.artifacts.comparison import plain
from diffinf_lib.artifacts.files import (
    ensure_writable,
    file_digest,
    json_digest,
    read_json,
    unsealed,
    write_json,
    write_sealed,
)
from diffinf_lib.artifacts.manifest import environment
from diffinf_lib.artifacts.noted import note
from diffinf_lib.artifacts.paths import benchmarks_root, results_root
from diffinf_lib.errors import ArtifactError, require

_CONTENTS = ("arrays.npz", "metrics.json")
RESTORE = "restore it from the repository or make the bundle again"
SIZE_LIMIT = 1_000_000
"""Bundles are committed; one larger than this many bytes is refused."""


@dataclass(frozen=True)
class Bundle:
    """A bundle read back: its arrays, its metrics, and where they came from."""

    name: str
    arrays: dict[str, np.ndarray]
    metrics: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def provenance(self) -> str:
        """Two lines for the page: which bundle, from which commit and configuration; on what, with which versions."""
        made = self.manifest["environment"]
        return (
            f"{self.name} · commit {made['git_commit']} · configuration {self.manifest['configuration_digest'][:12]}\n"
            f"{made['device']}, {made['threads']} thread(s) · torch {made['versions']['torch']}, "
            f"diffusers {made['versions']['diffusers']}"
        )


def write_bundle(
    name: str,
    arrays: Mapping[str, np.ndarray],
    metrics: Mapping[str, Any],
    configuration: Any,
    *,
    made_in: dict[str, Any] | None = None,
    root: Path | str | None = None,
) -> Path:
    """Write a bundle and return its folder.

    Args:
        configuration: everything the arrays depend on, seeds included.
        made_in: the environment of the computation, when it was not this process.
        root: folder of bundles; default `book/results/`.
    """
    folder = ensure_writable(Path(root or results_root()) / name)
    write_arrays(folder / "arrays.npz", **arrays)
    write_json(folder / "metrics.json", plain(metrics))
    size = sum((folder / file).stat().st_size for file in _CONTENTS)
    require(size < SIZE_LIMIT, f"bundle {name}: {size} bytes; keep it under {SIZE_LIMIT} by leaving arrays out")
    shared = _without_places(plain(configuration))
    manifest = {
        "bundle": name,
        "configuration": shared,
        "configuration_digest": json_digest(shared),
        "environment": made_in or environment(),
        "files": {file: file_digest(folder / file) for file in _CONTENTS},
    }
    write_sealed(folder / "manifest.json", manifest)
    note(folder / "manifest.json")
    return folder


def _without_places(value: Any) -> Any:
    """A plain configuration in which `folder:/where/ever/photos` is `folder:photos`: bundles leave their machine."""
    if isinstance(value, dict):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return f"folder:{Path(value).name}" if isinstance(value, str) and value.startswith("folder:/") else value


def load_bundle(name: str, *, root: Path | str | None = None) -> Bundle:
    """Read a bundle by name.

    Raises:
        ArtifactError: there is none of that name, or a file is not the one its manifest tells of.
    """
    folder = Path(root or results_root()) / name
    if not (folder / "manifest.json").exists():
        known = sorted(path.parent.name for path in folder.parent.glob("*/manifest.json"))
        raise ArtifactError(f"bundle={name!r}: none of that name; there are: {', '.join(known) or 'none'}")
    manifest = _manifest(folder)
    for file in _CONTENTS:
        found = file_digest(folder / file) if (folder / file).exists() else "missing"
        require(
            found == manifest["files"][file],
            f"{folder / file}: not the file its manifest tells of; {RESTORE}",
            ArtifactError,
        )
    return Bundle(name, read_arrays(folder / "arrays.npz"), read_json(folder / "metrics.json"), manifest)


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = unsealed(folder / "manifest.json")
    except ArtifactError:
        manifest = {}
    whole = isinstance(manifest.get("files"), dict) and manifest["files"].keys() >= set(_CONTENTS)
    require(whole, f"{folder / 'manifest.json'}: damaged; {RESTORE}", ArtifactError)
    return manifest


def load_benchmark(name: str, *, root: Path | str | None = None) -> dict[str, Any]:
    """What a benchmark left: `settings`, `results` and the `environment` it was run in.

    Raises:
        ArtifactError: there is none of that name; the message lists those there are.
    """
    path = Path(root or benchmarks_root()) / f"{name}.json"
    known = sorted(path.stem for path in path.parent.glob("*.json"))
    require(
        path.exists(), f"benchmark={name!r}: none of that name; there are: {', '.join(known) or 'none'}", ArtifactError
    )
    return dict(read_json(path))
