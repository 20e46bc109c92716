"""Errors: one family of exceptions, each message a single line that names the value and the way out."""

from collections.abc import Sequence
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
