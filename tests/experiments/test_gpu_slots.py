"""GPU slots, held by real processes: no two share one, a killed owner frees it, and what happens to their folder is said."""

import os
import signal
import subprocess
import sys

import pytest

from diffinf_lib.errors import ConfigurationError
from diffinf_lib.experiments.gpu_slots import gpu_slot, visible_gpus

HOLD = """
import os, sys
from diffinf_lib.experiments.gpu_slots import gpu_slot
with gpu_slot(sys.argv[1], per_gpu=int(sys.argv[2])) as gpu:
    print(gpu, os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.read()
"""


class Holder:
    """A process that holds a slot until it is told to end or killed."""

    def __init__(self, folder, per_gpu=1, gpus="3,5"):
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": gpus}
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), str(per_gpu)], env=environment, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    @property
    def gpu(self):
        gpu, seen = self.process.stdout.readline().split()
        assert gpu == seen
        return gpu

    def end(self, signal_=None):
        if signal_:
            self.process.send_signal(signal_)
        return self.process.communicate()


@pytest.fixture
def holders():
    found = []
    yield lambda *words, **options: found.append(Holder(*words, **options)) or found[-1]
    for holder in found:
        holder.process.kill()
        holder.process.communicate()


def test_each_job_gets_a_gpu_of_its_own_and_a_killed_one_frees_it(tmp_path, holders):
    first, second = holders(tmp_path), holders(tmp_path)
    taken = {first.gpu, second.gpu}
    assert taken == {"3", "5"}
    waiting = holders(tmp_path)
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.process.wait(1.0)
    first.end(signal.SIGKILL)
    assert waiting.gpu in taken


def test_jobs_that_share_gpus_are_spread_over_them(tmp_path, holders):
    assert sorted(holder.gpu for holder in [holders(tmp_path, per_gpu=2) for _ in range(4)]) == ["3", "3", "5", "5"]


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_folder_that_vanishes_is_said(tmp_path, holders, made_anew):
    """One made anew is no lock: its files say nothing of the jobs that hold those of the folder before."""
    folder = tmp_path / "slots"
    first = holders(folder, gpus="0")
    assert first.gpu == "0"
    waiting = holders(folder, gpus="0")
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.process.wait(1.0)
    folder.rename(tmp_path / "elsewhere")
    if made_anew:
        folder.mkdir()
    waiting.process.wait(60)
    last = waiting.end()[1].splitlines()[-1]
    assert f"gpu slots={folder}: vanished while a job waited" in last and "run the same command again" in last
    assert "vanished while a job held a GPU" in first.end()[1] and first.process.returncode == 0


def test_what_cannot_work_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    for options, message in [
        ({"folder": tmp_path}, "shows no GPU"),
        ({"folder": "/proc/none", "gpus": ["0"]}, "cannot be made"),
        ({"folder": tmp_path, "gpus": ["0"], "per_gpu": 0}, "per_gpu=0: give a positive"),
    ]:
        with pytest.raises(ConfigurationError, match=message), gpu_slot(**options):
            pass


def test_the_environment_is_as_before(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-abc")
    with gpu_slot(tmp_path) as gpu:
        assert os.environ["CUDA_VISIBLE_DEVICES"] == gpu == "1"
        with gpu_slot(tmp_path, gpus=["1", "GPU-abc"]) as other:
            assert other == "GPU-abc"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,GPU-abc"
