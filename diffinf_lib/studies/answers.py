"""Answers: by how much a query's loss changes without a training image, asked of one trained model in many ways.

Each way differs from the one before it in one thing, from training again without the image down to the score.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Approximation, CurvatureConfig, DrawConfig
from diffinf_lib.curvature import Curvature, curvature_preconditioner, fit_to_draws
from diffinf_lib.curvature.exact import layer_slices
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.shapes import Scores
from diffinf_lib.studies.fixed_sum import (
    FixedSum,
    FullBatchAdam,
    minima_nearby,
    train_side_by_side,
    unrolled_derivatives,
)
from diffinf_lib.studies.study import Arrays

TRUTH = "other seeds"
"""The first rung: leave-one-out by retraining, mean over the seeds that the attributed model is not of."""


class Step(NamedTuple):
    """One rung: its name, what it changes, and the rung in which it changes it."""

    name: str
    change: str
    after: str


STEPS = (
    Step("one seed", "one seed in place of a mean over seeds", TRUTH),
    Step("unrolled", "the derivative through training in place of leaving out", "one seed"),
    Step("warm start", "training starts from the trained weights", "one seed"),
    Step("proximity", "the exact minimum near the trained weights in place of more training", "warm start"),
    Step(
        "kept answers", "outputs are kept as they are in place of a loss that has not reached its minimum", "proximity"
    ),
    Step("one step", "one Gauss-Newton step in place of the minimum", "kept answers"),
    Step("straight line", "the measurement's gradient in place of the measurement", "one step"),
    Step("Hessian", "the Hessian in place of the Gauss-Newton matrix", "straight line"),
    Step("layers apart", "nothing between layers", "straight line"),
    Step("EK-FAC", "Kronecker factors with corrected eigenvalues in place of a layer's matrix", "layers apart"),
    Step("K-FAC", "Kronecker factors' own eigenvalues", "EK-FAC"),
    Step("few draws", "a part of each training image's draws", "EK-FAC"),
)
"""From the truth down to the score; `unrolled`, `Hessian` and `K-FAC` are side branches, on which no other rung builds."""

CURVATURES = ("straight line", "layers apart", "EK-FAC", "K-FAC")
"""Rungs that are held against the truth at every damping."""


@dataclass(frozen=True)
class DecompositionConfig(Options):
    """What is decomposed.

    Attributes:
        images, queries: how many, at most.
        hidden: units of the network's only hidden layer.
        draws, query_draws: fixed draws of each training image and of each query's loss.
        few_draws: of `draws`, how many the rung `few draws` takes, in antithetic pairs.
        training: from scratch.
        further: the rung `warm start`.
        damping: λ of the rungs, also the weight of proximity.
        dampings: at which `CURVATURES` are held against the truth.
    """

    images: PositiveInt = 40
    queries: PositiveInt = 16
    hidden: PositiveInt = 16
    draws: PositiveInt = 16
    query_draws: PositiveInt = 64
    few_draws: PositiveInt = 4
    training: FullBatchAdam = FullBatchAdam()
    further: FullBatchAdam = FullBatchAdam(steps=200, learning_rate=1e-3)
    damping: PositiveFloat = 1e-2
    dampings: tuple[float, ...] = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    seeds: PositiveInt = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.seeds > 1, f"seeds={self.seeds}: each is held against the others; give at least 2")
        pairs = self.few_draws % 2 == 0 and self.few_draws <= self.draws
        require(pairs, f"few_draws={self.few_draws}: give an even number, at most draws={self.draws}")


class Answers:
    """One trained model and every answer about it, m_q(θ without image n) − m_q(θ), `[Q, N]` each.

    Args:
        seed: of the draws that the rung `few draws` takes; the initial weights are those of the sums' model.
        train, queries: the losses of the training images and of the queries, of one model.
    """

    def __init__(self, config: DecompositionConfig, seed: int, train: FixedSum, queries: FixedSum):
        self.config, self.seed, self.train, self.queries = config, seed, train, queries
        count = self.train.count
        self.all = torch.full((1, count), 1 / count, dtype=torch.float64)
        self.without = (1 - torch.eye(count, dtype=torch.float64)) / count
        self.only = torch.eye(count, dtype=torch.float64) / count

    @cached_property
    def retrained(self) -> Float[Tensor, "N1 P"]:
        """Trained weights with all images, and without each."""
        return train_side_by_side(
            self.train, self.train.weights, torch.cat([self.all, self.without]), self.config.training
        )

    @property
    def theta(self) -> Float[Tensor, "P"]:
        """The weights that are attributed."""
        return self.retrained[0]

    def changes(self, without: Float[Tensor, "N P"], of_all: Float[Tensor, "P"]) -> Scores:
        """What each query's loss gains from one model to each of the others."""
        measured = torch.func.vmap(self.queries.losses)(torch.cat([of_all.unsqueeze(0), without]))
        return (measured[1:] - measured[0]).T

    @cached_property
    def ggn(self) -> Float[Tensor, "P P"]:
        return self.train.ggn(self.theta)

    def inverse(self, matrix: Float[Tensor, "P P"], damping: float) -> Float[Tensor, "P P"]:
        """(F + λI)⁻¹."""
        return torch.linalg.inv(matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype))

    # --- answers by retraining

    def one_seed(self) -> Scores:
        return self.changes(self.retrained[1:], self.theta)

    def unrolled(self) -> Scores:
        theta, moved = unrolled_derivatives(
            self.train, self.train.weights, self.all[0], -self.only, self.config.training
        )
        assert torch.allclose(theta, self.theta, rtol=1e-6, atol=1e-6)
        return self.query_gradients @ moved.T

    def warm_start(self) -> Scores:
        found = train_side_by_side(self.train, self.theta, torch.cat([self.all, self.without]), self.config.further)
        return self.changes(found[1:], found[0])

    # --- answers by a minimum near the trained weights

    def near(self, theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
        """(λ/2) ‖θ − θ*‖²."""
        return self.config.damping / 2 * (theta - self.theta).square().sum()

    def proximity(self) -> Scores:
        found = minima_nearby(
            lambda theta, shares: self.train.total(theta, shares) + self.near(theta),
            self.theta, torch.cat([self.all, self.without]), self.inverse(self.ggn, self.config.damping),
        )  # fmt: skip
        return self.changes(found[1:], found[0])

    def kept_answers(self) -> Scores:
        """The proximal Bregman response (Bae et al. 2022)."""
        before = self.train.outputs(self.theta)

        def objective(theta: Float[Tensor, "P"], without: Float[Tensor, "N"]) -> Float[Tensor, ""]:
            distance = (self.train.outputs(theta) - before).square().mean()
            return distance - self.train.total(theta, without) + self.near(theta)

        found = minima_nearby(objective, self.theta, self.only, self.inverse(self.ggn, self.config.damping))
        return self.changes(found, self.theta)

    # --- answers by one step

    @cached_property
    def gradients(self) -> Float[Tensor, "N P"]:
        return self.train.gradients(self.theta)

    @cached_property
    def query_gradients(self) -> Float[Tensor, "Q P"]:
        return self.queries.gradients(self.theta)

    def score(self, inverse: Float[Tensor, "P P"], gradients: Float[Tensor, "N P"] | None = None) -> Scores:
        """(1/N) ∇m_qᵀ F⁻¹ ∇ℓ_n."""
        gradients = self.gradients if gradients is None else gradients
        return self.query_gradients @ inverse @ gradients.T / self.train.count

    def one_step(self) -> Scores:
        steps = self.gradients @ self.inverse(self.ggn, self.config.damping) / self.train.count
        return self.changes(self.theta + steps, self.theta)

    def hessian(self) -> Scores:
        return self.score(self.inverse(self.train.hessian(self.theta), self.config.damping))

    def inverse_of(self, curvature: str, damping: float) -> Float[Tensor, "P P"]:
        """The damped inverse of one of `CURVATURES`."""
        if curvature == "straight line":
            return self.inverse(self.ggn, damping)
        if curvature == "layers apart":
            return self.inverse(self.ggn * self.within_layers, damping)
        name: Approximation = "ekfac" if curvature == "EK-FAC" else "kfac"
        multiply = curvature_preconditioner(self.trained_model, self.kronecker, damping, name)
        return multiply(torch.eye(len(self.theta), dtype=self.theta.dtype))

    @cached_property
    def within_layers(self) -> Float[Tensor, "P P"]:
        """1 where row and column are of one layer, else 0."""
        mask = torch.zeros_like(self.ggn)
        for where in layer_slices(self.train.model).values():
            mask[where, where] = 1
        return mask

    @cached_property
    def trained_model(self) -> Denoiser:
        """The model with the trained weights."""
        model = deepcopy(self.train.model)
        model.network.load_state_dict(self.train.parameters(self.theta))
        return model

    @cached_property
    def kronecker(self) -> Curvature:
        """EK-FAC of the very sum that was trained on."""
        draws = DrawConfig(self.config.draws)
        config = CurvatureConfig(
            draws=draws, factor_draws=draws, exact_labels=True, input_positions=None, correction="per_draw"
        )
        return fit_to_draws(self.trained_model, self.train.batch, config)

    def few_draws(self) -> Scores:
        """Antithetic pairs, drawn for each image without replacement."""
        pairs, kept = self.config.draws // 2, self.config.few_draws // 2
        generator = keyed_generator("decomposition-draws", self.seed)
        chosen = torch.stack([torch.randperm(pairs, generator=generator)[:kept] for _ in range(self.train.count)])
        part = self.train.of_draws((2 * chosen.unsqueeze(2) + torch.arange(2)).flatten(1))
        return self.score(self.inverse_of("EK-FAC", self.config.damping), part.gradients(self.theta))

    # --- all of them

    def answer(self, rung: str) -> Scores:
        """The answer of one of `STEPS`."""
        if rung in CURVATURES:
            return self.score(self.inverse_of(rung, self.config.damping))
        return getattr(self, rung.lower().replace(" ", "_"))()

    def arrays(self) -> Arrays:
        answers = torch.stack([self.answer(step.name) for step in STEPS])
        by_damping = torch.stack(
            [
                torch.stack([self.score(self.inverse_of(name, damping)) for damping in self.config.dampings])
                for name in CURVATURES
            ]
        )
        ended = {
            "start_loss": self.train.losses(self.train.weights).mean(), "loss": self.train.losses(self.theta).mean(),
            "query_loss": self.queries.losses(self.theta).mean(), "gradient": self.gradients.mean(0).norm(),
            "start_gradient": self.train.gradients(self.train.weights).mean(0).norm(),
            "lowest_eigenvalue": torch.linalg.eigvalsh(self.train.hessian(self.theta))[0],
            "highest_eigenvalue": torch.linalg.eigvalsh(self.ggn)[-1],
        }  # fmt: skip
        found = {"answers": answers, "by_damping": by_damping, **ended}
        return {name: value.detach().numpy() for name, value in found.items()}
