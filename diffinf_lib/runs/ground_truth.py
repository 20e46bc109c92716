"""Stages of the ground truth: models retrained on random subsets, and what they measure of every query."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import (
    ensure_writable,
    environment,
    read_arrays,
    read_json,
    read_sealed,
    write_bundle,
    write_sealed,
)
from diffinf_lib.configuration import MeasurementConfig
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.measurements import measure_many
from diffinf_lib.options import check_counts
from diffinf_lib.runs.kept import Kept, make_together
from diffinf_lib.runs.known import KnownMeasurements
from diffinf_lib.runs.model import measured_queries
from diffinf_lib.runs.run import Run
from diffinf_lib.runs.subsets import model_name, shard_of, subset_mask, subset_masks
from diffinf_lib.training import Training, fastest, step_seconds, train_many

Pair = tuple[int, int]
"""A subset and a seed."""
Measured = dict[str, Float[np.ndarray, "_Q"]]
Value = TypeVar("Value")


def retrained_model(run: Run, subset: int, seed: int) -> Denoiser:
    """The model retrained on one subset with one seed."""
    _, training = _retraining(run, subset, seed)
    return training.alone(run.preset.retraining(), device=run.device, progress=False).model


def _retraining(run: Run, subset: int, seed: int) -> tuple[Kept, Training]:
    mask = subset_mask(len(run.data.train), run.preset.subsets.fraction, subset, seed=run.seed)
    images = run.data.train.subset(mask)
    return run.training("retrained", model_name(subset, seed), images, run.preset.retraining(), seed)


def retrained_measurements(
    run: Run, subset: int, seed: int, known: KnownMeasurements | None = None
) -> dict[str, Float[Tensor, "_Q"]]:
    """The measurements of one retrained model: `[Q]` for each `<query set>/<measurement>`; those that are known are read."""
    if known and known.holds(subset, seed):
        return known.of(subset, seed)
    queries = known.queries if known else measured_queries(run)
    kept = _measured(run, subset, seed, queries)
    if not kept.intact:
        list(_made(run, {(subset, seed): kept}, queries, together=1))
    return {name: torch.from_numpy(values) for name, values in read_arrays(kept.file("npz")).items()}


def _measured(run: Run, subset: int, seed: int, queries: Mapping[str, ImageSet]) -> Kept:
    """Other measurements lie elsewhere: a ground truth can be measured anew without retraining."""
    preset = run.preset
    return run.kept(
        "measurements", model_name(subset, seed), measurements=preset.measurements, subset=subset, seed_of_subset=seed,
        fraction=preset.subsets.fraction, retraining=preset.retraining(), unet=preset.unet,
        queries={name: images.digest for name, images in queries.items()},
    )  # fmt: skip


def measured_by(run: Run, model: Denoiser, queries: Mapping[str, ImageSet]) -> Measured:
    """Everything that the preset measures of some queries, by one model; see `retrained_measurements`."""
    return _measured_by_each(run, [model], queries)[0]


def _measured_by_each(run: Run, models: Sequence[Denoiser], queries: Mapping[str, ImageSet]) -> list[Measured]:
    """The same by each of several models."""
    found: list[Measured] = [{} for _ in models]
    for name, images in queries.items():
        configs = [config for config in run.preset.measurements if _applies(config, images)]
        labels = [f"{name}/{config.label}" for config in configs]
        for own, values in zip(found, measure_many(models, images, configs, seed=run.seed), strict=True):
            own |= {label: row.numpy() for label, row in zip(labels, values, strict=True)}
    return found


def _applies(config: MeasurementConfig, images: ImageSet) -> bool:
    return config.name != "trajectory_log_prob" or isinstance(images, Trajectories)


def ground_truth_shard(
    run: Run,
    *,
    subsets: int | None = None,
    seeds: int | None = None,
    shard: int = 0,
    shards: int = 1,
    known: KnownMeasurements | None = None,
    together: int | None = 1,
) -> Iterator[tuple[int, int]]:
    """Retrain and measure every model of one shard, yielding each (subset, seed) when it is done; not those that are known.

    Args:
        together: models that are retrained and measured at a time, see `train_many`; None: as many as are fastest, see
            `fastest_together`. Models that are done come first.
    """
    check_counts(**({} if together is None else {"together": together}))
    config = run.preset.subsets
    pairs = shard_of(
        config.count if subsets is None else subsets, config.seeds if seeds is None else seeds, shard, shards
    )
    missing = {pair: kept for pair, kept in _own(run, pairs, known).items() if not kept.intact}
    yield from (pair for pair in pairs if pair not in missing)
    if missing:
        together = fastest_together(run) if together is None else together
        yield from _made(run, missing, known.queries if known else measured_queries(run), together)


def fastest_together(run: Run) -> int:
    """How many retrainings at a time are fastest on the run's device, timed once and kept in the run folder.

    It is kept so that every shard and every later call takes the same route, and ends with the same numbers.
    """
    file = run.path("retrained", f"together-{torch.device(run.device).type}.json")
    with FileLock(ensure_writable(file.parent) / f".{file.name}.lock"):
        found = read_sealed(file)
        if found is None:
            model, images = _retraining(run, 0, 0)[1].start()
            seconds = step_seconds(model.to(run.device), images, run.preset.retraining())
            found = {"together": fastest(seconds), "seconds_a_step": seconds, "environment": environment()}
            write_sealed(file, found)
        return int(found["together"])


def _made(run: Run, places: Mapping[Pair, Kept], queries: Mapping[str, ImageSet], together: int) -> Iterator[Pair]:
    """Retrain and measure some models, each as it is done; what another process measures comes last."""
    pairs, elsewhere = list(places), []
    trainings = (_retraining(run, *pair)[1] for pair in pairs)
    trained = train_many(trainings, run.preset.retraining(), together=together, device=run.device, progress=False)
    for group in in_groups(trained, together):
        models = {pairs[number]: result.model for number, result in group}

        def compute(needed: list[Pair], models: Mapping[Pair, Denoiser] = models) -> dict[Pair, Measured]:
            found = _measured_by_each(run, [models[pair] for pair in needed], queries)
            return dict(zip(needed, found, strict=True))

        left = make_together({pair: places[pair] for pair in models}, compute)
        elsewhere += left
        yield from (pair for pair in models if pair not in left)
    for pair in elsewhere:
        model = retrained_model(run, *pair)
        places[pair].arrays(partial(measured_by, run, model, queries))
        yield pair


def in_groups(values: Iterable[Value], size: int) -> Iterator[list[Value]]:
    """Consecutive groups of so many, the last one smaller."""
    left = iter(values)
    while group := list(islice(left, size)):
        yield group


def collected_measurements(
    run: Run, subsets: int, seeds: int, known: KnownMeasurements | None = None
) -> dict[str, Float[Tensor, "{subsets} {seeds} _Q"]]:
    """The measurements of a finished ground truth: `[M, K, Q]` for each `<query set>/<measurement>`.

    Raises:
        ArtifactError: some are not there yet; the message counts them.
    """
    pairs = shard_of(subsets, seeds, 0, 1)
    missing = [model_name(*one) for one, kept in _own(run, pairs, known).items() if not kept.finished]
    require(not missing, f"{run.folder}: {len(missing)} of {len(pairs)} retrained models are missing, "
            f"first {missing[:1]}; run the ground truth to its end", ArtifactError)  # fmt: skip
    values = [[retrained_measurements(run, subset, seed, known) for seed in range(seeds)] for subset in range(subsets)]
    return {name: torch.stack([torch.stack([cell[name] for cell in row]) for row in values]) for name in values[0][0]}


def _own(run: Run, pairs: Sequence[tuple[int, int]], known: KnownMeasurements | None) -> dict[tuple[int, int], Kept]:
    """Where the measurements of the models lie that the run is to retrain itself."""
    queries = known.queries if known else measured_queries(run)
    return {pair: _measured(run, *pair, queries) for pair in pairs if not (known and known.holds(*pair))}


def ground_truth_bundle(
    run: Run,
    name: str | None = None,
    *,
    subsets: int | None = None,
    seeds: int | None = None,
    root: Path | str | None = None,
    known: KnownMeasurements | None = None,
) -> Path:
    """Collect a finished ground truth into a bundle and return its folder.

    Arrays: `masks [M, N]`, `train_ids [N]`; for each query set `<set>/ids [Q]`, `<set>/images [Q, C, H, W]`; `train_names` and
    `<set>/names` where images come from files; for each measurement of a set `<set>/measured/<measurement> [M, K, Q]` and
    `<set>/full/<measurement> [Q]`, by the model trained on everything; float32.

    Args:
        name: of the bundle; default `<preset>-ground-truth`.
        root: folder of bundles; default `book/results/`.
        known: measurements that are not made anew, with the queries and the full model they belong to.
    """
    config = run.preset.subsets
    subsets = config.count if subsets is None else subsets
    seeds = config.seeds if seeds is None else seeds
    collected = collected_measurements(run, subsets, seeds, known)
    queries = known.queries if known else measured_queries(run)
    arrays: dict[str, np.ndarray] = {
        "masks": subset_masks(run, subsets).numpy(),
        **run.data.train.identifiers("train_"),
    }
    for query_set, images in queries.items():
        arrays |= images.identifiers(f"{query_set}/")
        arrays[f"{query_set}/images"] = images.images.numpy()
    full = known.full if known else measured_by(run, run.model.model, queries)
    for kind, found in (("measured", collected), ("full", full)):
        for key, values in found.items():
            query_set, _, label = key.partition("/")
            arrays[f"{query_set}/{kind}/{label}"] = np.asarray(values, dtype=np.float32)
    configuration = {"preset": run.preset, "seed": run.seed, "subsets": subsets, "seeds": list(range(seeds)),
                     "dataset_digest": run.data.digest, "model": known.model if known else run.model_identity}  # fmt: skip
    made_in = known.made_in if known else read_json(run.path("model", "manifest.json"))["environment"]
    metrics = _ground_truth_metrics(run, subsets, seeds, collected, known)
    return write_bundle(
        name or f"{run.preset.name}-ground-truth", arrays, metrics, configuration, made_in=made_in, root=root
    )


def _ground_truth_metrics(
    run: Run, subsets: int, seeds: int, collected: dict[str, Float[Tensor, "M K _Q"]], known: KnownMeasurements | None
) -> dict[str, Any]:
    own = _own(run, pairs := shard_of(subsets, seeds, 0, 1), known)
    trained = [one for one in (_retraining(run, *pair)[0] for pair in own) if one.finished]
    gone = len(own) - len(trained)
    if gone:
        said = "they are taken to have lasted as long as the others" if trained else "their time is not counted"
        warnings.warn(f"{run.folder}: the records of {gone} of {len(own)} trainings are gone; {said}", stacklevel=3)
    before = known.bundle.metrics if known else {}
    training = sum(one.seconds for one in trained) * len(own) / max(len(trained), 1)
    measuring = sum(one.seconds for one in own.values())
    commits = {one.manifest["environment"]["git_commit"] for one in (*trained, *own.values())}
    return {
        "retrained_models": len(pairs),
        "training_seconds": round(before.get("training_seconds", 0) + training, 1),
        "measurement_seconds": round(before.get("measurement_seconds", 0) + measuring, 1),
        "commits": sorted(commits.union(before.get("commits", []))),
        "mean_measurement": {name: float(values.mean()) for name, values in collected.items()},
    }
