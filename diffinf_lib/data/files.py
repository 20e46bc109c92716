"""Files: which images a folder holds, in which order, and what its subfolders mean: classes, or parts of a split.

Files and folders that nobody put there on purpose are skipped: hidden ones (a leading dot: `.ipynb_checkpoints`, `._x.png`)
and those that systems leave behind (`__MACOSX`, `@eaDir`). Links are followed, never in circles. Folders called `train`,
`test`, `val` and the like, in any letter case, are parts of a split and not classes.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffinf_lib.errors import DataError, first_few, require

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".avif", ".jp2", ".tga", ".ppm", ".pgm", ".pbm"),
)
UNREAD_SUFFIXES = (
    *(".heic", ".heif", ".svg", ".psd", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"),
    *(".jxl", ".npy", ".npz", ".mp4", ".zip"),
)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".rar", ".7z")
LEFT_BEHIND = ("__macosx", "@eadir", "$recycle.bin", "lost+found")
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test",
         "val": "validation", "valid": "validation", "validation": "validation"}  # fmt: skip
NO_CLASS = "all"


class ImageFile(NamedTuple):
    """An image file of a folder.

    Attributes:
        name: relative to the folder, with `/` on every system.
        part: `train`, `test` or `validation`; None where the folder is not split, or the file lies outside its parts.
        class_name: the folder below the part; `all` where there is none.
    """

    path: Path
    name: str
    part: str | None
    class_name: str


class FolderFiles(NamedTuple):
    """The image files of a folder in natural order, and in plain sentences what was skipped."""

    files: tuple[ImageFile, ...]
    notes: tuple[str, ...]

    @property
    def is_split(self) -> bool:
        """Whether the folder's subfolders are parts of a split."""
        return any(file.part for file in self.files)

    def of(self, part: str | None) -> tuple[ImageFile, ...]:
        """The files of one part."""
        return tuple(file for file in self.files if file.part == part)


def natural_key(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts 2 before 10: runs of the digits 0 to 9 compare as numbers."""
    words = re.split(r"([0-9]+)", name.lower())
    return [(0, int(word), word) if i % 2 else (1, 0, word) for i, word in enumerate(words)], name


def list_images(folder: Path) -> FolderFiles:
    """Every image file below a folder.

    Raises:
        DataError: no images there, a folder that cannot be read, or subfolders whose names can be understood in two ways.
    """
    names, notes = _find(folder)
    require(
        bool(names), f"{folder}: no images in there; it needs files ending in {', '.join(SUFFIXES[:3])}, …", DataError
    )
    names = sorted(names, key=natural_key)
    parts = _split_folders([PurePosixPath(name).parts for name in names], folder)
    files = tuple(_image_file(folder, name, parts) for name in names)
    return FolderFiles(files, (*notes, *_beside_classes(files)))


def _beside_classes(files: Sequence[ImageFile]) -> list[str]:
    """A note on images that lie beside the class folders, and so make a class of their own."""
    labelled = [file for file in files if file.part] or files
    classes = {file.class_name for file in labelled}
    outside = [file.name for file in labelled if file.class_name == NO_CLASS]
    stray = NO_CLASS in classes and len(classes) > 1
    return [
        f"beside the class folders, of the class {NO_CLASS!r}: {len(outside)} image(s) ({first_few(outside)})"
    ] * stray


def _image_file(folder: Path, name: str, parts: dict[tuple[str, ...], str]) -> ImageFile:
    *above, _ = PurePosixPath(name).parts
    part = next((place for place in parts if tuple(above[: len(place)]) == place), ())
    below = above[len(part) :]
    class_name = unicodedata.normalize("NFC", unicode_name(below[0])) if below else NO_CLASS
    return ImageFile(folder / name, unicode_name(name), parts.get(part), class_name)


def unicode_name(name: str) -> str:
    """A file's name as text that can be written anywhere: bytes that are not UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _find(folder: Path) -> tuple[list[str], tuple[str, ...]]:
    """Names of the image files below a folder, and notes on what was skipped."""
    names, unread, left_behind = [], Counter[str](), []
    for path in _walk(folder, ancestors=frozenset()):
        suffix, name = path.suffix.lower(), path.relative_to(folder).as_posix()
        if _is_left_behind(path.name):
            left_behind += [name] if suffix in SUFFIXES or path.is_dir() else []
        elif suffix in SUFFIXES:
            names.append(name)
        elif suffix in UNREAD_SUFFIXES:
            unread[suffix] += 1
    shown = first_few([unicode_name(name) for name in sorted(left_behind, key=natural_key)])
    notes = [f"hidden or left behind by a system, skipped: {shown}"] if left_behind else []
    notes += [
        f"of a kind that is not read, skipped: {count} {suffix} file(s)" for suffix, count in sorted(unread.items())
    ]
    return names, tuple(notes)


def _is_left_behind(name: str) -> bool:
    return name.startswith(".") or name.lower() in LEFT_BEHIND


def _walk(folder: Path, ancestors: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Every file below a folder, through links but not in circles; of folders left behind, only themselves."""
    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); make it readable, or move it away") from None
    here = (status.st_dev, status.st_ino)
    if here in ancestors:
        return
    for entry in entries:
        if entry.is_dir() and not _is_left_behind(entry.name):
            yield from _walk(Path(entry.path), ancestors | {here})
        elif entry.is_dir() or entry.is_file() or entry.is_symlink():  # a link to nowhere is refused when it is opened
            yield Path(entry.path)


def _split_folders(places: Sequence[tuple[str, ...]], folder: Path) -> dict[tuple[str, ...], str]:
    """Which folders are parts of a split, and which part: none of them where there is no such split."""
    tops = sorted({place[0] for place in places if len(place) > 1})
    if len(tops) == 1 and all(len(place) > 2 for place in places):  # an archive's own folder around everything
        inside = _split_folders([place[1:] for place in places], folder / tops[0])
        if inside:
            return {(tops[0], *place): part for place, part in inside.items()}
    found: dict[tuple[str, ...], str] = {(top,): PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    if not found:
        _refuse_split_classes(places, folder)
        return {}
    named = ", ".join(f"{place[0]}/" for place in found)
    twice = [part for part, count in Counter(found.values()).items() if count > 1]
    require(not twice, f"{folder}: {named} are several folders for one part of a split; keep one of each", DataError)
    others = [top for top in tops if (top,) not in found]
    classes_below = any(len(place) > 2 and (place[0],) in found for place in places)
    is_split = "train" in found.values() and (len(found) > 1 or classes_below or not others)
    beside = first_few([f"{top}/" for top in others])
    require(is_split or not others, f"{folder}: {named} beside {beside}: part of a split or a class? rename it if it "
            "is a class, else move the other folders into train/", DataError)  # fmt: skip
    return found


def _refuse_split_classes(places: Sequence[tuple[str, ...]], folder: Path) -> None:
    """`cat/train/`, `cat/test/`: taken for a class it would train on the test images in silence."""
    inside: dict[str, set[str]] = {}
    for place in places:
        if len(place) > 2 and place[1].lower() in PARTS:
            inside.setdefault(place[0], set()).add(PARTS[place[1].lower()])
    split = [top for top, parts in inside.items() if len(parts) > 1 and "train" in parts]
    require(not split, f"{folder}: {first_few(split)} hold(s) train/ and a test part inside; give train/CLASS/* "
            "and test/CLASS/*", DataError)  # fmt: skip
