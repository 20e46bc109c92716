"""Images: a set of images with labels and stable ids, and a dataset of training images and queries."""

import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real, Shaped
from torch import Tensor

from diffinf_lib.artifacts.arrays import tensor_digest
from diffinf_lib.data.mapped import rows_at
from diffinf_lib.errors import DataError, require
from diffinf_lib.shapes import Ids, Images, ImageShape

Selection = Int[Tensor, "n"] | Bool[Tensor, "N"] | slice | list[int]
"""Which images of a set: positions, a mask that is True for them, or a slice."""

BRIGHTEST = 64.0
"""Images without a negative pixel that go beyond this are 0…255, not yet scaled; latents reach far out, but to both sides."""

DECODED_AT_ONCE = 16
"""Latents a pass of the decoder."""

SUMMED_AT_ONCE = 256
"""Images whose bits are summed at a time."""

SEVERAL_IMAGES, SEVERAL_PIXELS = 4, 100
"""From so many on, a set without a pixel darker than grey is hardly one of [−1, 1]; a single bright image may be."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in [−1, 1] with what identifies them; samples may lie slightly outside, latents further.

    Attributes:
        images: `[N, C, H, W]`, floating point.
        labels: index into the dataset's class names, `[N]`; −1 for none.
        ids: unique and stable, `[N]`; draws are keyed by them.
        names: of the files they come from, relative to their folder, with `/`; None where there are none.

    Several images that all lie in [0, 1] are taken as they are, with a warning: they look as if they were not yet scaled.

    Raises:
        DataError: counts or shapes do not fit, labels or ids are no whole numbers, or pixels are whole numbers, not finite, or
            evidently 0…255.
    """

    images: Images
    labels: Int[Tensor, "N"]
    ids: Ids
    names: tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require(self.images.ndim == 4, f"images of shape {tuple(self.images.shape)}: give [N, C, H, W]", DataError)
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            kind, whole = _called(values.dtype), not values.is_floating_point() and values.dtype != torch.bool
            require(
                whole and values.ndim == 1,
                f"{name} of type {kind}, shape {tuple(values.shape)}: give whole numbers [N]",
                DataError,
            )
        counts = (len(self.images), len(self.labels), len(self.ids))
        require(len(set(counts)) == 1, f"{counts} images, labels and ids: give as many of each", DataError)
        require(len(self.ids.unique()) == len(self.ids), "ids: each image needs an id of its own", DataError)
        named = self.names is None or len(self.names) == len(self.ids)
        require(
            named, f"{len(self.names or ())} names of {len(self.ids)} images: give one for each, or None", DataError
        )
        self._check_pixels()

    def _check_pixels(self) -> None:
        kind, scale = self.images.dtype, "scale them to [−1, 1], 0…255 by diffinf_lib.data.to_unit_range"
        require(kind.is_floating_point, f"images of type {_called(kind)}: {scale}", DataError)
        if not self.images.numel():
            return
        low, high = (float(extreme) for extreme in self.images.detach().aminmax())
        if not np.isfinite([low, high]).all():
            position = int(self.images.isfinite().flatten(1).all(1).logical_not().nonzero()[0])
            raise DataError(
                f"images: {self.describe(position)} has pixels that are not finite; leave it out or make it anew"
            )
        require(low < 0 or high <= BRIGHTEST, f"images: pixels from {low:g} to {high:g}; {scale}", DataError)
        several = len(self) >= SEVERAL_IMAGES and self.images.numel() >= SEVERAL_PIXELS
        if several and 0 <= low < high <= 1:
            warnings.warn(f"images: all pixels of {len(self)} images lie between {low:g} and {high:g}, and are taken as of "
                          "[−1, 1], where 0 is grey; if 0 is black, give 2 * images - 1", stacklevel=4)  # fmt: skip

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {len(self)} images of {_times(self.shape)}"

    @property
    def shape(self) -> ImageShape:
        """(C, H, W) of one image."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def describe(self, position: int) -> str:
        """The image at this position as messages call it: by its file's name where it has one, else by its id."""
        return self.names[position] if self.names is not None else f"the image with id {int(self.ids[position])}"

    def names_at(self, index: Selection) -> tuple[str, ...] | None:
        """The names of the images at these positions, or where a mask is True."""
        if self.names is None:
            return None
        return tuple(self.names[position] for position in torch.arange(len(self))[index].flatten().tolist())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that is computed with, names left out: whatever is kept of the set is filed under this."""
        return tensor_digest(*(value for value in vars(self).values() if isinstance(value, Tensor)))

    def subset(self, index: Selection) -> "ImageSet":
        """The images at these positions, or where a mask is True."""
        return ImageSet(rows_at(self.images, index), self.labels[index], self.ids[index], names=self.names_at(index))

    def for_training(self, index: Tensor, mirror: Tensor | None, generator: torch.Generator) -> Tensor:
        """Some images as a step of training takes them, those mirrored where `mirror` is True, `[B, C, H, W]`.

        Args:
            generator: of whatever a set draws besides.
        """
        batch = self.images[index]
        return batch if mirror is None else torch.where(mirror.view(-1, 1, 1, 1), batch.flip(-1), batch)

    def identifiers(self, prefix: str) -> dict[str, Shaped[np.ndarray, "N"]]:
        """Ids, and names where there are any, as arrays to be kept beside results: `<prefix>ids`, `<prefix>names`."""
        named = {} if self.names is None else {f"{prefix}names": np.array(self.names, dtype=str)}
        return {f"{prefix}ids": self.ids.numpy(), **named}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images and queries; their ids never meet.

    Attributes:
        split: how queries were told from training images, for people.
        notes: what was decided about the images on the way, in plain sentences.
        autoencoder: folder or hub id of what made latents of the images; None where they are pixels.
    """

    name: str
    train: ImageSet
    queries: ImageSet
    class_names: tuple[str, ...]
    split: str = field(default="", kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    autoencoder: str | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        lines = [f"{self.name}: images of {_times(self.train.shape)}"]
        for title, part in (("training images", self.train), ("queries", self.queries)):
            lines.append(f"  {len(part)} {title} ({self._counts(part)})")
        lines += [f"  split: {self.split}"] if self.split else []
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _counts(self, part: ImageSet) -> str:
        counts = Counter(part.labels.tolist())
        return ", ".join(f"{self.class_names[i] if i >= 0 else 'no class'}: {counts[i]}" for i in sorted(counts))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels and ids of both sets."""
        parts = (self.train, self.queries)
        return tensor_digest(*(tensor for part in parts for tensor in (part.images, part.labels, part.ids)))

    def pixels(self, images: ImageSet) -> Images:
        """The pictures that images of this dataset stand for, or samples of a model of it: themselves, or decoded latents."""
        return self.pictures(images.images)

    def pictures(self, images: Images) -> Float[Tensor, "N _C _H _W"]:
        """The same of some of them as tensors."""
        if self.autoencoder is None:
            return images
        from diffinf_lib.autoencoder import load_autoencoder  # it stands above data, and few datasets need one

        decode = load_autoencoder(self.autoencoder).decode
        return torch.cat([decode(part) for part in images.split(DECODED_AT_ONCE)])

    def repeated_queries(self) -> list[int]:
        """Positions of queries that are pixel for pixel one of the training images."""
        train, queries = (_sums_of_bits(part.images) for part in (self.train, self.queries))
        suspects = torch.nonzero(torch.isin(queries, train)).flatten().tolist()  # equal images have equal sums
        return [
            place
            for place in suspects
            if (self.train.images[train == queries[place]] == self.queries.images[place]).flatten(1).all(1).any()
        ]


def _sums_of_bits(images: Images) -> Int[Tensor, "N"]:
    parts = images.split(SUMMED_AT_ONCE)  # torch makes a copy of what it sums into another type
    return torch.cat([part.contiguous().view(torch.int32).flatten(1).sum(1, dtype=torch.int64) for part in parts])


def _called(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def _times(shape: ImageShape) -> str:
    return "×".join(map(str, shape))


def to_unit_range(pixels: Real[Tensor, "*shape"], maximum: float = 255.0) -> Float[Tensor, "*shape"]:
    """Pixels 0..`maximum` as float32 in [−1, 1]."""
    return pixels.to(torch.float32) * (2.0 / maximum) - 1.0
