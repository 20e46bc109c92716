"""Task: what is to be attributed, and the gradients that methods share while they do it.

Each set of gradients (which images, which objective, which draws, which checkpoint) is computed once, kept in the task's
folder if it has one, and its price is written down: a method's cost is that of everything it read, whoever paid first.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_json
from diffinf_lib.attribution.influence import query_gradient_config, together
from diffinf_lib.configuration import DrawConfig, MeasurementConfig, Objective, StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.gradients import GradientConfig, LayerGradients, all_gradients, gradient_shards
from diffinf_lib.gradients.store import store_identity
from diffinf_lib.measurements import MEASUREMENT_STAGE


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model with its curvature, somewhere along a training run.

    Attributes:
        name: names its folder of gradients.
        curvature_draws: forward and backward passes that its curvature took, over all images and both stages.
        curvature_seconds: what its curvature took.
        learning_rate: at that step.
        training_draws: forward and backward passes of a training that was for attribution alone.
        training_seconds: what it took.
    """

    name: str
    model: Denoiser
    curvature: Curvature
    curvature_draws: int = 0
    curvature_seconds: float = 0.0
    learning_rate: float = 1.0
    training_draws: int = 0
    training_seconds: float = 0.0


class Cost(NamedTuple):
    """What a method took.

    Attributes:
        draws: forward and backward passes of one image, for curvature, gradients and trainings beyond the run's own.
        seconds: wall time of these and of the scoring.
    """

    draws: int
    seconds: float

    @classmethod
    def of(cls, bill: Mapping[str, "Cost"]) -> "Cost":
        """The sum of a bill."""
        return cls(sum(cost.draws for cost in bill.values()), sum(cost.seconds for cost in bill.values()))


def store_folder(
    root: Path,
    kind: str,
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    form: StoreFormat | None = None,
) -> Path:
    """Where gradients are kept below `root`, under all that they depend on.

    Args:
        kind: `train` or `queries`, for people.
    """
    identity = store_identity(model, curvature, images, config, form or StoreFormat())
    return root / f"{kind}-{json_digest(plain(identity))[:12]}"


@dataclass(eq=False)
class AttributionTask:
    """One model, its training images, and the queries whose measurement is attributed to them.

    Attributes:
        final: the model whose queries are attributed.
        along: checkpoints of its training run, the final one last; loaded when first asked for.
        ensemble: final models of other seeds, the first one first.
        measurement: what of the queries is attributed.
        draws: of each training gradient.
        folder: where gradients are kept; None computes them whenever they are read.
        query_stage: what the queries' draws are keyed by: the measurement's own stage, or another.
        form: how training gradients are kept; None in full.
        clip_source: a CLIP model's folder or hub id, for the method that needs one.
    """

    final: Checkpoint
    train: ImageSet
    queries: ImageSet
    measurement: MeasurementConfig = MeasurementConfig()
    draws: DrawConfig = DrawConfig(250)
    seed: int = 0
    along: Callable[[int], list[Checkpoint]] | None = None
    ensemble: Callable[[], list[Checkpoint]] | None = None
    folder: Path | None = None
    query_stage: str = MEASUREMENT_STAGE
    form: StoreFormat | None = None
    clip_source: str = ""
    batch_size: int = 256
    _spent: dict[str, Cost] = field(default_factory=dict)
    _inside: float = 0.0

    def train_config(self, objective: Objective | None = None, draws: DrawConfig | None = None) -> GradientConfig:
        """How training gradients are taken: the loss over the task's draws unless told otherwise."""
        return GradientConfig(draws or self.draws, seed=self.seed, objective=objective or Objective())

    def query_config(self, objective: Objective | None = None) -> GradientConfig:
        """How query gradients are taken: of the measurement, or of another objective, over the measurement's draws."""
        config = replace(query_gradient_config(self.measurement, self.seed), stage=self.query_stage)
        return config if objective is None else replace(config, objective=objective)

    def train_shards(
        self, config: GradientConfig | None = None, at: Checkpoint | None = None
    ) -> Iterator[tuple[slice, LayerGradients]]:
        """Gradients of the training images in the eigenbasis, in pieces of a limited size."""
        return together(self._shards(self.train, "train", config or self.train_config(), at or self.final))

    def query_gradients(self, config: GradientConfig | None = None, at: Checkpoint | None = None) -> LayerGradients:
        """Gradients of the queries, all in memory."""
        return all_gradients(self._shards(self.queries, "queries", config or self.query_config(), at or self.final))

    def _shards(
        self, images: ImageSet, kind: str, config: GradientConfig, at: Checkpoint
    ) -> Iterator[tuple[slice, LayerGradients]]:
        form = self.form if kind == "train" else None
        store, key = None, f"{at.name}-{kind}-{json_digest(plain(config))[:12]}"
        if self.folder is not None:
            store = store_folder(self.folder, kind, at.model, at.curvature, images, config, form)
        shards = gradient_shards(
            at.model, at.curvature, images, config, batch_size=self.batch_size, store=store, form=form,
        )  # fmt: skip
        inside = 0.0
        while True:
            started = time.monotonic()
            shard = next(shards, None)
            inside += time.monotonic() - started
            if shard is None:
                break
            yield shard
        self._inside += inside
        made = inside if store is None else read_json(store / "manifest.json")["measured"]["wall_seconds"]
        self.spend(key, len(images) * config.draws.count, made)

    def spend(self, name: str, draws: int, seconds: float) -> None:
        """Write down what something took that is not a set of gradients of this task.

        Its seconds are added to those of scoring: give 0 for work that is done while a method runs.
        """
        self._spent[name] = Cost(draws, seconds)

    def use_curvature(self, at: Checkpoint | None = None) -> Curvature:
        """The curvature of a checkpoint, its price and that of the checkpoint written down."""
        at = at or self.final
        if at.training_draws:
            self.spend(f"{at.name}-training", at.training_draws, at.training_seconds)
        self.spend(f"{at.name}-curvature", at.curvature_draws, at.curvature_seconds)
        return at.curvature

    def costed(self, score: Callable[[], Float[Tensor, "D Q N"]]) -> tuple[Float[Tensor, "D Q N"], Cost]:
        """Run one method; its scores, and the price of all it used, paid for by it or by another before."""
        self._spent, self._inside = {}, 0.0
        started = time.monotonic()
        scores = score()
        self.spend("scoring", 0, time.monotonic() - started - self._inside)
        return scores, Cost.of(self.bill)

    @property
    def bill(self) -> dict[str, Cost]:
        """What the last method that ran used, and what each of it took."""
        return dict(self._spent)
