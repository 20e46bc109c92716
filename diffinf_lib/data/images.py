"""Images: a set of images with labels and stable ids, and a dataset of training images and queries."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.artifacts.files import tensor_digest
from diffinf_lib.errors import DataError, require
from diffinf_lib.options import Options, PositiveInt
from diffinf_lib.shapes import ImageShape


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in [−1, 1] with what identifies them.

    Attributes:
        images: `[N, C, H, W]`, float32.
        labels: index into the dataset's class names, `[N]`; −1 for none.
        ids: unique and stable, `[N]`; draws are keyed by them.
    """

    images: Float[Tensor, "N C H W"]
    labels: Int[Tensor, "N"]
    ids: Int[Tensor, "N"]

    def __post_init__(self) -> None:
        require(self.images.ndim == 4, f"images of shape {tuple(self.images.shape)}: give [N, C, H, W]", DataError)
        counts = (len(self.images), len(self.labels), len(self.ids))
        require(len(set(counts)) == 1, f"{counts} images, labels and ids: give as many of each", DataError)
        require(len(self.ids.unique()) == len(self.ids), "ids: each image needs an id of its own", DataError)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> ImageShape:
        """(C, H, W) of one image."""
        return (self.images.shape[1], self.images.shape[2], self.images.shape[3])

    def subset(self, index: Tensor | slice | list[int]) -> "ImageSet":
        """The images at these positions, or where a mask is True."""
        return ImageSet(self.images[index], self.labels[index], self.ids[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training images and queries; their ids never meet."""

    name: str
    train: ImageSet
    queries: ImageSet
    class_names: tuple[str, ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over images, labels and ids of both sets."""
        parts = (self.train, self.queries)
        return tensor_digest(*(tensor for part in parts for tensor in (part.images, part.labels, part.ids)))

    def repeated_queries(self) -> list[int]:
        """Ids of queries that are pixel for pixel one of the training images."""
        train, queries = (_sums_of_bits(part.images) for part in (self.train, self.queries))
        suspects = torch.nonzero(torch.isin(queries, train)).flatten().tolist()  # equal images have equal sums
        return [
            int(self.queries.ids[place])
            for place in suspects
            if (self.train.images[train == queries[place]] == self.queries.images[place]).flatten(1).all(1).any()
        ]


def _sums_of_bits(images: Float[Tensor, "N C H W"]) -> Int[Tensor, "N"]:
    return images.contiguous().view(torch.int32).flatten(1).sum(1, dtype=torch.int64)


@dataclass(frozen=True)
class DatasetConfig(Options):
    """Which images, and how many of them.

    Attributes:
        name: `digits`, `cifar2`, `cifar10`, `cifar2deq`, `cifar10deq`, `artbench10`, or `folder:PATH`.
        classes: keep these classes only, by name or, for digits, by number.
        image_size: side in pixels to which a folder's images are brought.
        train_size: number of training images; None: all there are.
        query_size: number of queries; None: all there are.
        stratified: take the same number of training images from each class, or draw them from all alike.
        seed: of the choice of images, where there are more than asked for.
    """

    name: str
    classes: tuple[str | int, ...] | None = None
    image_size: PositiveInt | None = None
    train_size: PositiveInt | None = None
    query_size: PositiveInt | None = None
    stratified: bool = True
    seed: int = 0


def to_unit_range(pixels: Tensor, maximum: float = 255.0) -> Tensor:
    """Pixels 0..`maximum` as float32 in [−1, 1]."""
    return pixels.to(torch.float32) * (2.0 / maximum) - 1.0
