"""Errors: one family of exceptions, each message a single line that names the value and the way out."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class DiffinfError(Exception):
    """Every refusal of this library; the command line prints it as one line and exits with 2."""


class ConfigurationError(DiffinfError):
    """An option, preset or argument has a value that cannot be used."""


class DataError(DiffinfError):
    """A dataset or an image folder is missing or unusable."""


class ArtifactError(DiffinfError):
    """A file on disk is damaged, or was made by another configuration."""


class DownloadError(DiffinfError):
    """A download failed or is forbidden."""


def require(condition: bool, message: str, error: type[DiffinfError] = ConfigurationError) -> None:
    """Raise `error` with `message` unless `condition` holds."""
    if not condition:
        raise error(message)


def first_few(values: Sequence[Any], most: int = 3) -> str:
    """The first of many values, for a message: `3, 4, 7, …`."""
    return ", ".join(map(str, values[:most])) + (", …" if len(values) > most else "")


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room_needed(path: Path | str) -> Iterator[None]:
    """Tell of a full disk, an exhausted quota or a limit on file sizes in one line that names what was being written.

    Raises:
        ArtifactError: there was no room.
    """
    try:
        yield
    except Exception as error:  # safetensors has errors of its own, which give the system's number in their text
        number = re.search(r"(?:\[Errno|os error) (\d+)", str(error))
        if number is None or int(number[1]) not in _NO_ROOM:
            raise
        raise ArtifactError(f"{path}: cannot be written ({os.strerror(int(number[1]))}); make room, or raise the limit, "
                            "and run the same command again: it goes on from here") from None  # fmt: skip
