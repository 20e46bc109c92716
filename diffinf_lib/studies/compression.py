"""Compression study: what each format saves of a store of gradients, and what it loses of the scores and of their LDS.

The paper's appendix F (Mlodozeniec et al. 2025) packs queries in few bits, in few singular directions, or in both. Here a
format packs the training gradients (algorithm 2), the preconditioned queries (algorithm 1), or both of them. All
gradients are computed once, in full; a format packs and unpacks them in memory. A cell is a format.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.iterative import solved_scores
from diffinf_lib.attribution.scoring import damped_scores, preconditioned
from diffinf_lib.compression import Compression, stored_bytes
from diffinf_lib.configuration import StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, mean_measurements, paired_difference, predicted_changes, spearman
from diffinf_lib.gradients import GradientSet, LayerGradients
from diffinf_lib.runs import curvature_of_run, query_gradients, train_gradients
from diffinf_lib.studies.study import Arrays, Study

FORMATS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"kind": "bfloat16"},
    "int8": {"kind": "int8"},
    "int4": {"kind": "int4"},
    "int8, not whitened": {"kind": "int8", "whitening": 1e12},
    "int4, not whitened": {"kind": "int4", "whitening": 1e12},
    "int8 a tensor, not whitened": {"kind": "int8_tensor"},
    **{f"svd, rank {rank}": {"kind": "svd", "rank": rank} for rank in (1, 2, 4, 8, 16)},
    **{f"svd, rank {rank}, int8": {"kind": "svd_int8", "rank": rank} for rank in (4, 8, 16)},
    **{f"projection to {k:,}": {"kind": "projection", "dimension": k} for k in (256, 1024, 4096, 16384)},
}
"""What `StoreFormat` each format of the study is; the whitening is the preset's damping unless it is given."""

USES = ("training gradients", "queries", "both")
"""What a format packs. A projection packs both or neither; it counts as one of training gradients too."""

VALUES = ("lds", "rank_correlation", "correlation")
"""What is kept of each query: its LDS, and the correlations over training images of its scores with those in float32."""


@dataclass(eq=False)
class CompressionStudy(Study[str]):
    """The study of one run against its ground truths.

    Its bundle's arrays are those of `results`, `[formats, uses, Q]` and `[formats, uses, 3]`, and `bytes` of one stored
    gradient, `[formats]`; its metrics are the means over queries, and the bytes as a share of those of float32.

    Attributes:
        formats: names of `FORMATS`; default all.

    Raises:
        ConfigurationError: the run keeps its gradients packed, or a format is unknown.
        DataError: a ground truth was made with other training images than the run's.
    """

    formats: Sequence[str] = tuple(FORMATS)

    name = "compression"
    takes_queries_of_truths = True

    def __post_init__(self) -> None:
        preset = self.run.preset
        for name, form in (("store_format", preset.store_format), ("query_format", preset.query_format)):
            full = form is None or form.kind == "float32"
            require(full, f"{name}={form and form.kind}: the study packs gradients itself; give {name}.kind=float32")
        super().__post_init__()
        self.inverses = Inverses([preset.damping], [preset.curvature.approximation])
        for label in self.formats:
            self.form(label)

    def options(self) -> dict[str, Any]:
        return {"formats": {label: self.form(label) for label in self.formats}}

    def cells(self) -> list[str]:
        return list(self.formats)

    def depends(self, cell: str) -> dict[str, Any]:
        return {"format": self.form(cell)}

    @cached_property
    def curvature(self) -> Curvature:
        """The run's."""
        return curvature_of_run(self.run).to(self.run.device)

    def form(self, label: str) -> StoreFormat:
        """The format of a row of `FORMATS`."""
        require(label in FORMATS, f"format={label!r}: give one of {'; '.join(FORMATS)}")
        return StoreFormat(**{"whitening": self.run.preset.damping, **FORMATS[label]})

    @cached_property
    def train(self) -> GradientSet:
        """Gradients of the training images."""
        return train_gradients(self.run).held()

    @cached_property
    def query_gradients(self) -> GradientSet:
        """Gradients of all sets of queries in one piece, in the order of the ground truths."""
        sets = [query_gradients(self.run, images).whole() for images in self.queries.values()]
        return GradientSet.of({name: torch.cat([gradients[name] for gradients in sets]) for name in sets[0]})

    @cached_property
    def preconditioned(self) -> LayerGradients:
        """The queries divided by the curvature, as the paper packs them."""
        return next(preconditioned(self.query_gradients.whole(), self.curvature, self.inverses))

    @cached_property
    def exact(self) -> dict[str, Float[Tensor, "Q N"]]:
        """Scores in float32 of every set of queries."""
        return self.scores(StoreFormat())["training gradients"]

    def scores(self, form: StoreFormat) -> dict[str, dict[str, Float[Tensor, "Q N"]]]:
        """Scores from what a format has left of the gradients, for each use that it has and each set of queries."""
        left = self.train.packed_as(self.curvature, form)
        scores = damped_scores(self.query_gradients, left, self.curvature, self.inverses)[0]
        if form.kind == "projection":
            return dict.fromkeys(("training gradients", "both"), self._by_set(scores))
        packing = Compression(self.curvature, form, preconditioned=True)
        packed = [GradientSet.of(packing.decode(packing.encode(self.preconditioned)))]
        found = {"queries": solved_scores(packed, self.train)[0], "both": solved_scores(packed, left)[0]}
        return {use: self._by_set(scores) for use, scores in ({"training gradients": scores} | found).items()}

    def _by_set(self, scores: Float[Tensor, "A N"]) -> dict[str, Float[Tensor, "Q N"]]:
        sizes = [len(truth.query_ids) for truth in self.truths.values()]
        return dict(zip(self.truths, scores.split(sizes), strict=True))

    def results(self, label: str) -> Arrays:
        """What a format loses, computed once and kept; NaN for a use that the format does not have.

        Returns:
            for each query set `<set>/lds`, `<set>/rank_correlation`, `<set>/correlation` of each use and query, `[U, Q]`, and
            `<set>/difference`, the LDS minus that of float32 and the ends of its interval, `[U, 3]`.
        """
        return self.arrays(label)

    def computed(self, cell: str) -> Arrays:
        return self._compared(self.scores(self.form(cell)))

    def _compared(self, scores: Mapping[str, Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for name, truth in self.truths.items():
            lost = [
                compared(scores[use][name], self.exact[name], truth) if use in scores else missing(truth)
                for use in USES
            ]
            found |= {f"{name}/{key}": np.stack([entry[key] for entry in lost]) for key in lost[0]}
        return found

    def stored_bytes(self, label: str) -> int:
        """Bytes of one stored gradient."""
        return stored_bytes(self.form(label), [layer.shape for layer in self.curvature.layers.values()])

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        """All formats, and the bytes of each."""
        rows = [self.results(label) for label in self.cells()]
        arrays = {key: np.stack([row[key] for row in rows]).astype(np.float32) for key in rows[0]}
        size = [self.stored_bytes(label) for label in self.cells()]
        means = {key: _listed(v if key.endswith("/difference") else v.mean(-1)) for key, v in arrays.items()}
        metrics = {
            "formats": self.cells(),
            "uses": USES,
            "bytes": [count / self.stored_bytes("float32") for count in size],
            "means": means,
            "ceiling": self.ceilings(),
        }
        return arrays | {"bytes": np.array(size)}, metrics


def compared(scores: Float[Tensor, "Q N"], exact: Float[Tensor, "Q N"], truth: GroundTruth) -> dict[str, np.ndarray]:
    """What scores lose against exact ones: `VALUES` of each query, `[Q]`; the LDS's difference and its interval, `[3]`."""
    value, (low, high) = paired_difference(scores, exact, truth)
    both = scores.numpy(), exact.numpy()
    return {
        "lds": spearman(predicted_changes(scores, truth), mean_measurements(truth)),
        "rank_correlation": spearman(*both),
        "correlation": pearson(*both),
        "difference": np.array([value, low, high]),
    }


def missing(truth: GroundTruth) -> dict[str, np.ndarray]:
    """What `compared` gives, all of it NaN."""
    nothing = np.full(len(truth.query_ids), np.nan)
    return dict.fromkeys(VALUES, nothing) | {"difference": np.full(3, np.nan)}


def pearson(first: Float[np.ndarray, "Q N"], second: Float[np.ndarray, "Q N"]) -> Float[np.ndarray, "Q"]:
    """Pearson's correlation of each row; 0 where a row is constant."""
    a, b = (values - values.mean(-1, keepdims=True) for values in (first, second))
    scale = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.divide((a * b).sum(-1), scale, out=np.zeros_like(scale), where=scale > 0)


def _listed(values: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON does not know."""
    found = values.astype(object)
    found[np.isnan(values)] = None
    return found.tolist()
