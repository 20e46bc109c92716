"""An experiment through Snakemake that is killed at random: its workers, its engine, all of it, in the middle of writes.

    python tests/chaos/kills.py --kills 200        # or `make chaos`

Rounds of one small experiment, each in a folder of its own, are disturbed until the kills are used up. Every round ends with
the very same command, and must leave the bits of a round that nothing disturbed.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from diffinf_lib.artifacts import file_digest, read_json
from diffinf_lib.artifacts.files import SEAL

MARK = "DIFFINF_CHAOS"
SMALL = ("smoke", "--set", "subsets.count=2", "--set", "subsets.seeds=1")


def contents(run: Path) -> dict[str, str]:
    """Digest of every file of a run or of bundles; of manifests and metrics all but times, memory and the commit.

    Logs tell of one course of events, and hidden files are locks.
    """
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(run)
        if "logs" in name.parts or path.suffix == ".log":
            continue
        if path.suffix == ".json":
            found[name.as_posix()] = json.dumps(_without_course(read_json(path)), sort_keys=True)
        else:
            found[name.as_posix()] = file_digest(path)
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names of files that are not the same in both."""
    return sorted(name for name in {*one, *other} if one.get(name) != other.get(name))


def _without_course(value):
    """A manifest or metrics without what each course of events has of its own."""
    if not isinstance(value, dict):
        return value
    own = ("measured", "git_commit", "commits", "metrics.json", SEAL)
    kept = {key: item for key, item in value.items() if key not in own and not key.endswith("seconds")}
    return {key: _without_course(item) for key, item in kept.items()}


def half_written(folder: Path) -> list[Path]:
    """Files that a killed writer left."""
    return [path for path in folder.rglob(".*.part") if "logs" not in path.parts]


@dataclass
class Round:
    """One experiment and its processes.

    Attributes:
        words: of `diffinf experiment`, without its folders.
        nice: how far its processes stand back behind those that kill them.
    """

    folder: Path
    words: tuple[str, ...] = SMALL
    nice: int = 0
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    engine: subprocess.Popen | None = None

    @property
    def command(self) -> list[str]:
        """The one command that begins, goes on and ends."""
        where = ["--run", str(self.folder / "run"), "-p", f"results={self.folder / 'results'}"]
        how = ["--shards", "2", "--jobs", "2", "--flops", "1e10", "--retries", "1000"]
        behind = ["nice", "-n", str(self.nice)]
        return [*behind, sys.executable, "-m", "diffinf_lib", "experiment", *self.words, *where, *how]

    def start(self) -> None:
        """Give the command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DIFFINF_OFFLINE": "1", MARK: self.mark}
        log = open(self.folder / "engine.log", "a")  # noqa: SIM115 (the process keeps it)
        self.engine = subprocess.Popen(self.command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def ended(self) -> bool:
        """Whether the engine is gone by itself."""
        return self.engine is not None and self.engine.poll() is not None

    def finish(self, limit: float = 1200) -> None:
        """Give the command until it ends well; it may be refused while an engine of before is at work."""
        if self.engine is None or self.ended():
            self.start()
        assert self.engine is not None
        assert self.engine.wait(limit) == 0, (self.folder / "engine.log").read_text()[-3000:]

    def processes(self) -> dict[int, str]:
        """Every living process of the round, and what it is."""
        found = {}
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (place / "environ").read_bytes().split(b"\0"):
                    words = (place / "cmdline").read_bytes().decode(errors="replace")
                    if words:  # a dead one that nobody has waited for has none
                        found[int(place.name)] = _kind(words)
            except OSError:
                continue
        return found


def _kind(words: str) -> str:
    if "ipykernel" in words:
        return "kernel"
    if "snakemake\0" in words and "--snakefile" in words:
        return "engine"
    if "diffinf_lib\0launch" in words:
        return "launcher"
    return "door" if "diffinf_lib\0experiment" in words else "shell"


def moment(round_: Round, choice: random.Random) -> tuple[str, Callable[[], list[int]]]:
    """When to kill, and which process if the moment itself says so: at some time, after some files, or while one is written."""
    kind, started = choice.choice(("time", "files", "write")), time.monotonic()
    wait, before, more = choice.uniform(0, 12), _count(round_.folder), choice.randint(1, 6)

    def writers() -> list[int]:
        parts = (re.fullmatch(r"\..*\.(\d+)\.part", path.name) for path in half_written(round_.folder))
        living = round_.processes() if parts else {}
        return [int(part[1]) for part in parts if part and int(part[1]) in living]

    def ready() -> list[int]:
        late = time.monotonic() - started >= (wait if kind == "time" else 40)
        if kind == "write" and not late:
            return writers()
        return [0] if late or (kind == "files" and _count(round_.folder) >= before + more) else []

    return kind, ready


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.rglob("*"))


def kill(pid: int) -> bool:
    """SIGKILL; whether there was such a process."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def disturb(round_: Round, choice: random.Random) -> str | None:
    """Wait for a moment and kill; what was killed and when, or None where the engine ended before."""
    kind, ready = moment(round_, choice)
    while not (found := ready()):
        if round_.ended():
            return None
        time.sleep(0.002)
    assert round_.engine is not None
    living = round_.processes()
    target = choice.choice(("worker", "worker", "engine", "all"))
    if kind == "write" and found != [0]:
        target, pids = "writer", found
    elif target == "all":
        pids = list(living)
    else:
        wanted = [pid for pid, name in living.items() if (pid == round_.engine.pid) == (target == "engine")]
        pids = [choice.choice(wanted)] if wanted else []
    killed = [living.get(pid, "gone") for pid in pids if kill(pid)]
    if round_.engine.pid in pids:
        round_.engine.wait()
        round_.start()  # while its workers of before may still be at work
    return f"{target}: {'+'.join(sorted(killed))} at {kind}" if killed else ""


def chaos(
    folder: Path, kills: int, *, seed: int = 0, words: tuple[str, ...] = SMALL, nice: int = 0, quiet: bool = False
) -> dict[str, object]:
    """Disturb rounds with so many kills; compare each with an undisturbed one.

    Raises:
        AssertionError: a round did not end, or ended otherwise.
    """
    choice, started = random.Random(seed), time.monotonic()
    whole = Round(folder / "whole", words, nice)
    whole.finish()
    undisturbed = time.monotonic() - started
    expected = contents(whole.folder)
    done, rounds, resumed = Counter[str](), 0, 0
    while sum(done.values()) < kills:
        broken = Round(folder / f"broken-{rounds}", words, nice)
        broken.start()
        while sum(done.values()) < kills and (told := disturb(broken, choice)) is not None:
            done.update([told] if told else [])
            if not quiet and told:
                print(f"{time.monotonic() - started:7.0f} s  {sum(done.values()):4} round {rounds}: {told}", flush=True)
        broken.finish()
        rounds += 1
        found = contents(broken.folder)
        assert not (differing := differences(expected, found)), f"{broken.folder}: {differing}"
        resumed += sum(
            bool(read_json(path).get("measured", {}).get("resumed"))
            for path in (broken.folder / "run").rglob("manifest.json")
        )
        if not quiet:
            print(f"round {rounds - 1}: {len(found)} files, the same bits", flush=True)
    return {"kills": sum(done.values()), "rounds": rounds, "stages_resumed": resumed, "by_kind": dict(sorted(done.items())),
            "files": len(expected), "seconds_undisturbed": round(undisturbed, 1),
            "seconds": round(time.monotonic() - started, 1), "seed": seed}  # fmt: skip


def main() -> None:
    """`make chaos`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="default: a temporary one")
    parser.add_argument("--nice", type=int, default=0, help="of the processes that are killed")
    parser.add_argument("--study", action="store_true", help="with a study behind the ground truth")
    parser.add_argument("--compare", type=Path, nargs=2, help="only say whether two folders hold the same bits")
    options = parser.parse_args()
    if options.compare:
        one, other = map(contents, options.compare)
        assert one and not (differing := differences(one, other)), differing
        print(f"{len(one)} files, the same bits")
        return
    words = (*SMALL, "--studies", "e09_timesteps", "-p", "bins=2") if options.study else SMALL
    with tempfile.TemporaryDirectory() as folder:
        print(
            json.dumps(
                chaos(options.folder or Path(folder), options.kills, seed=options.seed, words=words, nice=options.nice),
                indent=2,
            )
        )


if __name__ == "__main__":
    main()
