"""Fixed sum: a small network's loss over draws that never change, as a function of its weights, and trainings on it.

With the draws fixed, training is a function: initial weights and the share of each image go in, trained weights come out. So
trainings run side by side, one for each set of shares, and the derivative of the trained weights with respect to a
share is followed from step to step. Weights are one vector θ `[P]` in the order of `flatten_layers`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.curvature import flatten_layers
from diffinf_lib.curvature.layers import Layers, curvature_layers, gradient_matrices
from diffinf_lib.diffusion import Denoiser, DrawBatch
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt, check_counts
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import PerExample

Weights = Float[Tensor, "P"]
ManyWeights = Float[Tensor, "R P"]


@dataclass(frozen=True, eq=False)
class FixedSum:
    """The loss of each image over fixed draws, and what else is a function of the weights.

    Attributes:
        model: what the weights are of; its own are only a place to start from.
        batch: all draws of all images, as many of each, those of an image together.

    Raises:
        ConfigurationError: images differ in their number of draws, draws are weighted, or the network has trainable
            parameters besides those of its `Conv2d` and `Linear`.
    """

    model: Denoiser
    batch: DrawBatch

    def __post_init__(self) -> None:
        counts = self.batch.example.bincount()
        even = bool((counts == counts[0]).all()) and bool((self.batch.example.diff() >= 0).all())
        require(even, f"draws of each image: {counts.tolist()[:5]}…; give as many of each, those of an image together")
        require(bool((self.batch.draw_weights == 1).all()), "draws are weighted; give draws with timesteps drawn alike")
        covered = self.weights.numel()
        total = sum(p.numel() for p in self.model.network.parameters() if p.requires_grad)
        require(covered == total, f"{total - covered} parameters outside Conv2d and Linear; freeze them")

    @property
    def count(self) -> int:
        """N, the number of images."""
        return int(self.batch.example[-1]) + 1

    @cached_property
    def layers(self) -> Layers:
        """The layers whose weights and biases θ holds."""
        return curvature_layers(self.model)

    @cached_property
    def weights(self) -> Weights:
        """The model's own weights as θ."""
        return flatten_layers(self._own_matrices())

    def _own_matrices(self) -> dict[str, Float[Tensor, "_O _I"]]:
        tensors = (t.detach() for layer in self.layers.values() for t in (layer.weight, layer.bias) if t is not None)
        return gradient_matrices(self.layers, tuple(tensors))

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        return {name: matrix.shape for name, matrix in self._own_matrices().items()}

    def parameters(self, theta: Weights) -> dict[str, Tensor]:
        """θ as the network's parameters by name."""
        found = {}
        parts = theta.split([shape.numel() for shape in self._shapes.values()])
        for part, (name, shape) in zip(parts, self._shapes.items(), strict=True):
            layer, matrix, columns = self.layers[name], part.view(shape), shape[1]
            if layer.bias is not None:
                columns -= 1
                found[f"{name}.bias"] = matrix[:, -1]
            if layer.weight is not None:
                found[f"{name}.weight"] = matrix[:, :columns].reshape(layer.weight.shape)
        return found

    def outputs(self, theta: Weights) -> Float[Tensor, "B C H W"]:
        """The network's output at each draw."""
        inputs = (self.batch.state, self.batch.timesteps)
        return torch.func.functional_call(self.model, self._prefixed(theta), inputs)

    def _prefixed(self, theta: Weights) -> dict[str, Tensor]:
        return {f"network.{name}": value for name, value in self.parameters(theta).items()}

    def losses(self, theta: Weights) -> PerExample:
        """The loss of each image, its mean over the image's draws."""
        found = (self.outputs(theta) - self.batch.target).square().flatten(1).mean(1)
        return found.view(self.count, -1).mean(1)

    def total(self, theta: Weights, shares: PerExample) -> Float[Tensor, ""]:
        """Σ_n share_n ℓ_n(θ), what training goes down."""
        return shares @ self.losses(theta)

    def gradients(self, theta: Weights) -> Float[Tensor, "N P"]:
        """∇ℓ of each image."""
        return torch.func.jacrev(self.losses)(theta)

    def hessian(self, theta: Weights) -> Float[Tensor, "P P"]:
        """∇² of the mean loss."""
        return torch.func.hessian(lambda weights: self.losses(weights).mean())(theta)

    def ggn(self, theta: Weights) -> Float[Tensor, "P P"]:
        """(2/C) E[JᵀJ]."""
        jacobian = torch.func.jacfwd(lambda weights: self.outputs(weights).flatten())(theta)
        return 2 * jacobian.T @ jacobian / len(jacobian)

    def of_draws(self, draws: Int[Tensor, "n s"]) -> "FixedSum":
        """The same images with some of their draws only, each image's by their numbers."""
        each = len(self.batch.example) // self.count
        rows = (torch.arange(self.count).unsqueeze(1) * each + draws).flatten()
        return FixedSum(self.model, self.batch.rows(rows))


@dataclass(frozen=True)
class FullBatchAdam(Options):
    """Adam (Kingma & Ba 2015) on the whole sum at once; the learning rate falls to zero along half a cosine.

    Attributes:
        learning_rate: of the first step.
    """

    steps: PositiveInt = 300
    learning_rate: PositiveFloat = 1e-2
    first_decay: float = 0.9
    second_decay: float = 0.999
    epsilon: PositiveFloat = 1e-8


AdamState = tuple[Float[Tensor, "*n P"], Float[Tensor, "*n P"], Float[Tensor, "*n P"]]
"""Weights, and the running means of the gradient and of its square."""

Step = Callable[[AdamState, PerExample], AdamState]


def _at(theta: Float[Tensor, "*n P"]) -> AdamState:
    """The state before the first step."""
    return theta, torch.zeros_like(theta), torch.zeros_like(theta)


def _step(total: FixedSum, config: FullBatchAdam, number: int) -> Step:
    """Step `number`, from 0, as a function of the state and the shares."""
    rate = config.learning_rate * (1 + math.cos(math.pi * number / config.steps)) / 2
    first_part, second_part = (1 - decay ** (number + 1) for decay in (config.first_decay, config.second_decay))

    def advance(state: AdamState, shares: PerExample) -> AdamState:
        theta, first, second = state
        gradient = torch.func.grad(total.total)(theta, shares)
        first = torch.lerp(gradient, first, config.first_decay)
        second = torch.lerp(gradient.square(), second, config.second_decay)
        length = (second / second_part).sqrt() + config.epsilon
        return theta - rate * first / first_part / length, first, second

    return advance


@own_settings
@torch.no_grad()
def train_side_by_side(
    total: FixedSum, start: Weights, shares: Float[Tensor, "R N"], config: FullBatchAdam
) -> ManyWeights:
    """The trained weights `[R, P]` for each row of shares, all from the same start.

    Adam does not notice a factor before all shares, so a row of 1/N with one 0 is training on the mean of the others.
    """
    state = _at(start.expand(len(shares), -1))
    for number in range(config.steps):
        state = torch.func.vmap(_step(total, config, number))(state, shares)
    return _finite(state[0], config)


@own_settings
@torch.no_grad()
def unrolled_derivatives(
    total: FixedSum, start: Weights, shares: PerExample, directions: Float[Tensor, "R N"], config: FullBatchAdam
) -> tuple[Weights, ManyWeights]:
    """The trained weights, and their exact derivative along each direction of the shares: `[P]` and `[R, P]`.

    The derivative goes through every step of training, in forward mode: a state's tangent is carried from step to step. It
    assumes neither a minimum nor a damping.
    """
    state = _at(start)
    tangents: AdamState = tuple(torch.zeros(len(directions), len(start)).to(start) for _ in state)  # type: ignore[assignment]
    for number in range(config.steps):
        step = _step(total, config, number)

        def pushed(tangent: AdamState, direction: PerExample, step: Step = step, state: AdamState = state) -> AdamState:
            return torch.func.jvp(step, (state, shares), (tangent, direction))[1]

        tangents = torch.func.vmap(pushed)(tangents, directions)
        state = step(state, shares)
    return _finite(state[0], config), tangents[0]


def _finite(theta: Float[Tensor, "*n P"], config: FullBatchAdam) -> Float[Tensor, "*n P"]:
    require(
        bool(theta.isfinite().all()),
        f"learning_rate={config.learning_rate:g}: training left the finite numbers; lower it",
    )
    return theta


Objective = Callable[[Weights, PerExample], Float[Tensor, ""]]
"""A number to be minimised, from weights and a row of shares."""


@own_settings
@torch.no_grad()
def minima_nearby(
    objective: Objective,
    start: Weights,
    shares: Float[Tensor, "R N"],
    inverse: Float[Tensor, "P P"],
    *,
    tolerance: float = 1e-3,
    iterations: int = 500,
) -> ManyWeights:
    """A minimum of the objective for each row of shares, `[R, P]`, downhill from `start`.

    Steps are −`inverse` · gradient, halved until the objective falls as it should (Armijo 1966). It is done when the next full
    step of every row is shorter than `tolerance` times the way it came.

    Args:
        inverse: of a matrix near the objective's Hessian.

    Raises:
        ConfigurationError: it was not done after `iterations` steps.
    """
    check_counts(iterations=iterations)
    theta, length = start.expand(len(shares), -1), torch.ones(len(shares)).to(start)
    values, slopes = torch.func.vmap(objective), torch.func.vmap(torch.func.grad_and_value(objective))
    for _ in range(iterations):
        gradient, value = slopes(theta, shares)
        step = -gradient @ inverse
        left = step.norm(dim=1) / (theta - start).norm(dim=1)
        if bool((left < tolerance).all()):
            return theta
        fall = (gradient * step).sum(1)
        length = (2 * length).clamp(max=1)
        for _ in range(40):
            further = theta + length.unsqueeze(1) * step
            rounding = 10 * torch.finfo(value.dtype).eps * value.abs()
            enough = values(further, shares) <= value + 1e-4 * length * fall + rounding
            if bool(enough.all()):
                break
            length = torch.where(enough, length, length / 2)
        theta = further
    raise ConfigurationError(f"iterations={iterations}: the next step is still {float(left.max()):.1e} of the way; give more, "
                             "or more damping")  # fmt: skip
