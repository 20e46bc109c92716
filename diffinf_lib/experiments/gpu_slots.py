"""GPU slots: which GPU a job may take, where an engine counts GPUs but hands out no numbers.

A slot is a file that a job holds locked while it runs. A lock ends with its process, so a killed job frees its slot.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from diffinf_lib.errors import ArtifactError, ConfigurationError, require

POLL_SECONDS = 0.2


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA numbers or names them; none where there are none."""
    if (given := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [word.strip() for word in given.split(",") if word.strip() not in ("", "-1")]
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def default_folder() -> Path:
    """Where the slots of this machine lie: one place for all experiments of one user."""
    return Path(tempfile.gettempdir()) / f"diffinf-gpu-slots-{os.getuid()}"


@contextmanager
def gpu_slot(folder: Path | str | None = None, *, per_gpu: int = 1, gpus: list[str] | None = None) -> Iterator[str]:
    """Wait for a free slot, and let this process and those it starts see that GPU alone.

    GPUs without any job are taken first. All experiments on a machine should be given the same `per_gpu`.

    Args:
        folder: of the slots; default one for each user of the machine.
        per_gpu: jobs that may share a GPU.
        gpus: default those that this process may use.

    Raises:
        ConfigurationError: there is no GPU, or the folder cannot be made.
        ArtifactError: the folder vanished while waiting.
    """
    gpus = visible_gpus() if gpus is None else gpus
    require(per_gpu > 0, f"per_gpu={per_gpu}: give a positive whole number")
    require(bool(gpus), "gpu slots: this machine shows no GPU; leave --gpu-slots out")
    folder = Path(folder or default_folder())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = _identity(folder)
    except OSError as error:
        raise ConfigurationError(
            f"gpu slots={folder}: cannot be made ({error.strerror}); give another folder"
        ) from None
    gpu, lock = _first_free(folder, place, [(gpu, slot) for slot in range(per_gpu) for gpu in gpus])
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield gpu
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        _released(lock, folder, place)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _is_there(folder: Path, place: tuple[int, int]) -> bool:
    try:
        return _identity(folder) == place
    except OSError:
        return False


def _first_free(folder: Path, place: tuple[int, int], slots: list[tuple[str, int]]) -> tuple[str, FileLock]:
    while True:
        for gpu, slot in slots:
            lock = FileLock(folder / f"{gpu.replace('/', '-')}.{slot}.lock")
            if _taken(lock, folder, place):
                return gpu, lock
        time.sleep(POLL_SECONDS)


def _taken(lock: FileLock, folder: Path, place: tuple[int, int]) -> bool:
    """Whether the lock is ours now.

    A folder made anew under the same name has other files, which say nothing of who works on a GPU: it is refused.
    """
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except OSError as error:
        reason = f"cannot be locked ({error.strerror})" if _is_there(folder, place) else "vanished while a job waited"
        raise ArtifactError(
            f"gpu slots={folder}: {reason}; make the folder usable and run the same command again"
        ) from None
    if not _is_there(folder, place):
        lock.release()
        raise ArtifactError(f"gpu slots={folder}: vanished while a job waited for a GPU; make sure that nothing deletes it, "
                            "and run the same command again")  # fmt: skip
    return True


def _released(lock: FileLock, folder: Path, place: tuple[int, int]) -> None:
    lock.release()
    if not _is_there(folder, place):
        print(f"diffinf: gpu slots={folder}: vanished while a job held a GPU, so another may have shared it; the results "
              "stand, memory may have been short", file=sys.stderr)  # fmt: skip
