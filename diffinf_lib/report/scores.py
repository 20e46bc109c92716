"""Scores of a report: one pass over the training gradients for all that is read from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts import read_tensors, write_tensors
from diffinf_lib.attribution.influence import query_gradient_config, together
from diffinf_lib.attribution.scoring import Inverses, KeptQueries
from diffinf_lib.compression import projected
from diffinf_lib.configuration import StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError
from diffinf_lib.gradients import GradientConfig, LayerGradients, gradient_shards
from diffinf_lib.report.options import STORE, Options

SHARD = 25
"""Training images of one part, where gradients are not kept."""

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Stores:
    """Where gradients are kept, and in which form.

    Attributes:
        train: folder of training gradients; None computes them once and keeps what was read from them, in `parts`.
        queries: folder of query gradients.
        query_format: of the kept queries, on disk and in memory; None in full.
        sketch: dimension in which training images are compared; None for whole gradients.
    """

    train: Path | None
    parts: Path
    queries: Path
    query_format: StoreFormat | None = None
    sketch: int | None = None


def whitened(
    gradients: LayerGradients, curvature: Curvature, damping: float, sketch: int | None = None
) -> Float[Tensor, "n d"]:
    """(F + λI)^(−1/2) g of each gradient as one row, or a random projection of it that keeps inner products in expectation."""
    inverses = Inverses([damping])
    rows = {name: g * next(inverses.factors(curvature, name)).sqrt() for name, g in gradients.items()}
    joined = (
        torch.cat([value.flatten(1) for value in rows.values()], dim=1) if sketch is None else projected(rows, sketch)
    )
    return joined.cpu()


def score_training_images(
    model: Denoiser, curvature: Curvature, train: ImageSet, queries: ImageSet, options: Options, stores: Stores,
    *, batch_size: int, progress: bool,
) -> Tensors:  # fmt: skip
    """Everything that is read from training gradients.

    Returns:
        `scores` `[D, Q, N]`, float64; `self_influence` `[N]`, float64, at the first damping; `vectors` `[N, d]`, whitened
        gradients or their sketches.
    """
    shared: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    query_config = query_gradient_config(options.measurement, options.seed)
    query_shards = gradient_shards(
        model, curvature, queries, query_config, store=stores.queries, form=stores.query_format, **shared
    )
    form = None if stores.train is None else STORE
    kept = KeptQueries(
        (gradients for _, gradients in together(query_shards)), curvature, Inverses(options.dampings),
        stores.query_format, form,
    )  # fmt: skip
    count = len(train)

    def read(gradients: LayerGradients) -> Tensors:
        squares = whitened(gradients, curvature, options.dampings[0])
        vectors = (
            squares if stores.sketch is None else whitened(gradients, curvature, options.dampings[0], stores.sketch)
        )
        return {
            "scores": (kept.scores(gradients) / count).transpose(0, 2).contiguous(),
            "self_influence": squares.square().sum(1, dtype=torch.float64) / count,
            "vectors": vectors,
        }

    config = GradientConfig(options.draws, seed=options.seed)
    if stores.train is None:
        parts = _read_once(model, curvature, train, config, stores.parts, read, shared)
    else:
        shards = gradient_shards(model, curvature, train, config, store=stores.train, form=STORE, **shared)
        parts = (read(gradients) for _, gradients in together(shards))
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    whole = {name: torch.cat(values) for name, values in found.items()}
    return whole | {"scores": whole["scores"].transpose(0, 2).contiguous()}


def _read_once(
    model: Denoiser,
    curvature: Curvature,
    train: ImageSet,
    config: GradientConfig,
    folder: Path,
    read: Callable[[LayerGradients], Tensors],
    shared: dict[str, Any],
) -> Iterator[Tensors]:
    """What is read from gradients that are not kept, a part at a time; parts that are there already are not made again."""
    starts = range(0, len(train), SHARD)
    for start in tqdm(starts, desc=config.stage, unit="part", disable=not shared["progress"]):
        path = folder / f"part-{start // SHARD:05d}.safetensors"
        if not _is_whole(path):
            images = train.subset(slice(start, start + SHARD))
            quiet = shared | {"progress": False}
            _, gradients = next(gradient_shards(model, curvature, images, config, shard_size=SHARD, **quiet))
            write_tensors(path, read(gradients))
        yield read_tensors(path)


def _is_whole(path: Path) -> bool:
    try:
        return path.exists() and bool(read_tensors(path))
    except ArtifactError:
        return False
