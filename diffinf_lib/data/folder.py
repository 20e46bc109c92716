"""Folder: any folder of images as a dataset, with or without classes, with or without a test part.

Which files count is decided in `data.files`, how one is read in `data.decoding` and `data.reading`; here, who is who. An
image's id comes from its file's content, so that adding, removing or renaming a file changes no other image's draws, and
hardly who is chosen or held out.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffinf_lib.artifacts import file_digest, json_digest, read_arrays, stage, write_arrays
from diffinf_lib.artifacts.paths import data_root, spelt_out
from diffinf_lib.configuration import DatasetConfig
from diffinf_lib.data.decoding import Remark
from diffinf_lib.data.files import ARCHIVES, NO_CLASS, FolderFiles, ImageFile, list_images, unicode_name
from diffinf_lib.data.images import Dataset, ImageSet
from diffinf_lib.data.latents import Latents
from diffinf_lib.data.mapped import kept_rows
from diffinf_lib.data.reading import ReadableImages, look_at_images, looked_at_before
from diffinf_lib.data.selection import even_shares, order_by_id, random_order, select, take
from diffinf_lib.errors import DataError, first_few, require
from diffinf_lib.options import PositiveInt, checked
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.shapes import Ids, Images

QUERY_SHARE = 0.16
FOUND = "found.npz"
FIRST_ID, LAST_ID = 10**14, 10**15 - 1
"""Ids of files have 15 digits: beyond those of other datasets and of samples, and exact in tables and scripts of any kind."""


@dataclass(frozen=True)
class FolderImages:
    """All images of a folder.

    Attributes:
        images: with names relative to the folder, ids by content, labels by subfolder.
        class_names: the subfolders in plain order, as torchvision counts them; `all` for images outside any.
        notes: what was skipped, turned, laid on white and so on, in plain sentences.
    """

    images: ImageSet
    class_names: tuple[str, ...]
    notes: tuple[str, ...]


def read_image_folder(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    image_size: int | None = None,
    channels: int | None = None,
) -> FolderImages:
    """Every image below a folder, in natural order, or every file of a list, as given and once; nothing is held out.

    Parts of a split (`train/`, `test/`) are read alike and are no classes.

    Args:
        image_size: side to which the central square of each image is scaled; None: as they are, all of one size.
        channels: 1 or 3; None: grey where all images are, else RGB.

    Raises:
        DataError: nothing there, a file that cannot be read, or images of several sizes without `image_size`.
    """
    found = _given_files(path)
    files = _LabelledFiles(found.files, _class_names(found.files), content_ids(found.files))
    images, notes = files.read(torch.arange(len(found.files)), image_size, channels)
    notes += (f"parts of a split, read alike: {_places(found.files)}",) if found.is_split else ()
    return FolderImages(images, files.class_names, (*found.notes, *notes))


def _given_files(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> FolderFiles:
    if isinstance(path, str | os.PathLike):
        folder = spelt_out(path)
        require(bool(os.fspath(path)), "images='': no path; give a folder of images, or files", DataError)
        if os.path.isdir(folder):
            return list_images(folder)
        path = [path]
    asked = [Path(os.path.abspath(spelt_out(file))) for file in path]
    require(bool(asked), "images: no files; give a folder of images, or some files", DataError)
    for file in asked:
        require(not os.path.isdir(file), f"{file}: that is a folder; give one folder alone, or files", DataError)
        require(
            file.suffix.lower() not in ARCHIVES, f"{file}: that is an archive; unpack it and give the folder", DataError
        )
        require(os.path.isfile(file), f"{file}: no such {'file' if len(asked) > 1 else 'folder or file'}", DataError)
    files = list(dict.fromkeys(asked))
    common = os.path.commonpath([file.parent for file in files])
    names = [unicode_name(file.relative_to(common).as_posix()) for file in files]
    twice = [name for file, name in zip(files, names, strict=True) if asked.count(file) > 1]
    notes = (f"given more than once, kept once: {first_few(twice)}",) if twice else ()
    return FolderFiles(tuple(ImageFile(*found, None, NO_CLASS) for found in zip(files, names, strict=True)), notes)


def image_folder(config: DatasetConfig) -> Dataset:
    """A dataset from `folder:PATH`.

    PATH holds `train/` and `test/` (or a validation part, which serves where there is no test), or images from which
    queries are then held out; below, one folder a class, or no folders at all. Images are RGB, or grey where all of them are.

    Raises:
        DataError: no such folder, no images there, an unreadable one, or images of several sizes without `image_size`.
    """
    assert config.folder is not None
    return dataset_from_folder(config.folder, config)


def dataset_from_folder(folder: Path, config: DatasetConfig, *, by_content: bool = True) -> Dataset:
    """As `image_folder`, for a folder that is known to be there.

    Args:
        by_content: ids by content; otherwise an image's id is its place among all files, train before test, which suits a
            dataset whose files never change.
    """
    listed = list_images(folder)
    training, testing, notes = _parts(listed, folder)
    every = (*training, *testing)
    ids = content_ids(every) if by_content else torch.arange(len(every))
    kept, class_names = _of_classes(every, config)
    files = _LabelledFiles([every[i] for i in kept.tolist()], class_names, ids[kept])
    if testing:
        is_query, split = kept >= len(training), f"queries are the images in {_places(testing)}"
    else:
        is_query = _held_out(files.labels, files.ids, config)
        split = f"{int(is_query.sum())} of {len(kept)} held out by a hash of id and seed {config.seed}"
        notes += () if config.query_size else (f"no test part: queries are {split}; dataset.query_size sets how many",)
    order = order_by_id if by_content else random_order
    train = files.chosen(~is_query, config.train_size, "train_size", config, order)
    queries = files.chosen(is_query, config.query_size, "query_size", config, order)
    both, remarks = files.read(torch.cat([train, queries]), config.image_size, autoencoder=config.autoencoder)
    sets = both.subset(slice(0, len(train))), both.subset(slice(len(train), None))
    notes = (*listed.notes, *notes, *remarks)
    return Dataset(config.name, *sets, class_names, split=split, notes=notes, autoencoder=config.autoencoder)


@dataclass(frozen=True, eq=False)
class _LabelledFiles:
    """Image files that may be chosen and read, with their ids."""

    files: Sequence[ImageFile]
    class_names: tuple[str, ...]
    ids: Ids

    @cached_property
    def labels(self) -> Int[Tensor, "N"]:
        return torch.tensor([self.class_names.index(file.class_name) for file in self.files])

    def chosen(
        self,
        among: Bool[Tensor, "N"],
        size: int | None,
        what: str,
        config: DatasetConfig,
        order: Callable[..., Int[Tensor, "m"]],
    ) -> Int[Tensor, "k"]:
        """Positions of `size` of the files where the mask is True; a class with too few training images is refused."""
        positions = select(
            self.labels[among], size, order=order(self.ids[among], seed=config.seed, what=what), what=what,
            stratified=config.stratified, class_names=self.class_names, exactly=what == "train_size",
        )  # fmt: skip
        return among.nonzero().flatten()[positions]

    def read(
        self,
        positions: Int[Tensor, "n"],
        image_size: int | None,
        channels: int | None = None,
        autoencoder: str | None = None,
    ) -> tuple[ImageSet, tuple[str, ...]]:
        """The images at these positions, or their latents where an autoencoder is named, and notes."""
        files = [self.files[i] for i in positions.tolist()]
        paths, names = [file.path for file in files], tuple(file.name for file in files)
        contents = json_digest([_content(path) for path in paths])
        readable = _looked_at(paths, names, contents, image_size, channels, large=autoencoder is not None)
        identity = {"files": contents, "shape": list(readable.shape), "image_size": image_size}
        told = self.labels[positions], self.ids[positions]
        if autoencoder:
            means, *others = _encoded(readable, identity, autoencoder).unbind()
            return Latents(means, *told, *others, names=names), readable.notes
        pixels = _decoded(readable, identity) if readable.is_large else readable.rows()
        return ImageSet(pixels, *told, names=names), readable.notes


def _looked_at(
    paths: Sequence[Path],
    names: Sequence[str],
    contents: str,
    image_size: int | None,
    channels: int | None,
    *,
    large: bool,
) -> ReadableImages:
    """The images of some files. Of those too many for memory, or `large` without, what was found is kept below the data
    folder: a process that comes later decodes none of them."""
    asked = {
        "image_size": checked("image_size", image_size, PositiveInt | None),
        "channels": checked("channels", channels, PositiveInt | None),
    }
    identity = {"files": contents, "remarks": [remark.name for remark in Remark]} | asked
    folder, readable = data_root() / "found" / json_digest(identity)[:12], None
    if not folder.is_dir():
        readable = look_at_images(paths, names, **asked)
        if not (large or readable.is_large):
            return readable
    with stage(folder, identity, name="found") as needed:
        if needed:
            readable = readable or look_at_images(paths, names, **asked)
            write_arrays(folder / FOUND, **readable.findings)
    return readable or looked_at_before(paths, names, read_arrays(folder / FOUND), **asked)


def _decoded(readable: ReadableImages, identity: Mapping[str, Any]) -> Images:
    """Images that are too many for memory, decoded once into a file below the data folder."""
    folder = data_root() / "decoded" / json_digest(identity)[:12]
    return kept_rows(folder, identity, (1, *readable.shape), lambda *rows: readable.rows(*rows)[None], name="decoded")[
        0
    ]


def _encoded(readable: ReadableImages, identity: Mapping[str, Any], source: str) -> Float[Tensor, "4 N C H W"]:
    """What an autoencoder makes of images, encoded once into a file below the data folder."""
    from diffinf_lib.autoencoder import load_autoencoder  # it stands above data, and not every folder needs one

    autoencoder = load_autoencoder(source)
    shape = autoencoder.latent_shape(readable.shape[1:])
    identity = {**identity, "autoencoder": autoencoder.digest}
    return kept_rows(
        data_root() / "latents" / json_digest(identity)[:12], identity, (4, readable.shape[0], *shape),
        lambda *rows: autoencoder.moments(readable.rows(*rows)), name="latents",
    )  # fmt: skip


def _content(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); remove or replace it") from None


def content_ids(files: Sequence[ImageFile]) -> Ids:
    """An id for each file, `[N]`: a hash of its bytes and of how many copies of it came before, from `FIRST_ID` on."""
    ids: dict[int, None] = {}
    copies: Counter[str] = Counter()
    for file in files:
        digest = _content(file.path)
        while (found := FIRST_ID + keyed_seed("image", digest, copies[digest]) % (LAST_ID - FIRST_ID + 1)) in ids:
            copies[digest] += 1
        ids[found] = None
    return torch.tensor(list(ids))


def _parts(listed: FolderFiles, folder: Path) -> tuple[tuple[ImageFile, ...], tuple[ImageFile, ...], tuple[str, ...]]:
    """Training files, query files (none: to be held out), and notes on files that are neither."""
    if not listed.is_split:
        return listed.files, (), ()
    training, testing = listed.of("train"), listed.of("test") or listed.of("validation")
    require(bool(training), f"{folder}: there is {_places(testing)} but no train/ beside it; give the training images in "
            "train/, or the folder inside", DataError)  # fmt: skip
    used = {*training, *testing}
    unused = [file.name for file in listed.files if file not in used]
    notes = (f"{len(unused)} images outside {_places([*training, *testing])} are left out ({first_few(unused)})",)
    return training, testing, notes if unused else ()


def _places(files: Sequence[ImageFile]) -> str:
    """The folders of the parts that these files belong to."""
    return " and ".join(dict.fromkeys(f"{file.part}/" for file in files if file.part))


def _class_names(files: Sequence[ImageFile]) -> tuple[str, ...]:
    """Classes in plain order of their names (`1`, `10`, `2`), as torchvision and datasets count them: the labels of a network
    that was trained on such a folder."""
    return tuple(sorted({file.class_name for file in files}))


def _of_classes(files: Sequence[ImageFile], config: DatasetConfig) -> tuple[Int[Tensor, "n"], tuple[str, ...]]:
    """Positions of the files whose class is asked for, and the classes."""
    known = _class_names(files)
    if config.classes is None:
        return torch.arange(len(files)), known
    wanted = tuple(map(str, config.classes))
    missing = [name for name in wanted if name not in known]
    require(not missing, f"classes: {', '.join(missing)} not in {config.name}, which has {', '.join(known)}", DataError)
    return torch.tensor([i for i, file in enumerate(files) if file.class_name in wanted]), wanted


def _held_out(labels: Int[Tensor, "N"], ids: Ids, config: DatasetConfig) -> Bool[Tensor, "N"]:
    """Which images are queries where the folder has no test part, as a mask.

    `query_size` of them, as evenly from the classes as they have them; without it a share of each class. The last image of
    a class stays for training as long as others can be taken.
    """
    count = len(labels)
    require(count > 1, f"dataset={config.name}: one image alone, and queries are held out from the images; give two or more",
            DataError)  # fmt: skip
    size = config.query_size or max(1, round(QUERY_SHARE * count))
    require(size < count, f"query_size={size}: there are {count} images; leave some for training", DataError)
    order = order_by_id(ids, seed=config.seed, what="held-out")
    held = labels.unique(return_counts=True)[1].tolist()
    shares = [round(QUERY_SHARE * images) for images in held]
    if config.query_size or not any(shares):
        spare = [images - 1 for images in held]
        shares = even_shares(spare if sum(spare) >= size else held, size)
    chosen = take(labels, order, shares) if config.stratified else order[:size]
    return torch.zeros(count, dtype=torch.bool).index_fill(0, chosen, True)
