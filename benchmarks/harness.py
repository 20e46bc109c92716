"""Harness: several functions in turn, their times, their peak memory, and a JSON file that says where they were taken.

Functions run A B C, A B C, … after one warm-up round, so that a machine that slows down or speeds up does so for all of
them; ratios are taken round by round against one of them (the unit) and their median is what counts. Peak memory is
measured in a round of its own, because it needs the allocator emptied first.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from diffinf_lib.artifacts import atomic_write, environment, plain

RESULTS = Path(__file__).parent / "results"
PEERS = ("curvlinops-for-pytorch", "kronfluence")

Work = Callable[[], Any]


@dataclass(frozen=True)
class Measurement:
    """What one function took.

    Attributes:
        seconds: wall time of each round.
        peak_bytes: most memory held above what was held before the call, on the device that does the work; None where
            it cannot be measured.
        ratio: median over rounds of its time divided by the unit's in the same round.
    """

    seconds: list[float]
    peak_bytes: int | None
    ratio: float

    def summary(self) -> dict[str, Any]:
        """Plain values: every round, and its minimum, median and maximum."""
        return {
            "seconds": [round(value, 6) for value in self.seconds],
            "min": min(self.seconds), "median": statistics.median(self.seconds), "max": max(self.seconds),
            "peak_bytes": self.peak_bytes, "ratio": self.ratio,
        }  # fmt: skip


def alternate(
    functions: Mapping[str, Work],
    repeats: int = 5,
    *,
    unit: str | None = None,
    memory: bool = True,
    device: str = "cpu",
) -> dict[str, Measurement]:
    """Run the functions in turn, `repeats` rounds of all of them, and measure each.

    Args:
        functions: by name, in the order in which they run. What they return is dropped at once.
        repeats: timed rounds, after one round that is not timed.
        unit: the function whose time is 1; default: the first.
        memory: measure peak memory too, in one more round.
        device: where the work is done, for its memory.
    """
    unit = unit or next(iter(functions))
    for work in functions.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, work in functions.items():
            seconds[name].append(timed(work))
    peaks = {name: peak_bytes(work, device) if memory else None for name, work in functions.items()}
    return {
        name: Measurement(taken, peaks[name], paired_ratio(taken, seconds[unit])) for name, taken in seconds.items()
    }


def paired_ratio(taken: Sequence[float], unit: Sequence[float]) -> float:
    """The median over rounds of time divided by the unit's time in the same round."""
    return statistics.median(a / b for a, b in zip(taken, unit, strict=True))


def timed(work: Work) -> float:
    """Seconds of wall time of one call, waiting for the GPU before and after; garbage is collected before it starts."""
    gc.collect()
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def synchronize() -> None:
    """Wait until the GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(work: Work, device: str = "cpu") -> int | None:
    """The most memory one call holds above what was held before it, on `device`.

    On the CPU it is the kernel's own high-water mark of resident memory, reset before the call (Linux only). Memory
    that the allocator keeps from earlier calls is given back first, so that it counts for whoever uses it.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if not _reset_high_water_mark():
        return None
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def _reset_high_water_mark() -> bool:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return False
    return True


def resident(field: str) -> int:
    """Bytes that the kernel counts under a name such as `VmRSS` (Linux only)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code: versions (the peers' too), threads, processors, their name."""
    made = environment()
    for package in PEERS:
        try:
            made["versions"][package] = version(package)
        except PackageNotFoundError:
            made["versions"][package] = "absent"
    return made | {"processors": os.cpu_count(), "processor": _processor_name()}


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def write_results(name: str, settings: Any, results: Mapping[str, Any], out: Path | str | None = None) -> Path:
    """Write settings, results and the machine to `benchmarks/results/NAME.json`, atomically."""
    path = Path(out or RESULTS) / f"{name}.json"
    record = {"benchmark": name, "settings": plain(settings), "environment": machine(), "results": plain(results)}
    with atomic_write(path) as temporary:  # in the order of the rows: a table is read from top to bottom
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    return path


def table(rows: Sequence[Sequence[Any]], headings: Sequence[str]) -> str:
    """Rows as text in columns: the first to the left, numbers to the right."""
    text = [list(map(str, headings)), *[[_shown(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in text) for column in range(len(headings))]
    return "\n".join("  ".join(_aligned(row, widths)) for row in text)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _shown(cell: Any) -> str:
    return "–" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell)


def measurement_table(measured: Mapping[str, Measurement]) -> str:
    """The table of `alternate`: seconds, the ratio to the unit, and peak memory."""
    rows = [
        (name, min(m.seconds), statistics.median(m.seconds), max(m.seconds), m.ratio, mebibytes(m.peak_bytes))
        for name, m in measured.items()
    ]
    return table(rows, ["", "min s", "median s", "max s", "× unit", "peak MiB"])


def mebibytes(count: int | None) -> int | None:
    """Bytes as whole MiB."""
    return None if count is None else round(count / 2**20)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that is not timed")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--tf32", action="store_true", help="let a GPU multiply in TF32, for everyone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--name", help="name of the JSON file; default: that of the benchmark and its case")
    return parser


def settle(options: argparse.Namespace) -> None:
    """Threads, and the precision of a GPU's matrix products and convolutions, the same for everyone."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
