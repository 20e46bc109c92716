"""Fashion: 70,000 articles of clothing of ten classes, 28×28 grey (Fashion-MNIST: Xiao, Rasul & Vollgraf 2017).

A few hundred sneakers and bags of it lie beside this module, so that the preset `fashion` needs no other file.
"""

import gzip
import hashlib
import math
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from diffinf_lib.artifacts import data_root, read_arrays, write_arrays
from diffinf_lib.configuration import DatasetConfig
from diffinf_lib.data.download import fetch
from diffinf_lib.data.images import Dataset, ImageSet, to_unit_range
from diffinf_lib.data.selection import order_by_id, select
from diffinf_lib.errors import DataError, DownloadError, require, room_needed

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CONTENTS = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""The original files and the MD5 of each, unpacked."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` puts the original files."""

SHIPPED_CONFIG = DatasetConfig("fashion", classes=("Sneaker", "Bag"), train_size=400, query_size=64)
SHIPPED = Path(__file__).parent / "static" / "fashion.npz"
"""The images of `SHIPPED_CONFIG` and their places in the original files: `<size>/pixels`, `/targets` and `/ids`."""
_SIZES = ("train_size", "query_size")


class Part(NamedTuple):
    """Images of the training or the test file with their classes and ids."""

    pixels: UInt8[Tensor, "n 28 28"]
    targets: Int[Tensor, "n"]
    ids: Int[Tensor, "n"]


def fashion_dataset(config: DatasetConfig) -> Dataset:
    """Fashion-MNIST, or some classes of it; training images and queries are from the training and the test file.

    An image's id is its place in the training file; those of the test file follow after 60,000. Which images are chosen
    depends on id and seed only: fewer are always some of those that more would be. What asks for no more than the
    sneakers and bags that ship with the library reads those; anything else the original files, from
    `FashionMNIST/raw/` below the data folder, where torchvision keeps them, else from Debian's folder, else by download.

    Raises:
        DownloadError: the files are missing and cannot be downloaded.
        DataError: more images asked for than there are, or unknown classes.
    """
    classes = CLASSES if config.classes is None else tuple(map(str, config.classes))
    unknown = [name for name in classes if name not in CLASSES]
    require(
        not unknown, f"classes: {', '.join(unknown)} not in Fashion-MNIST; give some of {', '.join(CLASSES)}", DataError
    )
    numbers = [CLASSES.index(name) for name in classes]
    parts = shipped_parts() if _ships(config, classes) else original_parts()
    train, queries = (
        _chosen(part, numbers, size, what, config)
        for part, size, what in zip(parts, (config.train_size, config.query_size), _SIZES, strict=True)
    )
    return Dataset("fashion", train, queries, classes, split="queries are test images")


def _chosen(part: Part, numbers: Sequence[int], size: int | None, what: str, config: DatasetConfig) -> ImageSet:
    pixels, targets, ids = (values[torch.isin(part.targets, torch.tensor(numbers))] for values in part)
    order = order_by_id(ids, seed=config.seed, what=what)
    places = select(targets, size, order=order, stratified=config.stratified, what=what, class_names=CLASSES)
    labels = torch.tensor([numbers.index(number) for number in targets[places].tolist()])
    return ImageSet(to_unit_range(pixels[places]).unsqueeze(1), labels, ids[places])


def _ships(config: DatasetConfig, classes: Sequence[str]) -> bool:
    """Whether the images of a configuration are among those that ship with the library."""
    held, kinds = SHIPPED_CONFIG, len(set(classes))
    sizes = ((config.train_size, held.train_size), (config.query_size, held.query_size))
    return (
        (config.seed, config.stratified) == (held.seed, held.stratified)
        and set(classes) <= set(map(str, held.classes or ()))
        and all(size and most and math.ceil(size / kinds) <= most // len(held.classes or ()) for size, most in sizes)
    )


def shipped_parts() -> tuple[Part, Part]:
    """The training images and the queries of `SHIPPED_CONFIG`, as they ship with the library."""
    arrays = read_arrays(SHIPPED)
    train, queries = (Part(*(torch.from_numpy(arrays[f"{what}/{name}"]) for name in Part._fields)) for what in _SIZES)
    return train, queries


def write_shipped(path: Path = SHIPPED) -> None:
    """Choose the images of `SHIPPED_CONFIG` from the original files and write them, without anything of the rest."""
    config = SHIPPED_CONFIG
    arrays: dict[str, np.ndarray] = {}
    numbers = [CLASSES.index(str(name)) for name in config.classes or ()]
    for part, size, what in zip(original_parts(), (config.train_size, config.query_size), _SIZES, strict=True):
        chosen = torch.isin(part.ids, _chosen(part, numbers, size, what, config).ids)
        arrays |= {f"{what}/{name}": values[chosen].numpy() for name, values in part._asdict().items()}
    write_arrays(path, **arrays)


def original_parts() -> tuple[Part, Part]:
    """All 60,000 training and 10,000 test images, read by torchvision from the original files.

    Raises:
        DownloadError: a file is missing and cannot be downloaded, or is damaged.
    """
    from torchvision.datasets import FashionMNIST  # takes longer to load than everything else here

    folder = data_root() / "FashionMNIST" / "raw"
    if not folder.exists() and all((DEBIAN / f"{name}.gz").exists() for name in CONTENTS):
        folder = DEBIAN
    with tempfile.TemporaryDirectory() as temporary, room_needed(temporary):
        raw = Path(temporary) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for (packed, digest), name in zip(FashionMNIST.resources, CONTENTS, strict=True):
            path = folder / packed
            if not path.exists():
                fetch(f"{FashionMNIST.mirrors[0]}{packed}", path, digest, instead=_instead(folder))
            (raw / name).write_bytes(_unpacked(path, CONTENTS[name]))
        train, test = (FashionMNIST(temporary, train=part) for part in (True, False))
    count = len(train.data)
    return (
        Part(train.data, train.targets, torch.arange(count)),
        Part(test.data, test.targets, torch.arange(count, count + len(test.data))),
    )


def _unpacked(path: Path, digest: str) -> bytes:
    """The content of a file, checked; the same content may be packed in other bytes, as Debian does."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DownloadError(f"{path}: damaged ({error}); delete it and run again") from None
    found = hashlib.md5(content).hexdigest()
    require(
        found == digest, f"{path}: its content's md5 is {found}, not {digest}; delete it and run again", DownloadError
    )
    return content


def _instead(folder: Path) -> str:
    return (
        f"place {', '.join(f'{name}.gz' for name in CONTENTS)} in {folder}, or install Debian's dataset-fashion-mnist"
    )
