"""Runs killed with SIGKILL at many moments go on with the same command and end with the same bits."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffinf_lib.artifacts import file_digest, read_json

pytestmark = pytest.mark.chaos

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "DIFFINF_OFFLINE": "1"}


def command(*words, run: Path):
    return [sys.executable, "-m", "diffinf_lib", *words, "--run", str(run), "--threads", "1", "--quiet"]


def finish(words, run):
    subprocess.run(command(*words, run=run), check=True, env=ENVIRONMENT, timeout=300, capture_output=True)


def kill_after(words, run, wait):
    """Start the command in a process group, wait until `wait()` says so, SIGKILL the group. True if it was killed."""
    process = subprocess.Popen(
        command(*words, run=run), env=ENVIRONMENT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not wait():
        time.sleep(0.002)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return alive


def contents(run: Path) -> dict[str, str]:
    """Digest of every file of a run; of a manifest all but times, memory and the commit, which others may move."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if path.name == "manifest.json":
            manifest = read_json(path)
            manifest.pop("measured", None)
            manifest.pop("digest")
            manifest["environment"].pop("git_commit")
            found[name] = str(manifest)
        else:
            found[name] = file_digest(path)
    return found


def files_below(run: Path) -> int:
    return sum(1 for _ in run.rglob("*"))


def wait_for_files(run: Path, more: int):
    """A moment after `more` further files or folders have appeared: in the middle of the work, not of the imports."""
    target = files_below(run) + more
    extra = random.Random(more).random() * 0.15
    reached: list[float] = []

    def ready():
        if not reached and files_below(run) >= target:
            reached.append(time.monotonic())
        return bool(reached) and time.monotonic() - reached[0] >= extra

    return ready


@pytest.mark.parametrize(
    ("earlier", "words"),
    [
        ([], ("model", "smoke", "--set", "training.steps=60")),
        ([], ("ground-truth", "smoke")),
        ([("model", "smoke")], ("scores", "smoke", "--queries", "held-out")),
    ],
    ids=["training", "ground-truth", "scoring"],
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, earlier, words):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for run in (whole, broken):
        for before in earlier:
            finish(before, run)
    finish(words, whole)
    killed = [kill_after(words, broken, wait_for_files(broken, more)) for more in (1, 2, 3, 5, 8)]
    assert sum(killed) >= 2, "the command ended before it could be killed; the test shows nothing"
    finish(words, broken)
    assert contents(broken) == contents(whole)
    assert any(read_json(path)["measured"]["resumed"] for path in broken.rglob("manifest.json")), (
        "no stage was resumed; the test shows nothing"
    )
