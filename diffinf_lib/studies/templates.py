"""Templates: what the papermill templates in `notebooks/experiments/` have in common, from the first cell to the bundle."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffinf_lib.artifacts import Bundle, load_bundle, show_versions
from diffinf_lib.evaluation import GroundTruth, load_ground_truth
from diffinf_lib.options import check_counts, with_options
from diffinf_lib.presets import get_preset
from diffinf_lib.runs import QUERY_SETS, KnownMeasurements, Run, known_measurements, open_run
from diffinf_lib.studies.study import Study


def begin(preset: str, run: str, options: Mapping[str, Any], seed: int, *, threads: int | None = None) -> Run:
    """Open the run of a template, as its parameters name it, and print what this process runs on."""
    if threads is not None:
        check_counts(threads=threads)
        torch.set_num_threads(threads)
    show_versions()
    return open_run(with_options(get_preset(preset), dict(options)), run or None, seed=seed, progress=False)


def known(run: Run, bundle: str, results: str) -> KnownMeasurements | None:
    """What a bundle holds of the run's ground truth; None without a name."""
    return known_measurements(run, bundle, results or None) if bundle else None


def ground_truths(run: Run, bundle: str, labels: Sequence[str] = (), *, results: str = "") -> dict[str, GroundTruth]:
    """The ground truths of both sets of queries: of the loss by set, or of each label by `<set>/<label>`.

    Args:
        bundle: its name; empty: `<preset>-ground-truth`.
        results: the folder of bundles; one that is not there is read from the book's.
    """
    bundle = bundle or f"{run.preset.name}-ground-truth"
    root = results if results and (Path(results) / bundle / "manifest.json").exists() else None
    if not labels:
        return {queries: load_ground_truth(bundle, queries, root=root) for queries in QUERY_SETS}
    return {
        f"{queries}/{label}": load_ground_truth(bundle, queries, label, root=root)
        for queries in QUERY_SETS for label in labels
    }  # fmt: skip


def compute(study: Study[Any], shard: int = 0, shards: int = 1) -> None:
    """Compute every cell of one shard of a study, a line for each."""
    started, total = time.monotonic(), len(study.cells()[shard::shards])
    for done, cell in enumerate(study.shard(shard, shards), 1):
        print(f"{time.monotonic() - started:7.0f} s  {done} of {total}: {study.label(cell)}", flush=True)


def finish(study: Study[Any], bundle: str, results: str) -> Bundle | None:
    """Write the bundle of a study and read it back; None while another shard is at work."""
    missing = len(study.missing())
    if missing:
        print(f"{missing} of {len(study.cells())} cells are still missing: another shard is to write the bundle")
        return None
    folder = study.bundle(bundle or None, root=results or None)
    made = load_bundle(folder.name, root=folder.parent)
    print(made.provenance)
    return made
