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
from diffinf_lib.compression import Tensors
from diffinf_lib.configuration import DrawConfig, Expectation, MeasurementConfig, Objective, StoreFormat
from diffinf_lib.curvature import Curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.gradients import GradientSet, gradients_of
from diffinf_lib.gradients.compute import GRADIENT_BATCH
from diffinf_lib.shapes import Images


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model with its curvature, somewhere along a training run.

    Attributes:
        name: names its folder of gradients.
        curvature_draws: forward and backward passes that its curvature took, over all images, for factors and corrections.
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
        query_draws: of each query gradient; None for the measurement's own.
        store_format: how training gradients are kept; None in full.
        keep_train: whether training gradients are kept there; else they are computed in full whenever they are read.
        query_format: how query gradients are kept; None in full.
        clip_source: a CLIP model's folder or hub id, for the method that needs one.
        pictures: what some images stand for, where they are latents; None: themselves.
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
    query_draws: DrawConfig | None = None
    store_format: StoreFormat | None = None
    keep_train: bool = True
    query_format: StoreFormat | None = None
    clip_source: str = ""
    pictures: Callable[[Images], Images] | None = None
    batch_size: int = GRADIENT_BATCH
    _spent: dict[str, Cost] = field(default_factory=dict)
    _inside: float = 0.0

    def train_gradients(
        self,
        objective: Objective | None = None,
        *,
        draws: DrawConfig | None = None,
        over: Expectation | None = None,
        at: Checkpoint | None = None,
        store_format: StoreFormat | None = None,
    ) -> GradientSet:
        """Gradients of the training images, of the loss over the task's draws unless told otherwise: of another objective, over
        other draws, or of another expectation; kept in the task's format or another."""
        own = Expectation(draws or self.draws, seed=self.seed, objective=objective or Objective())
        kept_as = store_format or (self.store_format if self.keep_train else None)
        return self._gradients(self.train, "train", over or own, at or self.final, kept_as)

    def query_gradients(
        self, objective: Objective | None = None, *, over: Expectation | None = None, at: Checkpoint | None = None
    ) -> GradientSet:
        """Gradients of the queries, of the measurement unless told otherwise: of another objective over its draws, or of
        another expectation."""
        own = self.measurement.expectation(self.seed, self.query_draws)
        expectation = over or (own if objective is None else replace(own, objective=objective))
        return self._gradients(self.queries, "queries", expectation, at or self.final, self.query_format)

    def _gradients(
        self, images: ImageSet, kind: str, expectation: Expectation, at: Checkpoint, store_format: StoreFormat | None
    ) -> GradientSet:
        found = gradients_of(
            at.model, at.curvature, images, expectation, batch_size=self.batch_size, store_format=store_format,
            below=self.folder if kind == "queries" or self.keep_train else None,
        )  # fmt: skip
        key = f"{at.name}-{kind}-{json_digest(plain(expectation))[:12]}"
        return replace(
            found, packed=lambda first: self._billed(found, first, key, len(images) * expectation.draws.count)
        )

    def _billed(self, gradients: GradientSet, first: int, key: str, draws: int) -> Iterator[tuple[slice, Tensors]]:
        """The shards of a set from a row on, and what they took."""
        shards, inside = gradients.packed(first), 0.0
        while True:
            started = time.monotonic()
            shard = next(shards, None)
            inside += time.monotonic() - started
            if shard is None:
                break
            handed = [shard]
            del shard
            yield handed.pop()  # not held while the next is made
        self._inside += inside
        kept = gradients.folder
        made = inside if kept is None else read_json(kept / "manifest.json")["measured"]["wall_seconds"]
        self.spend(key, draws, made)

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
