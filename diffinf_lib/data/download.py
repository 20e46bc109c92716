"""Download: resumable, checked by digest, never when `DIFFINF_OFFLINE=1`, and whole or not at all."""

import hashlib
import os
import tarfile
import tempfile
from pathlib import Path

import requests

from diffinf_lib.errors import DownloadError, require, room_needed

TIMEOUT_SECONDS = 30
ATTEMPTS = 4
_BLOCK = 1 << 16


def is_offline() -> bool:
    """Whether `DIFFINF_OFFLINE=1` forbids downloads."""
    return os.environ.get("DIFFINF_OFFLINE", "") not in ("", "0")


def fetch(url: str, path: Path | str, digest: str, *, algorithm: str = "md5", instead: str = "") -> Path:
    """Download `url` to `path` unless it is there already, and check its digest.

    A broken download is continued from where it stopped, also by a later call.

    Args:
        digest: of the whole file, hexadecimal.
        instead: what the reader can put where without a network; ends the error messages.

    Raises:
        DownloadError: downloads are forbidden, the host does not answer, or the digest is another.
    """
    path = Path(path)
    if path.exists():
        require(_digest(path, algorithm) == digest, f"{path}: its {algorithm} is not {digest}; delete it and run again",
                DownloadError)  # fmt: skip
        return path
    require(not is_offline(), f"{url}: DIFFINF_OFFLINE=1 forbids downloads; {instead or f'place the file at {path}'}",
            DownloadError)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    _download(url, part, instead or f"place the file at {path}")
    found = _digest(part, algorithm)
    if found != digest:
        part.unlink()
        raise DownloadError(f"{url}: its {algorithm} is {found}, not {digest}; {instead or 'try again later'}")
    os.replace(part, path)
    return path


def _digest(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _download(url: str, part: Path, instead: str) -> None:
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            _continue(url, part)
            return
        except requests.RequestException as error:
            reason = type(error).__name__
    raise DownloadError(f"{url}: cannot be downloaded ({reason} after {ATTEMPTS} attempts); {instead}")


def _continue(url: str, part: Path) -> None:
    """Append what is missing of `part`; a server that ignores the range sends all of it again."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing; the digest decides
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        with room_needed(part), open(part, "ab" if resumed else "wb") as file:
            for block in answer.iter_content(_BLOCK):
                file.write(block)
        expected = int(answer.headers.get("Content-Length", -1))
        received = part.stat().st_size - (have if resumed else 0)
    if expected >= 0 and received < expected:
        raise requests.ConnectionError(f"{received} of {expected} bytes")


def extract(archive: Path, folder: Path) -> Path:
    """Unpack a tar archive into `folder`, unless it is there; the folder appears once it is complete."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with room_needed(folder), tempfile.TemporaryDirectory(dir=folder.parent, prefix=".extract-") as temporary:
        target = Path(temporary) / "content"
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        os.replace(target, folder)
    return folder
