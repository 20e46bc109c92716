"""Removal: models retrained without the training images that influence names, and what they measure of the query.

The paper's Fig. 3 (Mlodozeniec et al. 2025). For a few queries the images of the highest scores (`top`: removal should raise
the measurement) or of the lowest ones (`bottom`: it should lower it) are left out and the full training is repeated. The
control is as many images taken at random, the same sets for all queries; the reference is the training on everything with
the same seeds. A retrained model is known by what it was not shown and by its training seed: equal removals are trained
once. Its measurements of every query are kept, its weights are not.

What the retrained models draw from the seeds of generated queries is kept too, see `removal_pictures`.
"""

import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from diffinf_lib.data.selection import evenly_spaced
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import DataError, require
from diffinf_lib.measurements import measure
from diffinf_lib.models import build_model
from diffinf_lib.options import Options, PositiveInt, Range
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.runs import QUERY_SETS, influence_scores
from diffinf_lib.studies.removal_pictures import Pair, SeededPictures
from diffinf_lib.studies.study import Arrays, Study
from diffinf_lib.training import train

GENERATED = "generated"
"""The set of queries that have a seed, and so a picture by each retrained model."""

CONDITIONS = ("top", "bottom")
"""Which end of a query's scores is removed, in the order of the bundle's arrays."""

Positions = tuple[int, ...]
"""Positions of training images, ascending."""


_SHARES = Range(
    lambda shares: bool(shares) and all(0 < share <= 0.5 for share in shares),
    "a list of shares above 0 and at most 0.5; beyond that the top and the bottom overlap",
)


_PLACES = Range(lambda places: all(a < b for a, b in zip((-1, *places), places, strict=False)),
                "a list of places from 0 on, ascending")  # fmt: skip


@dataclass(frozen=True)
class RemovalConfig(Options):
    """What is removed, for how many queries, how often retrained.

    Attributes:
        queries: how many of each set of queries, evenly spaced over it.
        part: which of them are asked about, places from 0 on among the held-out, then the generated ones; empty: all. The
            rest can follow later: models do not depend on it.
        shares: of the training images that are removed.
        seeds: trainings of each removal, K, with seeds 0 … K − 1.
        full_seeds: trainings on everything that draw pictures; those beyond `seeds` show what another seed alone changes.
        random_sets: sets removed at random for each share.
    """

    queries: PositiveInt = 6
    shares: Annotated[tuple[float, ...], _SHARES] = (0.02, 0.1)
    seeds: PositiveInt = 2
    full_seeds: PositiveInt = 2
    random_sets: PositiveInt = 6
    part: Annotated[tuple[int, ...], _PLACES] = ()

    @property
    def whole(self) -> int:
        """Trainings on everything: at least one for each seed of the removals."""
        return max(self.seeds, self.full_seeds)


class RemovalCell(NamedTuple):
    """One retrained model: the training images it was not shown, and its training seed."""

    removed: Positions
    seed: int


def removed_count(share: float, total: int) -> int:
    """How many of `total` training images a share is.

    Raises:
        ConfigurationError: it is none.
    """
    count = round(share * total)
    require(count > 0, f"share={share}: no image of {total}; give {1 / total:.2g} or more")
    return count


def extreme_positions(scores: Float[Tensor, "N"], count: int) -> tuple[Positions, Positions]:
    """The training images with the `count` highest and the `count` lowest scores of one query, in this order.

    Raises:
        DataError: a score is not finite.
    """
    finite = bool(scores.isfinite().all())
    require(finite, "scores: some are not finite; fit the curvature anew or raise the damping", DataError)
    order = scores.argsort(stable=True).tolist()
    return tuple(sorted(order[-count:])), tuple(sorted(order[:count]))


def random_positions(total: int, count: int, index: int, *, seed: int = 0) -> Positions:
    """Random set `index` of `count` training images; a smaller set of the same index is part of a larger one."""
    order = torch.randperm(total, generator=keyed_generator("removal", seed, index))
    return tuple(sorted(order[:count].tolist()))


@dataclass(eq=False)
class RemovalStudy(Study[RemovalCell]):
    """The removal experiment of one run.

    Its bundle's arrays are: `measurements [shares, 2, Q, K]` after removal of the top and of the bottom, `random [shares, sets,
    Q, K]`, `full [Q, K]`; the removed positions `removed [shares, 2, Q, k]` and `random_removed [shares, sets, k]`, filled up
    with −1 where a share removes fewer; of the queries `sets`, `positions` in the set, `ids`, `images [Q, C, H, W]`,
    `scores [Q, N]`; `train_ids [N]`, and `train_names` where they are files.

    Of the G generated queries among the Q, in their order: `pictures [shares, 2, G, K, C, H, W]`, drawn from the query's own
    seed after its removals, in 8 bits. Of all D generated queries that models draw, at the positions `drawn`, also
    `random_pictures [shares, sets, D, K, C, H, W]` and `full_pictures [D, F, C, H, W]`; F is K or more. Distances of the
    first two to the last are `pixel_distances [shares, 2, G, K]` and `random_pixel_distances [shares, sets, D, K]`;
    `full_pixel_distances [D, F]` are those of the full trainings' pictures to the query. The same with `feature` in the full
    model's features, see `middle_features`. The mean distance of two different training images is 1.

    Attributes:
        query_index: of each chosen query: its set and its position there.
        drawn: positions of the generated queries that every model draws, all that are chosen.
        counts: how many images each share removes.
    """

    config: RemovalConfig = RemovalConfig()

    name = "removal"

    def __post_init__(self) -> None:
        super().__post_init__()
        run = self.run
        self.counts = [removed_count(share, len(run.data.train)) for share in self.config.shares]
        totals = {"held-out": len(run.data.queries), "generated": run.preset.sampling.count}
        asked, most = self.config.queries, min(totals.values())
        require(asked <= most, f"queries={asked}: give 1 to {most}, the size of the smaller set of queries")
        chosen = {name: evenly_spaced(asked, total) for name, total in totals.items()}
        index = [(name, position) for name in QUERY_SETS for position in chosen[name]]
        part = self.config.part or range(len(index))
        require(max(part) < len(index), f"part={list(part)}: give places from 0 to {len(index) - 1}, the last of the generated "
                "queries")  # fmt: skip
        self.query_index = [index[place] for place in part]
        self.drawn = chosen[GENERATED]
        self.seeded = SeededPictures(
            run, self.drawn, [position for name, position in self.query_index if name == GENERATED]
        )

    @cached_property
    def scores(self) -> Float[Tensor, "Q N"]:
        """Scores of the chosen queries, `[Q, N]`, at the preset's damping: those of the whole sets, which a run keeps."""
        asked = {name for name, _ in self.query_index}
        found = {name: influence_scores(self.run, self.queries[name])[0] for name in sorted(asked)}
        return torch.stack([found[name][position] for name, position in self.query_index])

    @cached_property
    def removed(self) -> list[list[list[Positions]]]:
        """The images removed at each end of a query's scores, `[shares][conditions][Q]`."""
        ends = [[extreme_positions(row, count) for row in self.scores] for count in self.counts]
        return [[list(queries) for queries in zip(*share, strict=True)] for share in ends]

    @cached_property
    def randomly_removed(self) -> list[list[Positions]]:
        """The images removed at random for each share, `[shares][sets]`."""
        total, sets = len(self.run.data.train), range(self.config.random_sets)
        return [[random_positions(total, count, index, seed=self.run.seed) for index in sets] for count in self.counts]

    def cells(self) -> list[RemovalCell]:
        """Every model to retrain, once each.

        Seeds are outermost, so that an experiment of fewer seeds is whole early; within a seed the full model comes first,
        then the random sets, then query by query. Further seeds of the full model alone come last.
        """
        removals: list[Positions] = [()]
        removals += [positions for share in self.randomly_removed for positions in share]
        for query in range(len(self.query_index)):
            removals += [queries[query] for share in self.removed for queries in share]
        cells = [RemovalCell(removed, seed) for seed in range(self.config.seeds) for removed in dict.fromkeys(removals)]
        return cells + [RemovalCell((), seed) for seed in range(self.config.seeds, self.config.whole)]

    def label(self, cell: RemovalCell) -> str:
        return f"{len(cell.removed):04d}-removed-r{cell.seed}"

    def options(self) -> dict[str, Any]:
        return {"removal": asdict(self.config)}

    def depends(self, cell: RemovalCell) -> dict[str, Any]:
        return {"pictures_of": self.drawn}

    def computed(self, cell: RemovalCell) -> Arrays:
        """What one retrained model measures of every query, and the pictures it draws; the model is deleted then."""
        run, training = self.run, replace(self.run.preset.training, keep_ema_at=())
        kept = torch.ones(len(run.data.train), dtype=torch.bool)
        kept[list(cell.removed)] = False
        folder = self.kept(cell).folder / "model"
        trained = train(
            build_model(run.preset.unet, run.preset.process, seed=cell.seed), run.data.train.subset(kept), training,
            seed=cell.seed, out=folder, device=run.device, progress=False,
        ).model  # fmt: skip
        found = self._measured(trained) | {"pictures": self.seeded.of(trained)}
        shutil.rmtree(folder)
        return found

    def measurements(self, cell: RemovalCell) -> Arrays:
        """What one retrained model measures of every query, per set `[Q]`; computed once and kept."""
        return {name: values for name, values in self.arrays(cell).items() if name in QUERY_SETS}

    def pictures(self, removed: Positions) -> UInt8[np.ndarray, "G _K C H W"]:
        """The pictures of all chosen generated queries by the models without some images, one for each seed."""
        seeds = self.config.seeds if removed else self.config.whole
        return np.stack([self.arrays(RemovalCell(removed, seed))["pictures"] for seed in range(seeds)], axis=1)

    @property
    def _asked(self) -> list[int]:
        """The generated queries among those asked about."""
        return [place for place, (name, _) in enumerate(self.query_index) if name == GENERATED]

    def _measured(self, model: Denoiser) -> Arrays:
        preset, seed = self.run.preset, self.run.seed
        return {
            name: measure(model, images, preset.measurement, seed=seed).cpu().numpy()
            for name, images in self.queries.items()
        }

    def _by_seed(self, removed: Positions) -> Float[np.ndarray, "Q K"]:
        """What the models without these images measure of the chosen queries, `[Q, K]`."""
        found = [self.measurements(RemovalCell(removed, seed)) for seed in range(self.config.seeds)]
        return np.array([[values[name][position] for values in found] for name, position in self.query_index])

    def _padded(self, positions: list[Any]) -> Int[np.ndarray, "shares ... most"]:
        """Positions nested by share as one array, filled up with −1 along the last axis."""
        parts = [np.array(share, dtype=np.int32) for share in positions]
        padded = np.full((len(parts), *parts[0].shape[:-1], max(self.counts)), -1, dtype=np.int32)
        for row, part in zip(padded, parts, strict=True):
            row[..., : part.shape[-1]] = part
        return padded

    def _query_arrays(self) -> dict[str, Shaped[np.ndarray, "Q ..."]]:
        names, positions = zip(*self.query_index, strict=True)
        chosen = [self.queries[name].subset([position]) for name, position in self.query_index]
        return {
            "sets": np.array(names),
            "positions": np.array(positions),
            "ids": torch.cat([query.ids for query in chosen]).numpy(),
            "images": torch.cat([query.images for query in chosen]).numpy(),
        }

    def _picture_arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Pictures after each removal, and how far they are from those of the full trainings."""
        if not self._asked:
            return {}
        rows = list(zip(self._asked, self.seeded.rows, strict=True))
        own = [[[self.pictures(queries[place])[row] for place, row in rows] for queries in share]
               for share in self.removed]  # fmt: skip
        random = [[self.pictures(removed) for removed in share] for share in self.randomly_removed]
        return self.seeded.arrays(np.array(own), np.array(random), self.pictures(()), self.queries[GENERATED])

    def contents(self) -> tuple[Arrays, dict[str, Any]]:
        own = [[[self._by_seed(removed)[query] for query, removed in enumerate(queries)] for queries in share]
               for share in self.removed]  # fmt: skip
        arrays = {
            "measurements": np.array(own),
            "random": np.array([[self._by_seed(removed) for removed in share] for share in self.randomly_removed]),
            "full": self._by_seed(()),
            "removed": self._padded(self.removed),
            "random_removed": self._padded(self.randomly_removed),
            **self._query_arrays(),
            **self._picture_arrays(),
            "scores": self.scores.numpy().astype(np.float32),
            **self.run.data.train.identifiers("train_"),
        }
        metrics = {
            "retrained_models": len(self.cells()),
            "seconds": self.seconds(),
            "shares": list(self.config.shares),
            "removed_images": self.counts,
            "conditions": list(CONDITIONS),
            "mean_change": self._mean_changes(arrays),
        }
        if self._asked:
            metrics["pictures"] = self.seeded.outcomes(arrays, self.config.shares, self._losses(arrays))
        return arrays, metrics

    def _losses(self, arrays: dict[str, np.ndarray]) -> Pair:
        """How the loss of the generated queries changed: after their own removals, and after the random ones."""
        before = arrays["full"][self._asked]
        own, random = (arrays[name][..., self._asked, :] - before for name in ("measurements", "random"))
        return own, random

    def _mean_changes(self, arrays: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
        """The mean change of the measurement against the full models, by share and condition."""
        own, random = (arrays[key] - arrays["full"] for key in ("measurements", "random"))
        changes = np.concatenate([own.mean((2, 3)), random.mean((1, 2, 3))[:, None]], axis=1).tolist()
        names = (*CONDITIONS, "random")
        rows = [dict(zip(names, row, strict=True)) for row in changes]
        return {f"{share:g}": row for share, row in zip(self.config.shares, rows, strict=True)}
