"""Methods: every way to score training images for queries as one table, each method a function of a task and its option.

To add a method, write one function `(task, options) -> [D, Q, N]` and one row. The row says where it comes from, what its
option is, whether it predicts changes or ranks only, and what it needs; `AttributionTask` hands it its gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.checkpoints import Weighting, average_scores, split_draws
from diffinf_lib.attribution.clip import clip_similarity_scores
from diffinf_lib.attribution.das import das_scores
from diffinf_lib.attribution.influence import scores_from_gradients
from diffinf_lib.attribution.iterative import solution_path, solved_queries, solved_scores, training_ggn
from diffinf_lib.attribution.renormalised import renormalised_scores, training_norms
from diffinf_lib.attribution.sampled import SampledGGN, sampled_path
from diffinf_lib.attribution.similarity import (
    gradient_cosine_scores,
    gradient_dot_scores,
    pixel_distance_scores,
    random_scores,
)
from diffinf_lib.attribution.task import AttributionTask, Checkpoint
from diffinf_lib.attribution.trak import Trak
from diffinf_lib.configuration import (
    DEFAULT_DAMPING,
    Approximation,
    DrawConfig,
    Expectation,
    Objective,
    ObjectiveName,
    StoreFormat,
    check_dampings,
)
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.settings import own_settings

Score = Callable[[AttributionTask, Sequence[float]], Float[Tensor, "D Q N"]]
Scale = Literal["change", "arbitrary"]

DAMPINGS = (1e-10, 1e-8, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
TRAK_LAMBDAS = tuple(10.0**power for power in range(-6, 7))
CHECKPOINTS = 5
"""Checkpoints that a method along the run reads, the final weights among them."""
DAS_PROBES = 16
PROJECTION_DIMENSION = 4096
GGN_DRAWS = DrawConfig(1, noise_rule="independent")
"""Draws of each training image for products with the exact GGN; more of them change little (see the book)."""
GGN_DAMPING = 1e-6
GGN_BATCH = 25
SAMPLED_WEIGHT = 0.1
"""Share of the sampled gradients in a sampled GGN; the rest is the fitted curvature's."""
ITERATIONS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
NEUMANN_TERMS = 3
CG_CHECKPOINTS = 2


def fixed_settings() -> dict[str, Any]:
    """What methods take beside their option and the task's, by name: kept scores depend on it too."""
    return {
        "checkpoints": CHECKPOINTS, "das_probes": DAS_PROBES, "projection_dimension": PROJECTION_DIMENSION,
        "ggn_draws": GGN_DRAWS, "ggn_damping": GGN_DAMPING, "neumann_terms": NEUMANN_TERMS, "cg_checkpoints": CG_CHECKPOINTS,
    }  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        name: short, unique, used in files.
        label: for tables and figures.
        paper: where it comes from, as cited in the book.
        score: scores `[D, Q, N]` for each value of its option.
        option: what its option is called; empty for none.
        grid: values of the option that tuning may choose from.
        default: the value that its authors recommend, or the preset's.
        scale: `change`: scores estimate the change of the measurement, the 1/N included; `arbitrary`: ranks only.
        requires: beyond the final model: `checkpoints`, `ensemble`, `trajectories`, `clip`, or nothing.
        checkpoints: how many it reads, where it requires them.
        cost: forward and backward passes, in words: those of the fit, images × draws for the training gradients, and so on.
        any_measurement: whether it attributes the measurement it is given; else it ranks the same whatever is measured.
        reads_again: whether it reads the training gradients once for every shard of them, so that they must be kept.
    """

    name: str
    label: str
    paper: str
    score: Score
    option: str = ""
    grid: tuple[float, ...] = (0.0,)
    default: float = 0.0
    scale: Scale = "change"
    requires: str = ""
    checkpoints: int = CHECKPOINTS
    cost: str = "fit + images × draws + queries × draws"
    any_measurement: bool = True
    reads_again: bool = False

    def __post_init__(self) -> None:
        require(self.default in self.grid, f"{self.name}: default {self.default} is not in its grid {self.grid}")

    @own_settings
    def __call__(self, task: AttributionTask, options: float | Sequence[float] | None = None) -> Float[Tensor, "D Q N"]:
        """Scores of the task's training images for its queries, at the default or the given options.

        Raises:
            ConfigurationError: options that are no numbers >= 0, options for a method that has none, or training gradients
                that would be computed anew for every reading.
        """
        self._check_readings(task)
        require(options is None or bool(self.option) or options in (0.0, self.grid), f"options={options}: {self.name} has no "
                "option; leave it out")  # fmt: skip
        values = [self.default] if options is None else check_dampings(options)
        return self.score(task, values)

    def _check_readings(self, task: AttributionTask) -> None:
        """Refuse exact inner products where every reading would compute the training gradients anew."""
        require(task.keep_train or not self.reads_again, f"{self.name}: exact inner products read the training gradients "
                "once for every shard of them, and they are not kept here; take trak-projected, or a larger "
                "store_budget")  # fmt: skip


def _influence(approximation: Approximation) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        return influence_at(task, task.final, options, approximation, task.draws)

    return score


def influence_at(
    task: AttributionTask,
    at: Checkpoint,
    dampings: Sequence[float],
    approximation: Approximation,
    draws: DrawConfig,
) -> Float[Tensor, "D Q N"]:
    """Influence by the gradients and the curvature of one checkpoint, for each damping."""
    queries, train = task.query_gradients(at=at), task.train_gradients(draws=draws, at=at)
    return scores_from_gradients(queries, train, task.use_curvature(at), damping=dampings, approximation=approximation)


def _along(approximation: Approximation, weighting: Weighting, parts: int) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        checkpoints = _checkpoints(task, parts)
        draws = split_draws(task.draws, len(checkpoints))
        found = [influence_at(task, at, options, approximation, draws) for at in checkpoints]
        return average_scores(found, weighting=weighting, learning_rates=[at.learning_rate for at in checkpoints])

    return score


def _checkpoints(task: AttributionTask, parts: int) -> list[Checkpoint]:
    require(task.along is not None, "checkpoints: this task has none; train with keep_ema_at")
    assert task.along is not None
    return task.along(parts)


def _ensemble(approximation: Approximation) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        require(task.ensemble is not None, "ensemble: this task has no models of other seeds; train some")
        assert task.ensemble is not None
        found = [influence_at(task, at, options, approximation, task.draws) for at in task.ensemble()]
        return average_scores(found)

    return score


def _tracin(parts: int) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        checkpoints = _checkpoints(task, parts)
        draws = split_draws(task.draws, len(checkpoints))
        total = torch.zeros(1, len(task.queries), len(task.train), dtype=torch.float64)
        for at in checkpoints:
            products = gradient_dot_scores(task.query_gradients(at=at), task.train_gradients(draws=draws, at=at))
            total += at.learning_rate * products
        return total

    return score


def _trak(objective: Objective | None, dimension: int | None = None) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        trak = Trak(task.train_gradients(objective), dimension=dimension, seed=task.seed)
        return trak.scores(task.query_gradients(objective), options)

    return score


def _journey_trak(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return Trak(task.train_gradients()).scores(task.query_gradients(Objective("journey_loss")), options)


def _das(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    one = DrawConfig(1, timestep_rule="uniform", noise_rule="independent")
    probes = [Expectation(one, "das", seed, objective=Objective("output_probe")) for seed in range(DAS_PROBES)]
    gradients = [task.query_gradients(over=probe) for probe in probes]
    return das_scores(gradients, task.train_gradients(), task.use_curvature(), damping=options)


def _renormalised(length: Literal["step", "self_influence", "gradient"]) -> Score:
    def score(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
        scores = influence_at(task, task.final, options, "ekfac", task.draws)
        norms = training_norms(task.train_gradients(), task.use_curvature(), damping=options)
        return renormalised_scores(scores, getattr(norms, length))

    return score


def _gradient_dot(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return gradient_dot_scores(task.query_gradients(), task.train_gradients()).unsqueeze(0)


def _gradient_cosine(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return gradient_cosine_scores(task.query_gradients(), task.train_gradients()).unsqueeze(0)


def _conjugate_gradients(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return conjugate_gradients_at(task, task.final, options, task.draws)


def conjugate_gradients_at(
    task: AttributionTask, at: Checkpoint, iterations: Sequence[float], draws: DrawConfig
) -> Float[Tensor, "D Q N"]:
    """Influence on the exact GGN of one checkpoint after each given number of steps, EK-FAC as preconditioner."""
    most = int(max(iterations))
    ggn = training_ggn(
        at.model, task.train, GGN_DRAWS, seed=task.seed, batch_size=GGN_BATCH, covers=at.curvature.covers
    )
    path = solution_path(
        at.model, task.use_curvature(at), ggn, task.query_gradients(at=at), damping=GGN_DAMPING, iterations=most
    )
    solved = [solution for step, solution in enumerate(path, start=1) if step in iterations]
    task.spend(f"{at.name}-ggn", most * len(task.queries) * len(task.train) * GGN_DRAWS.count, 0.0)
    return solved_scores(solved, task.train_gradients(draws=draws, at=at))


def sampled_ggn_at(
    task: AttributionTask,
    at: Checkpoint,
    iterations: Sequence[float],
    approximation: Approximation,
    draws: DrawConfig,
    probes: int,
) -> Float[Tensor, "D Q N"]:
    """Influence on a sampled GGN of one checkpoint after each given number of steps.

    Args:
        approximation: of the eigenvalues that the sample is mixed with, and that precondition.
        probes: sampled gradients of each training image, one draw each.
    """
    one, most = DrawConfig(1, timestep_rule="uniform", noise_rule="independent"), int(max(iterations))
    output, packed = Objective("output_probe"), StoreFormat("bfloat16")
    each = [Expectation(one, "sampled-ggn", 1000 * task.seed + probe, objective=output) for probe in range(probes)]
    sets = [task.train_gradients(over=probe, at=at, store_format=packed).held() for probe in each]
    ggn = SampledGGN(task.use_curvature(at), sets, task.train.images[0].numel(), weight=SAMPLED_WEIGHT,
                     approximation=approximation)  # fmt: skip
    path = sampled_path(at.curvature, ggn, task.query_gradients(at=at), damping=GGN_DAMPING, iterations=most,
                        approximation=approximation)  # fmt: skip
    solved = [solution for step, solution in enumerate(path, start=1) if step in iterations]
    return solved_scores(solved, task.train_gradients(draws=draws, at=at))


def _conjugate_gradients_along(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    checkpoints = _checkpoints(task, CG_CHECKPOINTS)
    draws = split_draws(task.draws, len(checkpoints))
    return average_scores([conjugate_gradients_at(task, at, options, draws) for at in checkpoints])


def _neumann(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    final, train = task.final, task.train
    ggn = training_ggn(
        final.model, train, GGN_DRAWS, seed=task.seed, batch_size=GGN_BATCH, covers=final.curvature.covers
    )
    curvature, queries = task.use_curvature(), task.query_gradients()
    solved = [
        solved_queries(
            final.model, curvature, ggn, queries, damping=damping, method="neumann", max_iterations=NEUMANN_TERMS
        )[0]
        for damping in options
    ]
    products = NEUMANN_TERMS + 1  # the last one is for the residual
    task.spend("ggn", len(options) * products * len(task.queries) * len(train) * GGN_DRAWS.count, 0.0)
    return solved_scores(solved, task.train_gradients())


def _clip(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    require(bool(task.clip_source), "clip: no model given; set clip_source to a CLIP folder or hub id")
    scores = clip_similarity_scores(task.train, task.queries, source=task.clip_source, pictures=task.pictures)
    return scores.unsqueeze(0)


def _pixels(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return pixel_distance_scores(task.train, task.queries).unsqueeze(0)


def _random(task: AttributionTask, options: Sequence[float]) -> Float[Tensor, "D Q N"]:
    return random_scores(len(task.queries), len(task.train), seed=task.seed).unsqueeze(0)


_INFLUENCE: dict[str, Any] = {"option": "damping", "grid": DAMPINGS, "default": DEFAULT_DAMPING}
_TRAK: dict[str, Any] = {
    "option": "damping",
    "grid": TRAK_LAMBDAS,
    "default": 1e-6,
    "cost": "images × draws + queries × draws",
}
_OUTPUTS: list[tuple[ObjectiveName, str]] = [
    ("mean_output", "mean"), ("l1_norm", "1-norm"), ("l2_norm", "2-norm"), ("max_norm", "∞-norm"),
    ("simplified_elbo", "simplified ELBO"),
]  # fmt: skip

METHODS: tuple[Method, ...] = (
    Method("ekfac", "EK-FAC influence", "mlodozeniec2025influence", _influence("ekfac"), **_INFLUENCE),
    Method("kfac", "K-FAC influence", "mlodozeniec2025influence", _influence("kfac"), **_INFLUENCE),
    Method("ekfac-along", "EK-FAC along the run", "", _along("ekfac", "standardised", CHECKPOINTS), **_INFLUENCE,
           requires="checkpoints",
           cost="fit + images × draws + checkpoints × queries × draws"),
    Method("kfac-along", "K-FAC along the run", "", _along("kfac", "standardised", CHECKPOINTS), **_INFLUENCE,
           requires="checkpoints",
           cost="fit + images × draws + checkpoints × queries × draws"),
    Method("ekfac-along-lr", "EK-FAC along the run, by learning rate", "", _along("ekfac", "learning_rate", CHECKPOINTS),
           **_INFLUENCE, requires="checkpoints",
           cost="fit + images × draws + checkpoints × queries × draws"),
    Method("ekfac-ensemble", "EK-FAC, mean of seeds", "", _ensemble("ekfac"), **_INFLUENCE, requires="ensemble",
           cost="4 (fit + images × draws + queries × draws), 3 trainings"),
    Method("cg", "conjugate gradients from EK-FAC", "wang2025astra", _conjugate_gradients, option="iterations",
           grid=ITERATIONS, default=4.0,
           cost="fit + images × draws + queries × draws + steps × queries × images × draws of the GGN"),
    Method("cg-along", "conjugate gradients along the run", "", _conjugate_gradients_along, option="iterations",
           grid=ITERATIONS, default=4.0, requires="checkpoints", checkpoints=CG_CHECKPOINTS,
           cost="2 (fit + queries × draws + steps × queries × images × draws of the GGN) + images × draws"),
    Method("neumann", "Neumann series from EK-FAC", "wang2025astra", _neumann, option="damping", grid=(1e-5,), default=1e-5,
           cost="fit + images × draws + queries × draws + steps × queries × images × draws of the GGN"),
    Method("relative", "relative influence", "barshan2020relatif", _renormalised("step"), **_INFLUENCE, scale="arbitrary"),
    Method("self-relative", "self-relative influence", "barshan2020relatif", _renormalised("self_influence"), **_INFLUENCE,
           scale="arbitrary"),
    Method("renormalised", "renormalised influence", "hammoudeh2022identifying", _renormalised("gradient"), **_INFLUENCE,
           scale="arbitrary"),
    Method("trak", "TRAK", "park2023trak", _trak(None), **_TRAK, reads_again=True),
    Method("trak-projected", "TRAK, projected", "park2023trak", _trak(None, PROJECTION_DIMENSION), **_TRAK),
    Method("d-trak", "D-TRAK", "zheng2024dtrak", _trak(Objective("square_norm")), **_TRAK, scale="arbitrary",
           any_measurement=False, reads_again=True),
    *(Method(f"d-trak-{name.replace('_', '-')}", f"D-TRAK, {label}", "zheng2024dtrak", _trak(Objective(name)), **_TRAK,
             scale="arbitrary", any_measurement=False, reads_again=True) for name, label in _OUTPUTS),
    Method("journey-trak", "Journey-TRAK", "georgiev2023journey", _journey_trak, **_TRAK, scale="arbitrary",
           requires="trajectories", any_measurement=False, reads_again=True),
    Method("das", "DAS", "lin2025das", _das, **_INFLUENCE, scale="arbitrary", any_measurement=False,
           cost="fit + images × draws + queries × probes"),
    Method("tracin", "TracIn", "pruthi2020tracin", _tracin(CHECKPOINTS), scale="arbitrary", requires="checkpoints",
           cost="images × draws + checkpoints × queries × draws"),
    Method("gradient-dot", "gradient dot product", "", _gradient_dot, scale="arbitrary",
           cost="images × draws + queries × draws"),
    Method("gradient-cosine", "gradient cosine", "", _gradient_cosine, scale="arbitrary",
           cost="images × draws + queries × draws"),
    Method("clip", "CLIP similarity", "radford2021clip", _clip, scale="arbitrary", requires="clip", any_measurement=False,
           cost="images and queries, of CLIP"),
    Method("pixel", "pixel distance", "", _pixels, scale="arbitrary", any_measurement=False,
           cost="none"),
    Method("random", "random", "", _random, scale="arbitrary", any_measurement=False,
           cost="none"),
)  # fmt: skip
"""Every method; rows of the table in the book."""


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigurationError: there is none; the message lists the names.
    """
    found = {method.name: method for method in METHODS}
    if name not in found:
        raise ConfigurationError(f"method={name!r}: no such method; give one of {', '.join(found)}")
    return found[name]
