"""Scores of a report: one pass over the training gradients for all that is read from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts import read_tensors, write_tensors
from diffinf_lib.attribution.scoring import KeptQueries
from diffinf_lib.compression import Tensors, projected
from diffinf_lib.configuration import TRAIN_PURPOSE, Expectation, StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError
from diffinf_lib.gradients import GradientSet, LayerGradients, gradients_of
from diffinf_lib.report.options import STORE, ReportOptions

SHARD = 25
"""Training images of one part, where gradients are not kept."""


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
    model: Denoiser, curvature: Curvature, train: ImageSet, queries: ImageSet, options: ReportOptions, stores: Stores,
    *, batch_size: int, progress: bool,
) -> Tensors:  # fmt: skip
    """Everything that is read from training gradients.

    Returns:
        `scores` `[D, Q, N]`, float64; `self_influence` `[N]`, float64, at the first damping; `vectors` `[N, d]`, whitened
        gradients or their sketches.
    """
    taken = partial(gradients_of, model, curvature, batch_size=batch_size, progress=progress)
    asked = taken(
        queries, options.measurement.expectation(options.seed), store=stores.queries, store_format=stores.query_format
    )
    expectation = Expectation(options.draws, seed=options.seed)
    given = taken(train, expectation, store=stores.train, store_format=None if stores.train is None else STORE)
    kept = KeptQueries(asked, given, curvature, Inverses(options.dampings))
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

    if stores.train is None:
        alone = partial(gradients_of, model, curvature, expectation=expectation, batch_size=batch_size)
        parts = _read_once(train, alone, stores.parts, read, progress)
    else:
        parts = (read(shard) for _, shard in given.shards())
    found: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    whole = {name: torch.cat(values) for name, values in found.items()}
    return whole | {"scores": whole["scores"].transpose(0, 2).contiguous()}


def _read_once(
    train: ImageSet,
    taken: Callable[[ImageSet], GradientSet],
    folder: Path,
    read: Callable[[LayerGradients], Tensors],
    progress: bool,
) -> Iterator[Tensors]:
    """What is read from gradients that are not kept, a part at a time; parts that are there already are not made again."""
    for start in tqdm(range(0, len(train), SHARD), desc=TRAIN_PURPOSE, unit="part", disable=not progress):
        path = folder / f"part-{start // SHARD:05d}.safetensors"
        if not _is_whole(path):
            write_tensors(path, read(taken(train.subset(slice(start, start + SHARD))).whole()))
        yield read_tensors(path)


def _is_whole(path: Path) -> bool:
    try:
        return path.exists() and bool(read_tensors(path))
    except ArtifactError:
        return False
