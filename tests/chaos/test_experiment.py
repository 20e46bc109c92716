"""An experiment through Snakemake under everything that can go wrong: it ends with the same command and the same bits."""

import json
import os
import resource
import shutil
import subprocess
import sys
import time

import pytest
from chaos.kills import Round, chaos, contents, differences

import diffinf_lib as di
from diffinf_lib.errors import ArtifactError
from diffinf_lib.experiments import Experiment
from diffinf_lib.experiments.records import drop_stale_records, remaining
from diffinf_lib.experiments.status import run_status

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A folder with an undisturbed round and one that was killed ten times."""
    folder = tmp_path_factory.mktemp("chaos")
    told = chaos(folder, 10, seed=1, quiet=True)
    assert told["kills"] >= 10
    return folder


@pytest.fixture
def finished(broken, tmp_path):
    """The run of the undisturbed round, to spoil."""
    return shutil.copytree(broken / "whole", tmp_path / "copy")


def experiment_in(folder):
    return Experiment.of(json.loads((folder / "run/logs/experiment.json").read_text()) | {"run": str(folder / "run")})


def test_killed_ten_times_it_ends_with_the_same_bits(broken):
    assert di.load_bundle("smoke-ground-truth", root=broken / "broken-0/results").arrays["held-out/measured/loss"].size
    status = run_status(broken / "broken-0/run")
    assert {job.state for job in status.jobs} == {"done"} and status.models == (2, 2) and not status.engine


def test_records_follow_the_run_folder(broken):
    """What is missing, changed or half-written is run again, with all that comes after; nothing else is."""
    folder = broken / "whole"
    experiment = experiment_in(folder)
    assert remaining(experiment) == [] and drop_stale_records(experiment) == []
    (one,) = (folder / "run/measurements").glob("k001-r0-*/manifest.json")
    kept = one.read_text()
    one.unlink()
    assert [job.name for job in remaining(experiment)] == ["e02_ground_truth-1-of-2", "e03_bundle"]
    one.write_text(kept)
    assert remaining(experiment) == []
    record = experiment.record("e01_model")
    whole = record.read_text()
    record.write_text(whole[:100])
    assert len(remaining(experiment)) == len(experiment.jobs)
    record.write_text(whole)
    other = Experiment.of(experiment.plain | {"parameters": experiment.parameters | {"seed": 1}})
    assert len(remaining(other)) == len(other.jobs)


def test_a_damaged_stage_is_named_in_its_job_and_made_again(finished):
    """A bit flipped in a measurement: the bundle's job finds it, retrains nothing that is whole, and the bits are as before."""
    before = contents(finished)
    (file,) = (finished / "run/measurements").glob("k000-r0-*/measurements.npz")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    run, results = finished / "run", finished / "results"
    options = json.dumps(experiment_in(finished).parameters["options"])
    words = [
        "e03_bundle",
        "-p",
        "preset=smoke",
        "-p",
        f"run={run}",
        "-p",
        f"results={results}",
        "-p",
        f"options={options}",
    ]
    subprocess.run(
        [sys.executable, "-m", "diffinf_lib", "launch", *words], check=True, capture_output=True, timeout=300
    )
    assert "missing or damaged; the stage is redone" in (run / "logs/e03_bundle.ipynb").read_text()
    assert not differences(contents(finished), before)


def test_a_second_engine_on_one_run_folder_is_refused_in_a_line(tmp_path):
    first, second = Round(tmp_path), Round(tmp_path)
    first.start()
    lock = tmp_path / "run/logs/.engine.lock"
    while not (lock.exists() and "process" in lock.read_text()):
        time.sleep(0.01)
    refused = subprocess.run(second.command, capture_output=True, text=True, timeout=300)
    for pid in first.processes():
        os.kill(pid, 9)
    first.engine.wait()
    (line,) = refused.stderr.splitlines()
    assert (
        refused.returncode == 2
        and f"process {first.engine.pid} on" in line
        and "another engine is at work there" in line
    )


def test_a_full_disk_is_said_in_a_line_and_the_same_command_goes_on(broken, tmp_path):
    """A limit on the size of files fails as a full disk does, at the first larger write."""
    command = [
        sys.executable,
        "-m",
        "diffinf_lib",
        "launch",
        "e01_model",
        "-p",
        "preset=smoke",
        "-p",
        f"run={tmp_path}",
    ]

    def little_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    for limit in (little_room, None):
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300, preexec_fn=limit)
        if limit:
            lines = [line for line in ended.stderr.splitlines() if line.startswith("diffinf:")]
            assert ended.returncode == 2 and len(lines) == 1 and "make room" in lines[0], ended.stderr
            assert not (tmp_path / "samples").exists()
    assert ended.returncode == 0
    model = {
        name.removeprefix("run/"): digest for name, digest in contents(broken / "whole").items() if "/model/" in name
    }
    found = {name: digest for name, digest in contents(tmp_path).items() if name.startswith("model/")}
    assert model and not differences(found, model)


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(capsys):
    from diffinf_lib.cli import main

    assert main(["experiment", "smoke", "--run", "/proc/none"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "/proc/none" in line and "cannot write there" in line and "give a folder you may write to" in line


def test_status_reads_only_and_says_where_there_is_no_run(broken, tmp_path):
    run = broken / "whole/run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    text = str(run_status(run))
    assert "retrained models: 2 of 2 measured" in text and "jobs: 4 done, of 4" in text and "left" not in text
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    with pytest.raises(ArtifactError, match="no run there"):
        run_status(tmp_path)
