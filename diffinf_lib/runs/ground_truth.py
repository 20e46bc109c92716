"""Stages of the ground truth: models retrained on random subsets, and what they measure of every query."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import read_json, write_bundle
from diffinf_lib.configuration import MeasurementConfig
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.measurements import measure_all
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.known import KnownMeasurements
from diffinf_lib.runs.model import measured_queries
from diffinf_lib.runs.run import Run
from diffinf_lib.runs.subsets import model_name, shard_of, subset_mask, subset_masks
from diffinf_lib.training import TrainingResult


def retrained_model(run: Run, subset: int, seed: int) -> Denoiser:
    """The model retrained on one subset with one seed."""
    return _retraining(run, subset, seed)[1]().model


def _retraining(run: Run, subset: int, seed: int) -> tuple[Kept, Callable[[], TrainingResult]]:
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
    found = _measured(run, subset, seed, queries).arrays(
        lambda: measured_by(run, retrained_model(run, subset, seed), queries)
    )
    return {name: torch.from_numpy(values) for name, values in found.items()}


def _measured(run: Run, subset: int, seed: int, queries: Mapping[str, ImageSet]) -> Kept:
    """Other measurements lie elsewhere: a ground truth can be measured anew without retraining."""
    preset = run.preset
    return run.kept(
        "measurements", model_name(subset, seed), measurements=preset.measurements, subset=subset, seed_of_subset=seed,
        fraction=preset.subsets.fraction, retraining=preset.retraining(), unet=preset.unet,
        queries={name: images.digest for name, images in queries.items()},
    )  # fmt: skip


def measured_by(run: Run, model: Denoiser, queries: Mapping[str, ImageSet]) -> dict[str, Float[np.ndarray, "_Q"]]:
    """Everything that the preset measures of some queries, by one model; see `retrained_measurements`."""
    found: dict[str, np.ndarray] = {}
    for name, images in queries.items():
        configs = [config for config in run.preset.measurements if _applies(config, images)]
        values = measure_all(model, images, configs, seed=run.seed)
        found |= {f"{name}/{config.label}": row.numpy() for config, row in zip(configs, values, strict=True)}
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
) -> Iterator[tuple[int, int]]:
    """Retrain and measure every model of one shard, yielding each (subset, seed) when it is done; not those that are known."""
    config = run.preset.subsets
    pairs = shard_of(
        config.count if subsets is None else subsets, config.seeds if seeds is None else seeds, shard, shards
    )
    for subset, seed in pairs:
        retrained_measurements(run, subset, seed, known)
        yield subset, seed


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
    kept = [[_retraining(run, *one)[0] for one in own], list(own.values())]
    before = known.bundle.metrics if known else {}
    training, measuring = (sum(one.seconds for one in part) for part in kept)
    commits = {one.manifest["environment"]["git_commit"] for part in kept for one in part}
    return {
        "retrained_models": len(pairs),
        "training_seconds": round(before.get("training_seconds", 0) + training, 1),
        "measurement_seconds": round(before.get("measurement_seconds", 0) + measuring, 1),
        "commits": sorted(commits.union(before.get("commits", []))),
        "mean_measurement": {name: float(values.mean()) for name, values in collected.items()},
    }
