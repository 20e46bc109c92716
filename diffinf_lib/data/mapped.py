"""Mapped: tensors too large for memory, in a file of which only the parts in use are read.

A mapped tensor is a tensor like any other. Its pages come from the file when they are asked for, and the system drops them
again when memory gets short; what is written to them stays in memory and never reaches the file.
"""

import hashlib
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts.files import ensure_writable, read_sealed, write_sealed
from diffinf_lib.artifacts.manifest import stage
from diffinf_lib.artifacts.paths import data_root
from diffinf_lib.errors import room_needed

LARGEST_IN_MEMORY = 1 << 30
"""Bytes up to which images are held in memory; more are mapped."""
ROWS_AT_ONCE = 16
"""Rows that are made at a time where nothing else is asked for."""
ROWS, PROGRESS = "rows.npy", "progress.json"

Maker = Callable[[int, int], Float[Tensor, "parts n ..."]]
"""Makes the rows from one position up to another."""


def kept_rows(
    folder: Path, identity: Any, shape: tuple[int, ...], make: Maker, *, name: str, at_once: int = ROWS_AT_ONCE
) -> Float[Tensor, "parts N ..."]:
    """A mapped tensor `[parts, N, ...]`, float32, made `at_once` rows at a time by the first call and then read.

    A killed call is gone on with from the last rows that are whole, once all up to there are those that were written.

    Args:
        identity: all that the rows depend on.
        name: of the stage, for its manifest.
    """
    with stage(folder, identity, name=name) as needed:
        if needed:
            _make(folder, shape, make, at_once)
    return mapped(folder / ROWS)


def mapped(file: Path) -> Tensor:
    """An array of NumPy's format as a mapped tensor."""
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def _make(folder: Path, shape: tuple[int, ...], make: Maker, at_once: int) -> None:
    file, progress = folder / ROWS, folder / PROGRESS
    done, content = _kept_so_far(folder, at_once)
    if not done:
        file.unlink(missing_ok=True)  # who has mapped an earlier one goes on with that
    with room_needed(folder):
        kept = np.lib.format.open_memmap(
            file, mode="r+" if done else "w+", dtype=np.float32, shape=None if done else shape
        )
        if not done:
            _reserve(file)
        for start in range(done, shape[1], at_once):
            stop = min(start + at_once, shape[1])
            kept[:, start:stop] = make(start, stop).numpy()
            kept.flush()
            content = _content(kept[:, start:stop], content)
            write_sealed(progress, {"rows": stop, "content": content})
    progress.unlink()


def _kept_so_far(folder: Path, at_once: int) -> tuple[int, str]:
    """How many rows are there, and the digest of them all; none where they are not the rows that were written."""
    told, file = read_sealed(folder / PROGRESS), folder / ROWS
    if told is None or not file.exists():
        return 0, ""
    with suppress(Exception):  # NumPy reads the header as code: damage there may raise anything
        rows, content = np.load(file, mmap_mode="r"), ""
        for start in range(0, told["rows"], at_once):
            content = _content(rows[:, start : min(start + at_once, told["rows"])], content)
        if content == told.get("content", content):  # of before, rows alone were told
            return told["rows"], content
    warnings.warn(f"{file}: damaged; its rows are made again", stacklevel=2)
    return 0, ""


def _content(rows: np.ndarray, before: str) -> str:
    """The digest of some rows and all before them."""
    return hashlib.sha256(before.encode() + np.ascontiguousarray(rows).tobytes()).hexdigest()


def _reserve(file: Path) -> None:
    """Take the disk's space now: writing to a mapped file on a full disk would end the process without a word."""
    with open(file, "r+b") as opened:
        os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)


def rows_at(rows: Float[Tensor, "N ..."], index: Any) -> Float[Tensor, "n ..."]:
    """`rows[index]`; in a nameless file where that would take too much memory, which is gone when the tensor is."""
    if isinstance(index, slice):
        return rows[index]
    places = torch.arange(len(rows))[index]
    shape = (len(places), *rows.shape[1:])
    if math.prod(shape) * rows.element_size() <= LARGEST_IN_MEMORY:
        return rows[places]
    folder = ensure_writable(data_root())
    with room_needed(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=".rows-") as file:
        os.posix_fallocate(file.fileno(), 0, math.prod(shape) * rows.element_size())
        found = torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=rows.dtype).view(shape)
    at_once = max(1, (LARGEST_IN_MEMORY // 16) * len(places) // (math.prod(shape) * rows.element_size()))
    for part, chosen in zip(found.split(at_once), places.split(at_once), strict=True):
        torch.index_select(rows, 0, chosen, out=part)
    return found
