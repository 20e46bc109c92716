"""Stages of attribution: curvature, gradients, scores, and their LDS against a ground truth."""

import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain
from diffinf_lib.attribution import pixel_distance_scores, random_scores
from diffinf_lib.attribution.scoring import scores_of_sets as all_scores
from diffinf_lib.compression import stored_bytes
from diffinf_lib.configuration import Approximation, CurvatureConfig, Expectation, StoreFormat, check_dampings
from diffinf_lib.curvature import Curvature, curvature_blocks, fit_curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation import GroundTruth, LDSResult, lds
from diffinf_lib.gradients import GradientSet, gradients_of
from diffinf_lib.runs.kept import Kept
from diffinf_lib.runs.run import Run
from diffinf_lib.shapes import Scores


def curvature_of_run(run: Run) -> Curvature:
    """The curvature of the full model."""
    return run.held("curvature", lambda: fitted(run, run.model.model, run.preset.curvature)[0])


def fitted(run: Run, model: Denoiser, config: CurvatureConfig, label: str = "final") -> tuple[Curvature, Kept]:
    """A curvature of one of the run's models over the training images, fitted once, and where it is kept.

    Args:
        label: of the model, for people.
    """
    kept = run.kept("curvature", label, of=model.identity, curvature=config)
    curvature = fit_curvature(
        model, run.data.train, config, seed=run.seed, out=kept.folder,
        checkpoint_seconds=5.0, progress=run.progress,
    )  # fmt: skip
    return curvature, kept


def influence_scores(
    run: Run,
    queries: ImageSet,
    *,
    damping: Sequence[float] | None = None,
    approximation: Approximation | None = None,
) -> Float[Tensor, "D Q N"]:
    """Influence of every training image on every query, `[D, Q, N]`, for each damping; see `scores_of_sets`.

    Args:
        damping: default: the preset's.
        approximation: default: the preset's.
    """
    chosen = approximation or run.preset.curvature.approximation
    return scores_of_sets(run, [queries], damping=damping, approximations=[chosen])[0][chosen]


def scores_of_sets(
    run: Run,
    sets: Sequence[ImageSet],
    *,
    damping: Sequence[float] | None = None,
    approximations: Sequence[Approximation] | None = None,
    products: bool = False,
) -> list[dict[str, Float[Tensor, "_D _Q N"]]]:
    """Influence of every training image on every query of several sets, `[D, Q, N]` by approximation, for each damping.

    Whatever is not there yet comes from one reading of the training gradients. They are kept in the run folder where the
    preset's `store_budget` allows it: other dampings, approximations or queries then cost little. Else they are computed for
    this reading and forgotten; the scores of each part of the training images are kept until it ends, so a killed one goes on.

    Args:
        damping: default: the preset's.
        approximations: default: the preset's alone.
        products: inner products of the gradients besides, `[1, Q, N]`, by the name `products`.
    """
    dampings = check_dampings([run.preset.damping] if damping is None else damping)
    chosen = [run.preset.curvature.approximation] if approximations is None else list(approximations)
    inverses = Inverses(dampings, chosen, products=products)
    labels = [*chosen, *(["products"] if products else [])]
    places = [{label: _place(run, queries, dampings, label) for label in labels} for queries in sets]
    joint = _Joint(run, sets, inverses, [place.identity for part in places for place in part.values()])
    found = [
        {label: _kept_scores(place, joint, index, labels.index(label)) for label, place in part.items()}
        for index, part in enumerate(places)
    ]
    joint.forget()
    return found


def _place(run: Run, queries: ImageSet, dampings: Sequence[float], label: str) -> Kept:
    """Where the scores of one set of queries lie, with one approximation or none."""
    preset, keeps = run.preset, keeps_training_gradients(run)
    options: dict[str, Any] = {
        "measurement": preset.measurement,
        "draws": preset.gradient_draws,
        "damping": [] if label == "products" else dampings,
        "approximation": label,
        "train_format": preset.store_format if keeps else "as computed",
        "query_format": preset.query_format,
    }
    names = json_digest((run.data.train.names, queries.names))  # kept beside the scores
    return run.kept("scores", queries=queries.digest, names=names, curvature=preset.curvature, **options)


class _Joint:
    """The scores of several sets with several approximations from one reading of the training gradients, made when needed."""

    def __init__(self, run: Run, sets: Sequence[ImageSet], inverses: Inverses, identity: list[Any]):
        self.run, self.sets, self.inverses, self.identity = run, sets, inverses, identity
        self.folder = run.path("scores", f"pieces-{json_digest(plain(identity))[:12]}")

    @cached_property
    def scores(self) -> list[Float[Tensor, "D _Q N"]]:
        """Of each set, for every inverse."""
        run = self.run
        return all_scores(
            [query_gradients(run, queries) for queries in self.sets], train_gradients(run), curvature_of_run(run),
            self.inverses, folder=None if keeps_training_gradients(run) else self.folder, identity=self.identity,
        )  # fmt: skip

    def forget(self) -> None:
        """Drop the pieces: the scores are kept."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _kept_scores(place: Kept, joint: _Joint, index: int, part: int) -> Float[Tensor, "_D _Q N"]:
    """The scores of set `index` with the inverses of one approximation, from where they are kept."""
    run, queries, dampings = joint.run, joint.sets[index], joint.inverses.dampings

    def scores() -> dict[str, np.ndarray]:
        found = joint.scores[index][part * len(dampings) :][: len(dampings)]
        named = run.data.train.identifiers("train_") | queries.identifiers("query_")
        return {"scores": found.numpy(), "dampings": np.array(dampings)[: len(found)], **named}

    return torch.from_numpy(place.arrays(scores)["scores"])


def query_gradients(run: Run, queries: ImageSet) -> GradientSet:
    """Gradients of queries in the eigenbasis, over the measurement's own draws, kept as the preset packs them."""
    return _gradients(
        run, queries, run.preset.measurement.expectation(run.seed), run.preset.query_format, run.path("gradients")
    )


def train_gradients(run: Run) -> GradientSet:
    """Gradients of the training images in the eigenbasis: kept as the preset packs them, or computed whenever they are read."""
    expectation, keeps = Expectation(run.preset.gradient_draws, seed=run.seed), keeps_training_gradients(run)
    store_format, below = (run.preset.store_format, run.path("gradients")) if keeps else (None, None)
    return _gradients(run, run.data.train, expectation, store_format, below)


def keeps_training_gradients(run: Run) -> bool:
    """Whether the preset's `store_budget` has room for the gradients of the training images."""
    shapes = [block.shape for block in curvature_blocks(run.model.model, run.preset.curvature.bias).values()]
    return run.preset.keeps(len(run.data.train) * stored_bytes(run.preset.store_format, shapes))


def _gradients(
    run: Run, images: ImageSet, expectation: Expectation, store_format: StoreFormat | None, below: Path | None
) -> GradientSet:
    return gradients_of(
        run.model.model, curvature_of_run(run), images, expectation, below=below, store_format=store_format,
        progress=run.progress,
    )  # fmt: skip


def baseline_scores(run: Run, queries: ImageSet) -> dict[str, Scores]:
    """Scores that a method must beat, by name: gradient dot product, pixel distance, random."""
    (found,) = scores_of_sets(run, [queries], approximations=[], products=True)
    return {
        "gradient dot product": len(run.data.train) * found["products"][0],
        "pixel distance": pixel_distance_scores(run.data.train, queries),
        "random": random_scores(len(queries), len(run.data.train), seed=run.seed),
    }


def check_training_images(run: Run, truth: GroundTruth, name: str = "") -> None:
    """Refuse a ground truth of other training images than the run's.

    Raises:
        DataError: it is one.
    """
    same = torch.equal(truth.train_ids, run.data.train.ids)
    require(same, f"ground truth{name and f' of {name}'}: its training images are not those of this run; give its own preset",
            DataError)  # fmt: skip


def lds_of_run(run: Run, truth: GroundTruth, *, damping: Sequence[float] | None = None) -> dict[str, LDSResult]:
    """LDS of a run's scores against a ground truth: EK-FAC and K-FAC (or what was fitted) at each damping, and the baselines.

    The queries are the ground truth's own images, on which its models were measured.

    Raises:
        DataError: the ground truth was made with other training images than the run's.
    """
    check_training_images(run, truth)
    dampings = check_dampings([run.preset.damping] if damping is None else damping)
    scores: dict[str, Tensor] = {}
    fitted = run.preset.curvature.approximation
    approximations: list[Approximation] = ["ekfac", "kfac"] if fitted == "ekfac" else [fitted]
    (found,) = scores_of_sets(run, [truth.queries], damping=dampings, approximations=approximations, products=True)
    for approximation in approximations:
        label = {"ekfac": "EK-FAC", "kfac": "K-FAC"}.get(approximation, approximation)
        scores |= {
            f"{label}, λ = {value:g}": matrix for value, matrix in zip(dampings, found[approximation], strict=True)
        }
    scores |= baseline_scores(run, truth.queries)
    return {name: lds(matrix, truth) for name, matrix in scores.items()}
