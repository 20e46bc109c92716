"""Store: gradients in shards, computed when they are read; on disk they are computed once, damaged shards again."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from diffinf_lib.artifacts import (
    json_digest,
    plain,
    read_part,
    read_sealed,
    read_tensors,
    stage,
    tensor_digest,
    write_part,
)
from diffinf_lib.artifacts.manifest import MANIFEST
from diffinf_lib.compression import Compression, Tensors
from diffinf_lib.configuration import Expectation, Precision, StoreFormat, check_formats
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion import Denoiser, check_images, check_trajectories, require_denoiser
from diffinf_lib.gradients.compute import GRADIENT_BATCH, gradients_in_eigenbasis
from diffinf_lib.gradients.sets import GradientSet, from_row, images_of_shard
from diffinf_lib.options import check_counts, check_folders
from diffinf_lib.settings import own_settings


@own_settings
def gradients_of(
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    expectation: Expectation,
    *,
    store: Path | str | None = None,
    below: Path | str | None = None,
    store_format: StoreFormat | None = None,
    precision: Precision = "float32",
    batch_size: int = GRADIENT_BATCH,
    shard_size: int | None = None,
    progress: bool = False,
) -> GradientSet:
    """The gradients of an expectation at all images, in the eigenbasis of a curvature.

    Nothing is computed before they are read. Without a folder each reading computes them a shard at a time and forgets them
    (single use). With one they are computed once, kept as safetensors and read afterwards, memory-mapped (continual
    deployment); a killed store goes on after its last whole shard.

    Args:
        expectation: what is differentiated; `Expectation(draws)` is the training loss.
        store: folder to keep them in.
        below: folder in which they get one of their own, named by all that they depend on.
        store_format: how they are kept, also in memory; shards pass through it whether or not they are stored.
        precision: of the matrix products, see `diffinf_lib.precision`.
        batch_size: draws a pass; the result depends on it by rounding only.
        shard_size: images of one shard; default as many as `SHARD_BYTES` hold, at most 25. A store that is there keeps its own.

    Raises:
        ConfigurationError: the curvature was fitted to a model of other layers or weights, or the images lack what the
            expectation needs.
        ArtifactError: when they are read, `store` holds gradients of another configuration.
    """
    shapes = {name: block.shape for name, block in curvature.blocks(model).items()}
    curvature.check_fitted_to(model)
    check_images(images=images)
    check_trajectories(images, expectation.objective, require_denoiser(model).process)
    check_counts(shard_size=1 if shard_size is None else shard_size)
    check_folders(store=store, below=below)
    check_formats(store_format=store_format)
    curvature = curvature.to(model.device)
    each = model.dtype.itemsize * sum(outputs * inputs for outputs, inputs in shapes.values())
    source = _Source(
        model, curvature, images, expectation, Compression(curvature, store_format or StoreFormat()), precision, batch_size,
        shard_size or images_of_shard(each), progress, None if store is None else Path(store),
    )  # fmt: skip
    if below is not None:
        source.folder = Path(below) / f"{expectation.purpose}-{json_digest(source.identity())[:12]}"
    return GradientSet(
        len(images), shapes, source.shards, model.device, model.dtype, source.compression, source.identity, source.folder,
        images.ids, curvature.basis,
    )  # fmt: skip


@dataclass
class _Source:
    """Where the shards of a set come from."""

    model: Denoiser
    curvature: Curvature
    images: ImageSet
    expectation: Expectation
    compression: Compression
    precision: Precision
    batch_size: int
    shard_size: int
    progress: bool
    folder: Path | None
    _whole: bool = False

    @own_settings
    def shards(self, first: int) -> Iterator[tuple[slice, Tensors]]:
        """Each shard from a row on, as it is kept; those of a folder are made first, if they are not there."""
        if self.folder is not None:
            yield from from_row(self._kept(self.folder, first), first)
            return
        for where in tqdm(self._rows(first), desc=self.expectation.purpose, unit="shard", disable=not self.progress):
            yield where, self._computed(where)

    def _rows(self, first: int = 0) -> list[slice]:
        """The rows of each shard, cut from one of them on."""
        count, size = len(self.images), self.shard_size
        return [slice(start, min(start + size, count)) for start in range(first, count, size)]

    def _kept(self, folder: Path, first: int) -> Iterator[tuple[slice, Tensors]]:
        """The shards of a folder from that of a row on."""
        if not self._whole:  # the digests of a whole store are compared once
            self._make(folder)
            self._whole = True
        for index, where in enumerate(self._rows()):
            if where.stop > first:
                yield where, self._read(_path(folder, index))

    def _read(self, path: Path) -> Tensors:
        return {name: value.to(self.model.device) for name, value in read_tensors(path).items()}

    def _make(self, folder: Path) -> None:
        self.shard_size = _kept_shard_size(folder) or self.shard_size
        identity = self.identity() | {"shard_size": self.shard_size}
        with stage(folder, identity, name="gradients") as needed:
            quiet = not (self.progress and needed)
            for index, where in enumerate(
                tqdm(self._rows(), desc=self.expectation.purpose, unit="shard", disable=quiet)
            ):
                path, own = _path(folder, index), [identity, index]
                if needed and read_part(path, own, "the shard is computed again") is None:
                    write_part(path, self._computed(where), own)

    def _computed(self, where: slice) -> Tensors:
        gradients = gradients_in_eigenbasis(
            self.model, self.curvature, self.images.subset(where), self.expectation, batch_size=self.batch_size,
            precision=self.precision,
        )  # fmt: skip
        return self.compression.encode(gradients)

    def identity(self) -> dict[str, Any]:
        """Everything that the gradients depend on, as plain values; taken anew each time, for weights may change meanwhile."""
        told = [*self.model.conditions_of(self.images).values()]
        if isinstance(self.images, Trajectories) and self.expectation.objective.on_trajectories:
            told += [self.images.states, self.images.guesses]
        return {
            "gradients": plain(self.expectation),
            "precision": self.precision,
            "format": plain(self.compression.store_format),
            "model": self.model.identity,
            "curvature": self.curvature.digest,
            "images": tensor_digest(self.images.images, self.images.ids, *told),
        }


def _path(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.safetensors"


def _kept_shard_size(folder: Path) -> int | None:
    """The images of a shard of the store that is in a folder; it goes on with these, whatever a new one would have."""
    with warnings.catch_warnings(action="ignore"), suppress(KeyError, TypeError):  # the stage itself tells of damage
        return int((read_sealed(folder / MANIFEST) or {})["configuration"]["shard_size"])
    return None
