"""Datasets: which images, and how many."""

import os
from dataclasses import dataclass
from pathlib import Path

from diffinf_lib.artifacts.paths import resolved
from diffinf_lib.errors import DataError, require
from diffinf_lib.options import Options, PositiveInt

DATASETS = ("digits", "cifar2", "cifar10", "cifar2deq", "cifar10deq", "fashion", "artbench10", "folder:PATH")
"""The names there are; PATH stands for that of any folder of images."""

KNOWN_SIZES = {
    "cifar10": (50_000, 10_000),
    "cifar10deq": (50_000, 10_000),
    "cifar2": (10_000, 2_000),
    "cifar2deq": (10_000, 2_000),
    "artbench10": (50_000, 10_000),
    "fashion": (60_000, 10_000),
}
"""Training images and held-out images of datasets that are too large to be loaded to be counted."""


@dataclass(frozen=True)
class DatasetConfig(Options):
    """Which images, and how many of them.

    Attributes:
        name: `digits`, `cifar2`, `cifar10`, `cifar2deq`, `cifar10deq`, `fashion`, `artbench10`, or `folder:PATH`, kept with the
            folder's full path, so that it is the same however PATH was written.
        classes: keep these classes only, by name; a name that is a number, as the digits', is kept as that number.
        image_size: side in pixels to which a folder's images are brought.
        train_size: number of training images; None: all there are.
        query_size: number of queries; None: all there are.
        stratified: take the same number of images from each class, or draw them from all alike. Queries come from the
            classes as evenly as they have them.
        seed: of the choice of images, where there are more than asked for.
        autoencoder: folder or hub id of an `AutoencoderKL`, or of a pipeline with one, whose latents of the images are to be
            modelled; None: their pixels. For images in files only.
    """

    name: str
    classes: tuple[str | int, ...] | None = None
    image_size: PositiveInt | None = None
    train_size: PositiveInt | None = None
    query_size: PositiveInt | None = None
    stratified: bool = True
    seed: int = 0
    autoencoder: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(_number_or_name(each) for each in self.classes))
        once = self.classes is None or 0 < len(self.classes) == len(set(map(str, self.classes)))
        require(once, f"classes={self.classes}: give one or more, each once, or None for all")
        kind, colon, path = self.name.partition(":")
        of_folder, names = kind == "folder" and bool(colon), ", ".join(DATASETS)
        require(of_folder or self.name in DATASETS, f"dataset={self.name!r}: no such dataset; give one of {names}")
        require(not self.autoencoder or of_folder or self.name == "artbench10", f"autoencoder={self.autoencoder}: only images "
                f"in files are encoded, those of {self.name} are not; give folder:PATH")  # fmt: skip
        if of_folder:
            require(
                bool(path.strip()),
                f"dataset={self.name!r}: no path; give folder:PATH, folder:. for the current directory",
            )
            object.__setattr__(self, "name", f"folder:{resolved(path)}")

    @property
    def folder(self) -> Path | None:
        """PATH of `folder:PATH`; None for the datasets with names of their own.

        Raises:
            DataError: there is no folder.
        """
        kind, _, path = self.name.partition(":")
        if kind != "folder":
            return None
        require(
            not os.path.isfile(path), f"dataset={self.name}: that is a file; unpack it and give the folder", DataError
        )
        require(os.path.isdir(path), f"dataset={self.name}: there is no such folder; give folder:PATH of an image folder",
                DataError)  # fmt: skip
        return Path(path)


def _number_or_name(each: str | int) -> str | int:
    """A class in its one form: `"3"`, as a command line gives it, is 3; `"03"` stays the name of a folder."""
    return int(each) if isinstance(each, str) and each.isdecimal() and str(int(each)) == each else each
