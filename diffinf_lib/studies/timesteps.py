"""Timestep study: whether the loss at some timesteps is predicted best by scores of the loss at those timesteps.

Observation 1 of Mlodozeniec et al. 2025: scores of the loss at higher timesteps predict the loss at lower ones better than
scores of that loss itself. The timesteps are cut into equal ranges; the loss of every query within each range is measured
by every model of a ground truth, and scored by influence, over the draws that the ground truth itself is measured on: the
parts of both add up to the loss and its scores. A cell is a model.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution import influence_by_timestep
from diffinf_lib.configuration import MEASUREMENT_PURPOSE, DrawConfig, MeasurementConfig, Process
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, example_draws
from diffinf_lib.errors import require
from diffinf_lib.evaluation import (
    GroundTruth,
    ceiling,
    mean_measurements,
    predicted_changes,
    spearman,
    split_half_reliability,
    timestep_proxies,
)
from diffinf_lib.evaluation.lds import TUNABLE_SUBSETS
from diffinf_lib.measurements import measure_all
from diffinf_lib.runs import (
    QUERY_SETS,
    curvature_of_run,
    retrained_model,
    shard_of,
    subset_masks,
    train_gradients,
)
from diffinf_lib.runs.ground_truth import model_name
from diffinf_lib.studies.study import Arrays, Study


def timestep_shares(
    images: ImageSet,
    draws: DrawConfig,
    *,
    bins: int = 10,
    seed: int = 0,
    process: Process,
) -> Float[Tensor, "bins Q"]:
    """The share of each query's draws that falls into each equal range of t, by weight: `[bins, Q]`, float64.

    The loss is the sum over ranges of share · loss within the range.

    Args:
        seed: of the measurement's draws.

    Raises:
        ConfigurationError: the ranges are not equal, or one holds no draw of some query.
    """
    equal = bins > 0 and process.num_train_timesteps % bins == 0
    require(
        equal, f"bins={bins}: give a divisor of the {process.num_train_timesteps} timesteps, for ranges of one length"
    )
    shares = torch.zeros(bins, len(images), dtype=torch.float64)
    for query, example in enumerate(images.ids.tolist()):
        # timesteps are drawn before noise, so those of an image of one pixel are those of any image
        drawn = example_draws(example, (1, 1, 1), draws, seed=seed, purpose=MEASUREMENT_PURPOSE, process=process)
        shares[:, query].index_add_(
            0, drawn.timesteps * bins // process.num_train_timesteps, drawn.draw_weights.double()
        )
    empty = (shares == 0).any(1).nonzero().flatten().tolist()
    require(not empty, f"bins={bins} with {draws.count} draws: range {empty[:1]} holds no draw of some query; give fewer bins "
            "or more draws")  # fmt: skip
    return shares / draws.count


def losses_by_timestep(
    model: Denoiser,
    images: ImageSet,
    draws: DrawConfig,
    *,
    bins: int = 10,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "bins Q"]:
    """The loss of every query within each equal range of t, `[bins, Q]`, float64, on the CPU, from one pass over the draws.

    Each is the weighted mean over the measurement's draws in the range; the same draws for every model.

    Args:
        bins: number of ranges, a divisor of the number of timesteps.
        seed: of the draws, not of the model.
        batch_size: draws a pass.

    Raises:
        ConfigurationError: the ranges are not equal, or one holds no draw of some query.
    """
    shares = timestep_shares(images, draws, bins=bins, seed=seed, process=model.process)
    parts = [MeasurementConfig("weighted_loss", draws, loss_weights=tuple(row)) for row in np.eye(bins).tolist()]
    return measure_all(model, images, parts, seed=seed, batch_size=batch_size) / shares


def lds_by_timestep(scores: Float[Tensor, "bins Q N"], truths: list[GroundTruth]) -> Float[np.ndarray, "bins C Q"]:
    """The LDS of each query, of each scores (first axis) against each ground truth (second axis).

    Raises:
        ConfigurationError: there are too few subsets for a rank correlation.
        DataError: scores that are NaN or infinite.
    """
    predicted = np.stack([predicted_changes(matrix, truths[0]) for matrix in scores])
    measured = np.stack([mean_measurements(truth) for truth in truths])
    return spearman(*np.broadcast_arrays(predicted[:, None], measured[None]))


class RetrainedCell(NamedTuple):
    """One model of the ground truth."""

    subset: int
    seed: int


@dataclass(eq=False)
class TimestepStudy(Study[RetrainedCell]):
    """The study of one run, over the models of its ground truth; those that are not there are trained.

    Its bundle's arrays are, for each set of queries, float32: `<set>/lds [bins + 1, bins + 1, Q]`, scores of each range of t
    (first axis) against the loss measured in each range (second axis), the whole loss last on both axes; `<set>/loss
    [bins, Q]`, the mean loss within each range over all models; `<set>/advantage [bins + 1, bins]` and
    `<set>/advantage_interval [bins + 1, bins, 2]`, the LDS of each scores less that of the measured range's own, paired; and
    `edges [bins + 1]`, where the ranges begin and end. The advantage needs enough subsets to halve.

    Attributes:
        bins: number of ranges of t.
        subsets: number of subsets M; 0: the preset's.
        seeds: trainings of each subset, K; 0: the preset's.

    Raises:
        ConfigurationError: the preset measures something else than the loss, or its draws do not suffice for the ranges.
    """

    bins: int = 10
    subsets: int = 0
    seeds: int = 0

    name = "timesteps"

    def __post_init__(self) -> None:
        super().__post_init__()
        config, measurement = self.run.preset.subsets, self.run.preset.measurement
        require(measurement.name == "loss", f"measurement={measurement.name!r}: the study is of the loss within ranges of t; "
                "give measurement.name=loss")  # fmt: skip
        self.subsets, self.seeds = self.subsets or config.count, self.seeds or config.seeds
        self._cells = [RetrainedCell(*pair) for pair in shard_of(self.subsets, self.seeds, 0, 1)]
        self._shares(self.run.data.queries)  # refused before any model is trained

    def cells(self) -> list[RetrainedCell]:
        return self._cells

    def label(self, cell: RetrainedCell) -> str:
        return model_name(*cell)

    def depends(self, cell: RetrainedCell) -> dict[str, Any]:
        return {"bins": self.bins}

    def options(self) -> dict[str, Any]:
        return {"bins": self.bins, "subsets": self.subsets, "seeds": list(range(self.seeds))}

    def _shares(self, images: ImageSet) -> Float[Tensor, "bins Q"]:
        preset = self.run.preset
        return timestep_shares(
            images, preset.measurement.draws, bins=self.bins, seed=self.run.seed, process=preset.process
        )

    def computed(self, cell: RetrainedCell) -> Arrays:
        return self._measured_by(retrained_model(self.run, *cell))

    def _measured_by(self, model: Denoiser) -> Arrays:
        preset, seed = self.run.preset, self.run.seed
        return {
            name: losses_by_timestep(model, images, preset.measurement.draws, bins=self.bins, seed=seed).numpy()
            for name, images in self.queries.items()
        }

    def measurements(self, queries: str) -> Float[Tensor, "M K Q bins"]:
        """The loss of each query within each range of t by every retrained model, float64.

        Raises:
            ArtifactError: some models have not measured yet; the message counts them.
        """
        self.require_finished()
        read = [[self.arrays(RetrainedCell(subset, seed))[queries].T for seed in range(self.seeds)]
                for subset in range(self.subsets)]  # fmt: skip
        return torch.from_numpy(np.array(read))

    def scores(self, queries: str) -> Float[Tensor, "bins Q N"]:
        """Scores of the loss within each range of t, by the preset's damping and approximation; computed once and kept."""
        run, preset, images = self.run, self.run.preset, self.queries[queries]

        def scores() -> Arrays:
            parts = influence_by_timestep(
                run.model.model, curvature_of_run(run), train_gradients(run), images,
                bins=self.bins, measurement=preset.measurement, damping=preset.damping,
                approximation=preset.curvature.approximation, seed=run.seed,
            )  # fmt: skip
            return {"scores": (parts[:, 0] / self._shares(images)[:, :, None]).numpy()}

        kept = self.kept_besides(f"scores-{queries}", {"scores": queries, "bins": self.bins})
        return torch.from_numpy(kept.arrays(scores)["scores"])

    def with_whole(self, scores: Float[Tensor, "bins Q N"], queries: str) -> Float[Tensor, "bins+1 Q N"]:
        """Scores of the ranges, and behind them those of the whole loss."""
        whole = torch.einsum("bq,bqn->qn", self._shares(self.queries[queries]), scores)
        return torch.cat([scores, whole[None]])

    def truths_of(self, queries: str) -> list[GroundTruth]:
        """The ground truth of the loss within each range of t, and behind them that of the whole loss."""
        images, measured = self.queries[queries], self.measurements(queries)
        whole = torch.einsum("bq,mkqb->mkq", self._shares(images), measured)
        masks, train_ids = subset_masks(self.run, self.subsets), self.run.data.train.ids
        return [GroundTruth(masks, losses, train_ids, images.ids) for losses in (*measured.unbind(-1), whole)]

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        edges = np.linspace(0, self.run.preset.process.num_train_timesteps, self.bins + 1).astype(np.int64)
        arrays, sets = {"edges": edges}, {}
        for queries in QUERY_SETS:
            found, sets[queries] = self._evaluated(queries)
            arrays |= {f"{queries}/{key}": values.astype(np.float32) for key, values in found.items()}
        metrics = {"bins": self.bins, "retrained_models": len(self.cells()), "measurement_seconds": self.seconds()}
        return arrays, metrics | {"sets": sets}

    def _evaluated(self, queries: str) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and metrics of one set of queries; in the metrics the whole loss is last."""
        truths, measured = self.truths_of(queries), self.measurements(queries)
        scores = self.with_whole(self.scores(queries), queries)
        found, losses = lds_by_timestep(scores, truths), measured.mean((0, 1)).T
        arrays = {"lds": found, "loss": losses.numpy()}
        metrics: dict[str, Any] = {
            "lds": found.mean(-1).tolist(),
            "ceiling": [ceiling(truth) for truth in truths],
            "mean_loss": losses.mean(1).tolist(),
        }
        if self.seeds > 1:
            metrics["reliability"] = [split_half_reliability(truth.measurements.numpy()) for truth in truths]
        if self.subsets >= TUNABLE_SUBSETS:  # the best proxy is chosen on one half and judged on the other
            proxies = timestep_proxies(scores, measured, truths[-1])
            arrays |= {"advantage": proxies.advantage, "advantage_interval": proxies.intervals}
            metrics["best"] = proxies.best.tolist()
            metrics["held_out_gain"] = [part.difference._asdict() for part in proxies.held_out]
            metrics["held_out_favourite"] = [int(part.favourite) for part in proxies.held_out]
        return arrays, metrics
