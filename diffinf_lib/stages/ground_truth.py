"""Ground-truth stages: models retrained on random subsets, and what they measure of every query."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_arrays, read_json, stage, write_arrays, write_bundle
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.measurements import MeasurementConfig, measure_all
from diffinf_lib.models import build_model
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.stages.model import full_model, measured_queries, model_identity
from diffinf_lib.stages.run import Run
from diffinf_lib.training import train


def subset_mask(count: int, fraction: float, index: int, *, seed: int = 0) -> Tensor:
    """Which training images subset `index` keeps, `[N]`, True = kept; exactly round(fraction · N) of them.

    A subset depends on its own index only, so a ground truth can be extended.
    """
    kept = round(fraction * count)
    require(0 < kept < count, f"subsets.fraction={fraction}: keeps {kept} of {count} images; give another share")
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=keyed_generator("subset", seed, index))[:kept]] = True
    return mask


def subset_masks(run: Run, subsets: int) -> Tensor:
    """The masks of the first `subsets` subsets, `[M, N]`."""
    total, fraction = len(run.data.train), run.preset.subsets.fraction
    return torch.stack([subset_mask(total, fraction, index, seed=run.seed) for index in range(subsets)])


def shard_of(subsets: int, seeds: int, shard: int, shards: int) -> list[tuple[int, int]]:
    """The (subset, seed) pairs of one shard, seeds outermost: whole subsets of pairs come early.

    Raises:
        ConfigurationError: there is no such shard.
    """
    require(subsets > 0, f"subsets={subsets}: give a positive number")
    require(seeds > 0, f"seeds={seeds}: give a positive number")
    require(shards > 0 and 0 <= shard < shards, f"shard={shard} of {shards}: give 0 <= shard < shards")
    pairs = [(subset, seed) for seed in range(seeds) for subset in range(subsets)]
    return pairs[shard::shards]


def _unit(subset: int, seed: int) -> str:
    return f"k{subset:03d}-r{seed}"


def retrained_model(run: Run, subset: int, seed: int) -> Denoiser:
    """The model retrained on one subset with one seed."""
    preset = run.preset
    mask = subset_mask(len(run.data.train), preset.subsets.fraction, subset, seed=run.seed)
    return train(
        build_model(preset.unet, preset.process, seed=seed), run.data.train.subset(mask), preset.retraining(),
        seed=seed, out=run.path("retrained", _unit(subset, seed)), device=run.device, progress=False,
    ).model  # fmt: skip


def retrained_measurements(run: Run, subset: int, seed: int) -> dict[str, Tensor]:
    """The measurements of one retrained model: `[Q]` for each `<query set>/<measurement>`."""
    model = retrained_model(run, subset, seed)
    trained = read_json(run.path("retrained", _unit(subset, seed), "manifest.json"))["configuration_digest"]
    file = _measured_file(run, subset, seed)
    with stage(file.parent, _measuring(run) | {"model": trained}, name="measurements") as needed:
        if needed:
            write_arrays(file, **measured_by(run, model))
    return {name: torch.from_numpy(values) for name, values in read_arrays(file).items()}


def _measuring(run: Run) -> dict[str, Any]:
    """What every model of a ground truth is measured by."""
    return {
        "measurements": run.preset.measurements,
        "seed": run.seed,
        "full_model": model_identity(run),
        "sampling": run.preset.sampling,
    }


def _measured_file(run: Run, subset: int, seed: int) -> Path:
    """Other measurements get another folder: a ground truth can be measured anew without retraining."""
    key = json_digest(plain(_measuring(run)))[:12]
    return run.path("measurements", key, _unit(subset, seed), "values.npz")


def measured_by(run: Run, model: Denoiser) -> dict[str, np.ndarray]:
    """Everything that the preset measures of the run's queries, by one model; see `retrained_measurements`."""
    found: dict[str, np.ndarray] = {}
    for name, images in measured_queries(run).items():
        configs = [config for config in run.preset.measurements if _applies(config, images)]
        values = measure_all(model, images, configs, seed=run.seed)
        found |= {f"{name}/{config.label}": row.numpy() for config, row in zip(configs, values, strict=True)}
    return found


def _applies(config: MeasurementConfig, images: ImageSet) -> bool:
    return config.name != "trajectory_log_prob" or isinstance(images, Trajectories)


def ground_truth_shard(
    run: Run, *, subsets: int | None = None, seeds: int | None = None, shard: int = 0, shards: int = 1
) -> Iterator[tuple[int, int]]:
    """Retrain and measure every model of one shard, yielding each (subset, seed) when it is done."""
    config = run.preset.subsets
    pairs = shard_of(
        config.count if subsets is None else subsets, config.seeds if seeds is None else seeds, shard, shards
    )
    for subset, seed in pairs:
        retrained_measurements(run, subset, seed)
        yield subset, seed


def collected_measurements(run: Run, subsets: int, seeds: int) -> dict[str, Tensor]:
    """The measurements of a finished ground truth: `[M, K, Q]` for each `<query set>/<measurement>`.

    Raises:
        ArtifactError: some are not there yet; the message counts them.
    """
    files = [[_measured_file(run, k, r) for r in range(seeds)] for k in range(subsets)]
    missing = [file.parent.name for row in files for file in row if not (file.parent / "manifest.json").exists()
               or not read_json(file.parent / "manifest.json")["finished"]]  # fmt: skip
    require(not missing, f"{run.folder}: {len(missing)} of {subsets * seeds} retrained models are missing, "
            f"first {missing[:1]}; run the ground truth to its end", ArtifactError)  # fmt: skip
    values = [[read_arrays(file) for file in row] for row in files]
    return {
        name: torch.stack([torch.stack([torch.from_numpy(cell[name]) for cell in row]) for row in values])
        for name in values[0][0]
    }


def ground_truth_bundle(
    run: Run,
    name: str | None = None,
    *,
    subsets: int | None = None,
    seeds: int | None = None,
    root: Path | str | None = None,
) -> Path:
    """Collect a finished ground truth into a bundle and return its folder.

    Arrays: `masks [M, N]`, `train_ids [N]`; for each query set `<set>/ids [Q]`, `<set>/images [Q, C, H, W]`; and for each
    of its measurements `<set>/measured/<measurement> [M, K, Q]` and `<set>/full/<measurement> [Q]`, by the model trained on
    everything; float32.

    Args:
        name: of the bundle; default `<preset>-ground-truth`.
        root: folder of bundles; default `book/results/`.
    """
    config = run.preset.subsets
    subsets = config.count if subsets is None else subsets
    seeds = config.seeds if seeds is None else seeds
    collected = collected_measurements(run, subsets, seeds)
    model = full_model(run).model
    arrays: dict[str, np.ndarray] = {
        "masks": subset_masks(run, subsets).numpy(),
        "train_ids": run.data.train.ids.numpy(),
    }
    for query_set, images in measured_queries(run).items():
        arrays[f"{query_set}/ids"] = images.ids.numpy()
        arrays[f"{query_set}/images"] = images.images.numpy()
    for kind, found in (("measured", collected), ("full", measured_by(run, model))):
        for key, values in found.items():
            query_set, _, label = key.partition("/")
            arrays[f"{query_set}/{kind}/{label}"] = np.asarray(values, dtype=np.float32)
    configuration = {"preset": run.preset, "seed": run.seed, "subsets": subsets, "seeds": list(range(seeds)),
                     "dataset_digest": run.data.digest}  # fmt: skip
    made_in = read_json(run.path("model", "manifest.json"))["environment"]
    metrics = _ground_truth_metrics(run, subsets, seeds, collected)
    return write_bundle(
        name or f"{run.preset.name}-ground-truth", arrays, metrics, configuration, made_in=made_in, root=root
    )


def _ground_truth_metrics(run: Run, subsets: int, seeds: int, collected: dict[str, Tensor]) -> dict[str, Any]:
    units = [(k, r) for k in range(subsets) for r in range(seeds)]
    folders = [run.path("retrained", _unit(*unit)) for unit in units]
    folders += [_measured_file(run, *unit).parent for unit in units]
    manifests = [read_json(folder / "manifest.json") for folder in folders]
    seconds = [manifest["measured"]["wall_seconds"] for manifest in manifests]
    return {
        "retrained_models": len(units),
        "training_seconds": round(sum(seconds[: len(units)]), 1),
        "measurement_seconds": round(sum(seconds[len(units) :]), 1),
        "commits": sorted({manifest["environment"]["git_commit"] for manifest in manifests}),
        "mean_measurement": {name: float(values.mean()) for name, values in collected.items()},
    }
