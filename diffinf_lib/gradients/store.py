"""Store: gradients in shards on disk; a shard that is missing or damaged is computed again."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts import plain, read_tensor_metadata, read_tensors, stage, tensor_digest, write_tensors
from diffinf_lib.compression import Compression
from diffinf_lib.configuration import StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet, Trajectories
from diffinf_lib.diffusion import Denoiser, check_trajectories, conditions_of, require_denoiser
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.gradients.compute import GradientConfig, LayerGradients, gradients_in_eigenbasis
from diffinf_lib.settings import own_settings


@own_settings
def gradient_shards(
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    *,
    batch_size: int = 256,
    shard_size: int = 25,
    store: Path | str | None = None,
    form: StoreFormat | None = None,
    progress: bool = False,
) -> Iterator[tuple[slice, LayerGradients]]:
    """The gradients of all images, a shard at a time: which rows, and their gradients in the eigenbasis.

    Without `store` each shard is computed and forgotten (single use). With it the shards are computed once, kept as
    safetensors and read afterwards, memory-mapped (continual deployment); a killed store goes on after its last whole shard.

    Args:
        form: how the gradients are kept, also in memory; a shard passes through it whether or not it is stored.

    Returns:
        for each shard its rows and its gradients `[n, d_out, d_in]` by block, or with a projection `{"projection": [n, k]}`.

    Raises:
        ConfigurationError: the curvature was fitted to a model of other layers.
        ArtifactError: `store` holds gradients of another configuration.
    """
    curvature.blocks(model)  # refuses a curvature of other layers
    check_trajectories(images, config.objective, require_denoiser(model).process)
    require(shard_size > 0, f"shard_size={shard_size}: give a positive number")
    device = model.device
    curvature = curvature.to(device)
    form = form or StoreFormat()
    compression = Compression(curvature, form)
    rows = [slice(start, min(start + shard_size, len(images))) for start in range(0, len(images), shard_size)]

    def compute(where: slice) -> LayerGradients:
        return compression.encode(
            gradients_in_eigenbasis(model, curvature, images.subset(where), config, batch_size=batch_size)
        )

    if store is None:
        for where in tqdm(rows, desc=config.stage, unit="shard", disable=not progress):
            yield where, compression.decode(compute(where))
        return
    identity = store_identity(model, curvature, images, config, form) | {"shard_size": shard_size}
    paths = [Path(store) / f"shard-{index:05d}.safetensors" for index in range(len(rows))]
    with stage(store, identity, name="gradients") as needed:
        for where, path in tqdm(
            list(zip(rows, paths, strict=True)), desc=config.stage, disable=not (progress and needed)
        ):
            if needed and not _is_whole(path, where):
                gradients = compute(where)
                write_tensors(path, gradients, metadata=_content(gradients))
    for where, path in zip(rows, paths, strict=True):
        yield where, compression.decode({name: value.to(device) for name, value in read_tensors(path).items()})


def store_identity(
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    form: StoreFormat,
) -> dict[str, Any]:
    """Everything stored gradients depend on, as plain values."""
    told = [*(conditions_of(model, images) or {}).values()]
    if isinstance(images, Trajectories) and config.objective.on_trajectories:
        told += [images.states, images.guesses]
    return {
        "gradients": plain(config),
        "format": plain(form),
        "model": model.identity,
        "curvature": curvature.digest,
        "images": tensor_digest(images.images, images.ids, *told),
    }


def _is_whole(path: Path, rows: slice) -> bool:
    """Whether a shard of an unfinished store is there and holds what was written; a damaged one is named in a warning."""
    if not path.exists():
        return False
    try:
        tensors = read_tensors(path)
        whole = read_tensor_metadata(path) == _content(tensors)
        whole = whole and all(len(tensor) == rows.stop - rows.start for tensor in tensors.values())
    except ArtifactError:
        whole = False
    if not whole:
        warnings.warn(f"{path}: damaged; the shard is computed again", stacklevel=2)
    return whole


def _content(gradients: dict[str, Tensor]) -> dict[str, str]:
    return {"content": tensor_digest(*(gradients[name] for name in sorted(gradients)))}


def all_gradients(shards: Iterator[tuple[slice, LayerGradients]]) -> LayerGradients:
    """Every shard in one piece; for the queries, or where all of them fit into memory."""
    parts = [gradients for _, gradients in shards]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
