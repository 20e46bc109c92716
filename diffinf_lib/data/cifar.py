"""CIFAR: CIFAR-10 and its two-class part CIFAR-2, as integers or dequantised (Krizhevsky 2009)."""

import io
import pickle
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import data_root
from diffinf_lib.configuration import DatasetConfig
from diffinf_lib.data.download import fetch
from diffinf_lib.data.folder import dataset_from_folder
from diffinf_lib.data.images import Dataset, ImageSet, to_unit_range
from diffinf_lib.data.selection import random_order, select
from diffinf_lib.errors import DataError, require
from diffinf_lib.randomness import keyed_generator

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE = "cifar-10-python.tar.gz"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR2_CLASSES = ("automobile", "horse")


def cifar_dataset(config: DatasetConfig) -> Dataset:
    """CIFAR-10 or CIFAR-2 (cars and horses); queries are test images.

    Read from `cifar10/train/` and `cifar10/test/` (one folder a class) below the data folder where they are there, else
    from the archive, which is downloaded when it is missing. Names ending in `deq` add uniform noise, x → (255x + u)/256
    with u ~ U[0, 1), keyed by image id, so that a log-density is defined.

    Raises:
        DownloadError: the archive is missing and cannot be downloaded.
        DataError: more images asked for than there are, or unknown classes.
    """
    classes: tuple[str, ...] = CIFAR2_CLASSES if config.name.startswith("cifar2") else CLASSES
    classes = tuple(map(str, config.classes)) if config.classes is not None else classes
    unknown = [name for name in classes if name not in CLASSES]
    require(not unknown, f"classes: {', '.join(unknown)} not in CIFAR-10; give some of {', '.join(CLASSES)}", DataError)
    folder = data_root() / "cifar10"
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        found = dataset_from_folder(folder, replace(config, classes=classes), by_content=False)
    else:
        found = _from_archive(replace(config, classes=classes))
    if not config.name.endswith("deq"):
        return found
    return replace(found, train=dequantised(found.train), queries=dequantised(found.queries))


def dequantised(images: ImageSet, levels: int = 256) -> ImageSet:
    """Uniform noise of one grey level, keyed by image id: (255x + u)/256 for x in [0, 1], returned in [−1, 1]."""
    noise = [torch.rand(images.shape, generator=keyed_generator("dequantise", int(i))) for i in images.ids]
    quantised = ((images.images + 1) / 2 * (levels - 1)).round()
    return replace(images, images=(quantised + torch.stack(noise)) / levels * 2 - 1)


def _from_archive(config: DatasetConfig) -> Dataset:
    instead = f"place {ARCHIVE} in {data_root()}, or images in {data_root() / 'cifar10'}/train/CLASS and test/CLASS"
    archive = fetch(URL, data_root() / ARCHIVE, MD5, instead=instead)
    pixels, targets, train_count = read_archive(archive)
    assert config.classes is not None
    wanted = tuple(map(str, config.classes))
    numbers = [CLASSES.index(name) for name in wanted]
    sets = []
    for start, stop, size, what in [
        (0, train_count, config.train_size, "train_size"),
        (train_count, len(targets), config.query_size, "query_size"),
    ]:
        ids = torch.arange(start, stop)
        ids = ids[torch.isin(targets[ids], torch.tensor(numbers))]
        order = random_order(ids, seed=config.seed, what=what)
        ids = ids[select(targets[ids], size, order=order, stratified=config.stratified, what=what, class_names=CLASSES)]
        labels = torch.tensor([numbers.index(number) for number in targets[ids].tolist()])
        sets.append(ImageSet(to_unit_range(pixels[ids]), labels, ids))
    return Dataset(config.name, sets[0], sets[1], wanted, split="queries are test images")


class _ArrayUnpickler(pickle.Unpickler):
    """The archive's batches are pickled arrays; nothing else may come out of them."""

    _ALLOWED = frozenset({("numpy", "dtype"), ("numpy", "ndarray"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._ALLOWED or name == "_reconstruct":
            module = "numpy._core.multiarray" if name == "_reconstruct" else module
            return super().find_class(module, name)
        raise DataError(f"{ARCHIVE}: holds {module}.{name}, which is no image data; download it again")


def read_archive(archive: Path) -> tuple[Tensor, Tensor, int]:
    """Pixels `[n, 3, 32, 32]` uint8, labels `[n]` and the number of training images, which come first."""
    pixels, labels, train_count = [], [], 0
    with tarfile.open(archive) as tar:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        for name in names:
            member = tar.extractfile(f"cifar-10-batches-py/{name}")
            require(member is not None, f"{archive}: holds no {name}; download it again", DataError)
            assert member is not None
            batch = _ArrayUnpickler(io.BytesIO(member.read()), encoding="bytes").load()
            pixels.append(np.asarray(batch[b"data"]).reshape(-1, 3, 32, 32))
            labels += list(batch[b"labels"])
            train_count += len(batch[b"labels"]) if name != "test_batch" else 0
    return torch.from_numpy(np.concatenate(pixels)), torch.tensor(labels), train_count
