"""Pictures after removal: what retrained models draw from a query's own seed, and how far that is from the full training's.

A generated query has a seed: the noise it began with, and that of every step. Each retrained model draws its own picture from
the same seed. It is compared with that of the full training with the same training seed, so that only the images left out
differ between the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from diffinf_lib.data import ImageSet
from diffinf_lib.data.selection import evenly_spaced
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.evaluation import removal_outcome
from diffinf_lib.features import distances, middle_features
from diffinf_lib.pictures import from_bytes, to_bytes
from diffinf_lib.runs import Run, as_queries
from diffinf_lib.sampling import sample, sample_seeds
from diffinf_lib.shapes import Images

COMPARED = 200
"""Training images whose distances to each other are the unit of distances between pictures, at most."""

KINDS = ("pixel", "feature")
"""What distances are taken in: pixels, and the full model's middle features."""

Pair = tuple[Float[np.ndarray, "shares 2 G K"], Float[np.ndarray, "shares sets G K"]]
"""Changes of the same G queries after their own removals, and after the random ones."""


@dataclass(frozen=True, eq=False)
class SeededPictures:
    """The pictures of some of a run's generated queries, by retrained models.

    Attributes:
        drawn: positions of the D queries that every model draws.
        asked: positions of the G of them whose own images are removed.
    """

    run: Run
    drawn: list[int]
    asked: list[int]

    @property
    def rows(self) -> list[int]:
        """Places of the G queries among the D."""
        return [self.drawn.index(position) for position in self.asked]

    def of(self, model: Denoiser) -> UInt8[np.ndarray, "D C H W"]:
        """What a model draws from the D queries' seeds, in 8 bits."""
        run, sampling = self.run, self.run.preset.sampling
        seeds = sample_seeds(run.seed, sampling.count)
        images = sample(
            model, [seeds[position] for position in self.drawn], run.data.train.shape, method=sampling.method,
            steps=sampling.steps,
        )  # fmt: skip
        return to_bytes(images).numpy()

    def arrays(
        self,
        own: UInt8[np.ndarray, "shares 2 G K C H W"],
        random: UInt8[np.ndarray, "shares sets D K C H W"],
        full: UInt8[np.ndarray, "D F C H W"],
        queries: ImageSet,
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The pictures and their distances, as the bundle of `RemovalStudy` names them.

        Args:
            own: pictures after each query's own removals.
            random: after the random ones.
            full: by the full trainings; the first K have the seeds of the removals.
            queries: all generated queries.
        """
        drawn = {"": own, "random_": random, "full_": full}
        paired = full[:, : own.shape[3]]
        shown = to_bytes(queries.subset(self.drawn).images).numpy()[:, None]
        references = {"": paired[self.rows], "random_": paired, "full_": shown}
        found = {f"{name}pictures": values for name, values in drawn.items()} | {"drawn": np.array(self.drawn)}
        for kind, seen in zip(KINDS, (_pixels, self._features), strict=True):
            unit = seen(self._compared)
            for name, values in drawn.items():
                here, there = (seen(from_bytes(torch.tensor(levels))) for levels in (values, references[name]))
                found[f"{name}{kind}_distances"] = distances(here, there, unit).numpy()
        return found

    def outcomes(self, arrays: Mapping[str, np.ndarray], shares: Sequence[float], losses: Pair) -> dict[str, Any]:
        """How far pictures went and how the queries' loss changed, by share, kind and condition: mean, low and high over
        queries and seeds. `again` is the full training with other seeds than the first, against the query.
        """
        moved = {kind: (arrays[f"{kind}_distances"], arrays[f"random_{kind}_distances"][:, :, self.rows])
                 for kind in KINDS}  # fmt: skip
        found: dict[str, Any] = {
            f"{share:g}": {
                kind: _outcome(own[i], random[i]) for kind, (own, random) in {"loss": losses, **moved}.items()
            }
            for i, share in enumerate(shares)
        }
        others = {kind: arrays[f"full_{kind}_distances"][:, 1:] for kind in KINDS}
        if others["pixel"].shape[1]:
            found["again"] = {kind: _written({"full": values})["full"] for kind, values in others.items()}
        return found

    @property
    def _compared(self) -> Images:
        """The training images whose distances to each other are the unit."""
        images = self.run.data.train.images
        return images[evenly_spaced(min(COMPARED, len(images)), len(images))]

    def _features(self, images: Float[Tensor, "*A C H W"]) -> Float[Tensor, "*A F"]:
        """The full model's features of images."""
        found = middle_features(self.run.model.model, as_queries(images.flatten(0, -4)), seed=self.run.seed)
        return found.unflatten(0, images.shape[:-3])


def _pixels(images: Float[Tensor, "*A C H W"]) -> Float[Tensor, "*A F"]:
    return images.flatten(-3)


def _outcome(own: Float[np.ndarray, "2 G K"], random: Float[np.ndarray, "sets G K"]) -> dict[str, list[float]]:
    """Mean, low and high of changes for one share, by condition."""
    return _written({"top": own[0], "random": random.transpose(1, 0, 2), "bottom": own[1]})


def _written(changes: Mapping[str, Float[np.ndarray, "G ..."]]) -> dict[str, list[float]]:
    """Mean, low and high of each."""
    return {name: [found.mean, *found.interval] for name, found in removal_outcome(changes, None).changes.items()}
