"""Gradients: per-example loss gradients averaged over draws, kept in the eigenbasis of the curvature.

In the eigenbasis K-FAC, EK-FAC and every damping divide the same numbers by different ones, so gradients are computed
once and scored many times. A store keeps them in shards; a shard that is missing or damaged is computed again.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts import plain, read_tensor_metadata, read_tensors, stage, tensor_digest, write_tensors
from diffinf_lib.curvature import Curvature, curvature_layers
from diffinf_lib.curvature.layers import differentiable, gradient_matrices, layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, DrawConfig, Network, NoiseSchedule, iterate_draws, per_draw_loss
from diffinf_lib.errors import ArtifactError, ConfigurationError, require

LayerGradients = dict[str, Float[Tensor, "n O I"]]

TRAIN_STAGE = "train-gradients"
"""The stage under which the draws of training gradients are keyed."""


@dataclass(frozen=True)
class GradientConfig:
    """Which draws a gradient is averaged over.

    Attributes:
        draws: the draws of each example.
        stage: what the draws are keyed by; a query takes its measurement's stage, and with it the measurement's draws.
        seed: of the draws.
    """

    draws: DrawConfig = DrawConfig(250)
    stage: str = TRAIN_STAGE
    seed: int = 0


def example_gradient(
    model: Network,
    image: Float[Tensor, "1 C H W"],
    example_id: int,
    config: GradientConfig,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 256,
) -> dict[str, Float[Tensor, "O I"]]:
    """∇ℓ(θ, x): the gradient of one example's loss averaged over its draws, one matrix a layer.

    Args:
        batch_size: draws a pass; the result depends on it by rounding only.

    Raises:
        ConfigurationError: a gradient is not finite; the message names the layer and the example.
    """
    layers = curvature_layers(model)
    parameters = layer_parameters(layers)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    ids = torch.tensor([example_id])
    batches = iterate_draws(
        image, ids, config.draws, seed=config.seed, stage=config.stage, schedule=schedule, batch_size=batch_size
    )
    for batch in batches:
        with differentiable(model, layers):
            losses = per_draw_loss(model, batch.images, batch.timesteps, batch.noise, schedule)
            gradients = torch.autograd.grad(losses.sum() / config.draws.count, parameters)
        for sum_so_far, gradient in zip(total, gradients, strict=True):
            sum_so_far += gradient
    matrices = gradient_matrices(layers, tuple(total))
    for name, matrix in matrices.items():
        if not torch.isfinite(matrix).all():
            raise ConfigurationError(
                f"layer {name}: the gradient of example {example_id} is not finite; check the weights"
            )
    return matrices


def gradients_in_eigenbasis(
    model: Network,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 256,
) -> LayerGradients:
    """Q_Bᵀ ∇ℓ(θ, x_n) Q_A of every image, `[n, d_out, d_in]` a layer."""
    first = next(model.parameters())
    pixels = images.images.to(first.device, first.dtype)
    rows = [
        example_gradient(model, pixels[i : i + 1], int(images.ids[i]), config, schedule=schedule, batch_size=batch_size)
        for i in range(len(images))
    ]
    return {
        name: layer.to_eigenbasis(torch.stack([row[name] for row in rows])) for name, layer in curvature.layers.items()
    }


def gradient_shards(
    model: Network,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    *,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 256,
    shard_size: int = 25,
    store: Path | str | None = None,
    progress: bool = False,
) -> Iterator[tuple[slice, LayerGradients]]:
    """The gradients of all images, a shard at a time: which rows, and their gradients in the eigenbasis.

    Without `store` each shard is computed and forgotten (single use). With it the shards are computed once, kept as
    safetensors and read afterwards (continual deployment); a killed store goes on after its last whole shard.

    Raises:
        ConfigurationError: the curvature was fitted to a model of other layers.
        ArtifactError: `store` holds gradients of another configuration.
    """
    curvature.check_fits(model)
    require(shard_size > 0, f"shard_size={shard_size}: give a positive number")
    device = next(model.parameters()).device
    curvature = curvature.to(device)
    rows = [slice(start, min(start + shard_size, len(images))) for start in range(0, len(images), shard_size)]

    def compute(where: slice) -> LayerGradients:
        return gradients_in_eigenbasis(
            model, curvature, images.subset(where), config, schedule=schedule, batch_size=batch_size
        )

    if store is None:
        for where in tqdm(rows, desc=config.stage, unit="shard", disable=not progress):
            yield where, compute(where)
        return
    identity = store_identity(model, curvature, images, config, schedule) | {"shard_size": shard_size}
    paths = [Path(store) / f"shard-{index:05d}.safetensors" for index in range(len(rows))]
    with stage(store, identity, name="gradients") as needed:
        for where, path in tqdm(
            list(zip(rows, paths, strict=True)), desc=config.stage, disable=not (progress and needed)
        ):
            if needed and not _is_whole(path, where):
                gradients = compute(where)
                write_tensors(path, gradients, metadata=_content(gradients))
    for where, path in zip(rows, paths, strict=True):
        yield where, {name: value.to(device) for name, value in read_tensors(path).items()}


def store_identity(
    model: Network, curvature: Curvature, images: ImageSet, config: GradientConfig, schedule: NoiseSchedule
) -> dict[str, Any]:
    """Everything stored gradients depend on, as plain values."""
    return {
        "gradients": plain(config),
        "schedule": plain(schedule),
        "weights": tensor_digest(*model.state_dict().values()),
        "curvature": curvature.digest,
        "images": tensor_digest(images.images, images.ids),
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


def _content(gradients: LayerGradients) -> dict[str, str]:
    return {"content": tensor_digest(*(gradients[name] for name in sorted(gradients)))}


def all_gradients(shards: Iterator[tuple[slice, LayerGradients]]) -> LayerGradients:
    """Every shard in one piece; for the queries, or where all of them fit into memory."""
    parts = [gradients for _, gradients in shards]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
