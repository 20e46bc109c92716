"""Files: written whole or not at all, read whole or refused.

A file appears under its name only once it is complete and on the disk, so a run killed at any moment leaves either the
old file, the new one, or none. Nothing here needs torch, which takes seconds to load.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffinf_lib.errors import ArtifactError, ConfigurationError, require, room_needed


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON, in hexadecimal: equal values, equal digests."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


SEAL = "digest"


def write_sealed(path: Path | str, value: Mapping[str, Any]) -> None:
    """Write a mapping as JSON with the digest of all that it says, atomically; see `read_sealed`."""
    said = json.loads(json.dumps({key: item for key, item in value.items() if key != SEAL}))  # as it is read back
    write_json(path, said | {SEAL: json_digest(said)})


def read_sealed(path: Path | str) -> dict[str, Any] | None:
    """What `write_sealed` wrote, without the digest; None where nothing is there, or it says something else than was written.

    Damage is named in a warning. What was written before there were digests is believed.
    """
    if not Path(path).exists():
        return None
    try:
        return unsealed(path)
    except ArtifactError:
        warnings.warn(f"{path}: damaged; what it stood for is made again", stacklevel=2)
        return None


def unsealed(path: Path | str) -> dict[str, Any]:
    """The same where damage is for the caller to mend.

    Raises:
        ArtifactError: the file is missing, or says something else than was written.
    """
    found = read_json(path)
    require(isinstance(found, dict), f"{path}: not a mapping, it is damaged", ArtifactError)
    said = {key: item for key, item in found.items() if key != SEAL}
    whole = found.get(SEAL, json_digest(said)) == json_digest(said)
    require(whole, f"{path}: damaged, it says something else than was written", ArtifactError)
    return said


def ensure_writable(folder: Path | str) -> Path:
    """Make `folder` and check that a file can be written there.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # has no name where the system allows it: a kill leaves nothing
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(
            f"out={folder}: cannot write there ({reason}); give a folder you may write to"
        ) from None
    return folder


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it to the disk and move it into place.

    Raises:
        ArtifactError: there is no room for it; nothing of it is left.
    """
    with room_needed(path), _in_place_at_last(Path(path)) as temporary:
        yield temporary


@contextmanager
def _in_place_at_last(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask gives; safetensors would leave files nobody else may read
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file; run the stage that writes it first") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ArtifactError(f"{path}: not a JSON file, it is damaged; delete it and run the command again") from None
