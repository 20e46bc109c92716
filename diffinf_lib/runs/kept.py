"""Kept results: a folder each, filed under all that they depend on, computed once and then read."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import Timeout
from torch import Tensor

from diffinf_lib.artifacts import (
    json_digest,
    plain,
    read_arrays,
    read_sealed,
    read_tensors,
    stage,
    write_arrays,
    write_tensors,
)
from diffinf_lib.artifacts.manifest import MANIFEST, is_finished
from diffinf_lib.errors import ArtifactError, require

Arrays = Mapping[str, np.ndarray]
Key = TypeVar("Key")


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
        """How the result came about; nothing where it is not there or its manifest is damaged."""
        return read_sealed(self.folder / MANIFEST) or {}

    @property
    def seconds(self) -> float:
        """What it took; of what was made together with others, its share.

        Raises:
            ArtifactError: it is not there, or its manifest is damaged.
        """
        manifest = self.manifest
        require(bool(manifest.get("finished")), f"{self.folder}: missing, not finished, or its manifest is damaged; run the "
                "stage that makes it", ArtifactError)  # fmt: skip
        return float(manifest["measured"]["wall_seconds"]) / int(manifest.get("how", {}).get("together", 1))

    @property
    def finished(self) -> bool:
        """Whether the result is there."""
        return bool(self.manifest.get("finished"))

    @property
    def intact(self) -> bool:
        """Whether the result is there and its files are those it was finished with; see `is_finished`."""
        return is_finished(self.folder, self.identity)

    def arrays(self, compute: Callable[[], Arrays]) -> dict[str, np.ndarray]:
        """What `compute` gives, by the first call; kept as `<stage>.npz`."""
        with stage(self.folder, self.identity, name=self.stage) as needed:
            if needed:
                write_arrays(self.file("npz"), **compute())
        return read_arrays(self.file("npz"))

    def tensors(self, compute: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The same for large tensors, kept as `<stage>.safetensors`."""
        with stage(self.folder, self.identity, name=self.stage) as needed:
            if needed:
                write_tensors(self.file("safetensors"), compute())
        return read_tensors(self.file("safetensors"))

    def file(self, ending: str) -> Path:
        """Where arrays (`npz`) or tensors (`safetensors`) lie."""
        return self.folder / f"{self.stage}.{ending}"


def make_together(places: Mapping[Key, Kept], compute: Callable[[list[Key]], Mapping[Key, Arrays]]) -> list[Key]:
    """Arrays of several results at once, by `compute` where they are not there yet, each kept as by `Kept.arrays`.

    Returns:
        Those that another process is making, which are left to it: to wait for it with other results held open could be to
        wait for ever.
    """
    needed: list[Key] = []
    elsewhere: list[Key] = []
    with ExitStack() as stages:
        for key, one in places.items():
            opened = stage(one.folder, one.identity, name=one.stage, how={"together": len(places)}, wait=False)
            try:
                needed += [key] if stages.enter_context(opened) else []
            except Timeout:
                elsewhere.append(key)
        for key, arrays in (compute(needed) if needed else {}).items():
            write_arrays(places[key].file("npz"), **arrays)
    return elsewhere
