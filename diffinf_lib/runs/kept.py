"""Kept results: a folder each, filed under all that they depend on, computed once and then read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from diffinf_lib.artifacts import (
    json_digest,
    plain,
    read_arrays,
    read_json,
    read_tensors,
    stage,
    write_arrays,
    write_tensors,
)
from diffinf_lib.artifacts.manifest import MANIFEST

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kept:
    """A place for one result in a run.

    The folder's name ends in the digest of the identity: what depends on something else lies elsewhere and is never read
    instead.

    Attributes:
        stage: the folder in the run, such as `scores`.
        identity: all that the result depends on, as plain values.
        label: what people see of the folder's name, before the digest.
    """

    root: Path
    stage: str
    identity: Any
    label: str = ""

    @property
    def folder(self) -> Path:
        """Where the result lies."""
        digest = json_digest(plain(self.identity))[:12]
        return self.root / self.stage / (f"{self.label}-{digest}" if self.label else digest)

    @property
    def manifest(self) -> dict[str, Any]:
        """How the result came about."""
        return dict(read_json(self.folder / MANIFEST))

    @property
    def seconds(self) -> float:
        """What it took."""
        return float(self.manifest["measured"]["wall_seconds"])

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return (self.folder / MANIFEST).exists() and bool(self.manifest["finished"])

    def arrays(self, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """What `compute` gives, by the first call; kept as `<stage>.npz`."""
        file = self.folder / f"{self.stage}.npz"
        with stage(self.folder, self.identity, name=self.stage) as needed:
            if needed:
                write_arrays(file, **compute())
        return read_arrays(file)

    def tensors(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The same for large tensors, kept as `<stage>.safetensors`."""
        file = self.folder / f"{self.stage}.safetensors"
        with stage(self.folder, self.identity, name=self.stage) as needed:
            if needed:
                write_tensors(file, compute())
        return read_tensors(file)
