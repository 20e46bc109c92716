"""Pieces: what is read from gradients that stream past, a piece for every shard of them, so that a killed reading goes on.

What is read of a shard (its scores for all queries, say) is small beside the shard. Kept on disk piece by piece, it lets
gradients be computed, read and forgotten, and none of them twice.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffinf_lib.artifacts import plain, read_part, write_part
from diffinf_lib.compression import Tensors
from diffinf_lib.gradients.sets import GradientSet, LayerGradients, Projections
from diffinf_lib.settings import own_settings

Read = Callable[[LayerGradients | Projections], Tensors]


@own_settings
def pieces(
    gradients: GradientSet, read: Read, *, up_to: float | None = None, folder: Path | None = None, identity: Any = None
) -> Iterator[tuple[slice, Tensors]]:
    """What `read` takes of each shard, in order, and which rows it is of.

    With a folder each piece is kept there. Those that are there already are read instead, up to the first that is missing or
    damaged; gradients are computed from there on. A reading that was killed ends with the bits of one that was not.

    Args:
        read: what is wanted of one shard, as tensors with a row for each gradient.
        up_to: bytes of gradients that are read together.
        identity: all that the pieces depend on, as plain values; pieces of something else are not taken.
    """
    identity, row = plain(identity), 0
    while folder is not None and (kept := _kept(folder, row, identity)) is not None:
        rows, tensors = kept
        yield rows, tensors
        row = rows.stop
    if row == gradients.count:
        return
    for rows, shard in gradients.shards(up_to, first=row):
        tensors = {name: value.cpu() for name, value in read(shard).items()}
        del shard
        if folder is not None:
            write_part(_path(folder, rows.start), tensors, [identity, rows.start], {"stop": rows.stop})
        yield rows, tensors


def _path(folder: Path, row: int) -> Path:
    return folder / f"piece-{row:07d}.safetensors"


def _kept(folder: Path, row: int, identity: Any) -> tuple[slice, Tensors] | None:
    """The piece that begins with a row, if it is there, whole and of what is asked."""
    found = read_part(_path(folder, row), [identity, row], "it is made again, with those after it")
    return None if found is None else (slice(row, found[1]["stop"]), found[0])
