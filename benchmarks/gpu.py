"""GPU: a device against the CPU, then what it does a second; for whoever has one at hand for minutes.

    python -m benchmarks.gpu --minutes 8

Parts run in the order of their importance, each within a limit of its own, and each is written down when it ends: whatever
ends the run, the next call goes on with what is missing. A part that fails says why and stops no other. The exit code is 1
if the device computes something else than the CPU.
"""

import argparse
import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_checks, gpu_speed, harness
from benchmarks.gpu_checks import Bench, OutOfTime
from diffinf_lib.artifacts import atomic_write, plain, read_json
from diffinf_lib.errors import require

LEAST_SECONDS = 10.0
"""No part is begun with less time left than this."""

DONE = ("right", "wrong", "measured")


@dataclass(frozen=True)
class Part:
    """A function of the bench, and the seconds it may take."""

    work: Callable[[Bench], dict[str, Any]]
    seconds: float = 90.0
    checks: bool = False


PARTS: dict[str, Part] = {
    **{f"check {name}": Part(work, checks=True) for name, work in gpu_checks.CHECKS.items()},
    "fit digits": Part(partial(gpu_speed.fits, name="digits")),
    "fit cifar2-small": Part(partial(gpu_speed.fits, name="cifar2-small")),
    "fit cifar2": Part(partial(gpu_speed.fits, name="cifar2"), 120.0),
    "training cifar2-small": Part(partial(gpu_speed.training, name="cifar2-small")),
    "training digits, several processes": Part(gpu_speed.side_by_side, 120.0),
    "training digits, stacked": Part(partial(gpu_speed.stacked, name="digits"), 120.0),
    "training cifar2-small, stacked": Part(partial(gpu_speed.stacked, name="cifar2-small"), 120.0),
    "precision": Part(gpu_checks.precision_costs, 180.0),
    "gradients digits": Part(partial(gpu_speed.gradients, name="digits")),
    "gradients cifar2": Part(partial(gpu_speed.gradients, name="cifar2")),
    "training cifar2": Part(partial(gpu_speed.training, name="cifar2"), 150.0),
    "training cifar2, stacked": Part(partial(gpu_speed.stacked, name="cifar2"), 150.0),
}


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` inside after so many seconds."""

    def ring(*_: Any) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s; give more --minutes")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def environment(device: str) -> dict[str, Any]:
    """The machine, the card and its driver's CUDA."""
    made = harness.machine() | {"cuda": torch.version.cuda}
    if torch.device(device).type == "cuda":
        card = torch.cuda.get_device_properties(torch.device(device))
        made |= {"device": card.name, "memory": card.total_memory, "driver": _driver()}
    else:
        made["device"] = device
    return made


def _driver() -> str:
    try:
        return Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return "unknown"


def run_part(part: Part, bench: Bench, seconds: float) -> dict[str, Any]:
    """One part's record: how it ended, what it found, how long it took."""
    started = time.monotonic()
    bench.ends = started + seconds
    try:
        with limited(seconds):
            found = part.work(bench)
        status = ("right" if found["right"] else "wrong") if part.checks else "measured"
        record = {"status": status, "results": found}
    except OutOfTime as error:
        record = {"status": "out of time", "message": str(error)}
    except Exception as error:
        record = {"status": "failed", "message": f"{type(error).__name__}: {error}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return record | {"seconds": round(time.monotonic() - started, 2)}


def is_done(record: dict[str, Any] | None, settings: dict[str, Any]) -> bool:
    """Whether a part was done by this commit, on this card, at this size."""
    return record is not None and record["status"] in DONE and record["settings"] == settings


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; 1 if a check is wrong or failed."""
    options = _parser().parse_args(arguments)
    device = torch.device(options.device)
    require(
        device.type == "cpu" or torch.cuda.is_available(),
        f"device={options.device!r}: torch sees no GPU here; give cpu",
    )
    unknown = set(options.only or ()) - PARTS.keys()
    require(not unknown, f"only={', '.join(sorted(unknown))}: give names of parts: {', '.join(PARTS)}")
    deadline = time.monotonic() + 60 * options.minutes
    harness.settle(options)
    made, bench = environment(options.device), Bench(options.device, options.smoke)
    settings = {
        "device": made["device"], "smoke": options.smoke, "commit": made["git_commit"], "torch": torch.__version__,
    }  # fmt: skip
    path = options.out / f"{options.name or 'gpu'}.json"
    parts: dict[str, Any] = read_json(path)["parts"] if path.exists() else {}
    for name, part in PARTS.items():
        if options.only and name not in options.only:
            continue
        left = deadline - time.monotonic()
        if not options.force and is_done(parts.get(name), settings):
            print(f"{name}: {parts[name]['status']} before; --force does it again", flush=True)
            continue
        if left < LEAST_SECONDS:
            print(f"{name}: no time left; the same command goes on here", flush=True)
            continue
        parts[name] = run_part(part, bench, min(left, part.seconds)) | {"settings": settings, "environment": made}
        with atomic_write(path) as temporary:  # in the order of the rows
            temporary.write_text(json.dumps(plain({"benchmark": "gpu", "parts": parts}), indent=2) + "\n")
        print(shown(name, parts[name]), flush=True)
    print(path)
    return int(
        any(parts.get(name, {}).get("status") in ("wrong", "failed") for name, part in PARTS.items() if part.checks)
    )


def shown(name: str, record: dict[str, Any]) -> str:
    """One part for the terminal."""
    lines = [f"{name}: {record['status']} ({record['seconds']} s)"]
    if "message" in record:
        return f"{lines[0]} {record['message']}"
    for row, values in record["results"].get("errors", record["results"]).items():
        if isinstance(values, dict):
            numbers = {key: value for key, value in values.items() if isinstance(value, int | float | str)}
            lines.append(
                f"  {row}: "
                + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items())
            )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = harness.arguments(__doc__)
    parser.set_defaults(device="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop beginning parts after so long")
    parser.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that it runs; also on a CPU")
    parser.add_argument("--only", nargs="*", metavar="PART", help="names of parts; default all")
    parser.add_argument("--force", action="store_true", help="do parts again that are there already")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
