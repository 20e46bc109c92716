"""Folder: any folder of images as a dataset, with or without classes, with or without a test part."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from diffinf_lib.data.images import Dataset, DatasetConfig, ImageSet, to_unit_range
from diffinf_lib.data.selection import select
from diffinf_lib.errors import DataError, require
from diffinf_lib.randomness import keyed_generator

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
QUERY_SHARE = 0.16


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10: runs of digits compare as numbers."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(0, int(part), part) if part.isdigit() else (1, 0, part) for part in parts]


def list_images(folder: Path) -> list[Path]:
    """Every image file below a folder, relative to it, in natural order."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted((path.relative_to(folder) for path in found), key=natural_key)


def image_folder(config: DatasetConfig) -> Dataset:
    """A dataset from `folder:PATH`.

    PATH holds `train/` and `test/`, or the images of both together, from which queries are then held out; below, one
    folder a class, or no folders at all. An image's id is its place in the natural order of all files, train before
    test, whatever is selected afterwards. Images are RGB, or grey where all of them are.

    Raises:
        DataError: no such folder, no images there, an unreadable one, or images of several sizes without `image_size`.
    """
    folder = Path(config.name.partition(":")[2]).expanduser()
    require(not folder.is_file(), f"dataset={config.name}: that is a file; unpack it and give the folder", DataError)
    require(
        folder.is_dir(),
        f"dataset={config.name}: there is no such folder; give folder:PATH of an image folder",
        DataError,
    )
    return dataset_from_folder(folder, config)


def dataset_from_folder(folder: Path, config: DatasetConfig) -> Dataset:
    """As `image_folder`, for a folder that is known to be there."""
    parts = [list_images(folder / name) for name in ("train", "test")]
    split = all(parts)
    paths = (
        [Path(name) / p for name, part in zip(("train", "test"), parts, strict=True) for p in part] if split else None
    )
    paths = paths or list_images(folder)
    require(bool(paths), f"dataset={config.name}: no images in {folder}; it needs files ending in {', '.join(SUFFIXES[:3])}, …",
            DataError)  # fmt: skip
    ids = torch.arange(len(paths))
    names = [_class_of(path, split) for path in paths]
    class_names = tuple(sorted(set(names), key=lambda name: natural_key(Path(name))))
    if config.classes is not None:
        ids, class_names = _of_classes(ids, names, class_names, tuple(map(str, config.classes)), config.name)
    labels = torch.tensor([class_names.index(names[i]) for i in ids.tolist()])
    is_test = ids >= len(parts[0]) if split else _held_out(labels, config)
    train, queries = (
        ids[where][select(labels[where], size, stratified=config.stratified, seed=config.seed, what=what)]
        for where, size, what in [
            (~is_test, config.train_size, "train_size"),
            (is_test, config.query_size, "query_size"),
        ]
    )
    both = torch.cat([train, queries])
    pixels = read_images([folder / paths[i] for i in both.tolist()], config.image_size)
    all_labels = torch.tensor([class_names.index(names[i]) for i in both.tolist()])
    first, second = slice(0, len(train)), slice(len(train), None)
    sets = [ImageSet(pixels[part], all_labels[part], both[part]) for part in (first, second)]
    return Dataset(config.name, sets[0], sets[1], class_names)


def _class_of(path: Path, split: bool) -> str:
    """The folder right above the file, below `train` or `test`; images without one are all of one class."""
    folders = path.parts[int(split) : -1]
    return folders[0] if folders else "all"


def _of_classes(
    ids: Tensor, names: list[str], known: tuple[str, ...], wanted: tuple[str, ...], where: str
) -> tuple[Tensor, tuple[str, ...]]:
    missing = [name for name in wanted if name not in known]
    require(not missing, f"classes: {', '.join(missing)} not in {where}, which has {', '.join(known)}", DataError)
    return ids[torch.tensor([name in wanted for name in names])], wanted


def _held_out(labels: Tensor, config: DatasetConfig) -> Tensor:
    """Which images are queries where the folder has no test part: `query_size` of them, or a share."""
    size = config.query_size or max(1, round(QUERY_SHARE * len(labels)))
    require(
        size < len(labels), f"query_size={size}: there are {len(labels)} images; leave some for training", DataError
    )
    order = torch.randperm(len(labels), generator=keyed_generator("held-out", config.seed))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    mask[order[:size]] = True
    return mask


def read_images(paths: Sequence[Path], image_size: int | None) -> Tensor:
    """Decode images to `[N, C, H, W]` in [−1, 1]; with `image_size`, the central square scaled to that side.

    Raises:
        DataError: an image cannot be read, or sizes differ and no `image_size` is given.
    """
    arrays, first = [], None
    for path in paths:
        image = _open(path)
        if image_size is not None:
            image = _square(image, image_size)
        first = first or (path, image.size)
        require(image.size == first[1], f"{path.name} is {image.size[0]}×{image.size[1]}, {first[0].name} is "
                f"{first[1][0]}×{first[1][1]}: give image_size to bring them to one", DataError)  # fmt: skip
        arrays.append(image)
    grey = all(image.mode == "L" for image in arrays)
    stacked = np.stack([np.asarray(image if grey else image.convert("RGB")) for image in arrays])
    pixels = torch.from_numpy(stacked)
    return to_unit_range(pixels.unsqueeze(1) if grey else pixels.permute(0, 3, 1, 2)).contiguous()


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert("L") if image.mode in ("1", "L", "I;16") else image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        raise DataError(f"{path}: cannot be read as an image; remove or replace it") from None


def _square(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    box = (left, top, left + short, top + short)
    return image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
