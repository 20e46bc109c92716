"""Scores of a report: one pass over the training gradients for all that is read from them."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import KeptQueries
from diffinf_lib.compression import Tensors, projected
from diffinf_lib.configuration import Expectation, StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.gradients import LayerGradients, gradients_of, pieces
from diffinf_lib.report.options import STORE, ReportOptions


@dataclass(frozen=True)
class Stores:
    """Where gradients are kept, and in which form.

    Attributes:
        train: folder of training gradients; None computes them once and keeps what was read from them, in `pieces`.
        queries: folder of query gradients.
        query_format: of the kept queries, on disk and in memory; None in full.
        sketch: dimension in which training images are compared; None for whole gradients.
    """

    train: Path | None
    pieces: Path
    queries: Path
    query_format: StoreFormat | None = None
    sketch: int | None = None


def whitened(gradients: LayerGradients, curvature: Curvature, inverses: Inverses) -> LayerGradients:
    """(F + λI)^(−1/2) g of each gradient, by block, at the first of the dampings."""
    return {name: g * next(inverses.factors(curvature, name)).sqrt() for name, g in gradients.items()}


def compared_by(whitened: LayerGradients, sketch: int | None) -> Float[Tensor, "n d"]:
    """Whitened gradients as one row each, or a random projection that keeps their inner products in expectation."""
    if sketch is not None:
        return projected(whitened, sketch)
    return torch.cat([value.flatten(1) for value in whitened.values()], dim=1)


def score_training_images(
    model: Denoiser, curvature: Curvature, train: ImageSet, queries: ImageSet, options: ReportOptions, stores: Stores,
    *, batch_size: int, progress: bool, identity: Any = None,
) -> Tensors:  # fmt: skip
    """Everything that is read from training gradients, in one pass over them.

    Args:
        identity: all that it depends on, as plain values; a killed pass whose gradients are not kept goes on with its own.

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
    inverses, count = Inverses(options.dampings, [options.curvature.approximation]), len(train)
    kept = KeptQueries(asked, given, curvature, inverses)

    def read(gradients: LayerGradients) -> Tensors:
        scores, white = kept.scores(gradients) / count, whitened(gradients, curvature, inverses)
        lengths = torch.stack([value.flatten(1).square().sum(1, dtype=torch.float64) for value in white.values()])
        return {
            "scores": scores.transpose(0, 2).contiguous(),
            "self_influence": lengths.sum(0) / count,
            "vectors": compared_by(white, stores.sketch),
        }

    found: dict[str, list[Tensor]] = {}
    for _, piece in pieces(
        given, read, up_to=kept.meets, folder=None if stores.train else stores.pieces, identity=identity
    ):
        for name, value in piece.items():
            found.setdefault(name, []).append(value)
    whole = {name: torch.cat(found.pop(name)) for name in list(found)}
    return whole | {"scores": whole["scores"].transpose(0, 2).contiguous()}
