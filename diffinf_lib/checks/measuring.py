"""Checks of measurements: losses that no model removes, weights of losses, and how many draws it takes (chapter 03)."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers


def _of_shares(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[[float, Tensor], Tensor]:
    """A loss from the variances of image and noise in x_t, ᾱv and 1 − ᾱ."""
    return lambda variance, left: rule(left * variance, 1 - left)


@exercise(
    gives="the loss",
    mistakes={
        "this is the part of the noise that can be guessed; the loss is what remains": _of_shares(
            lambda x, e: e / (x + e)
        ),
        "v is a variance already; it is squared here": lambda v, left: left * v**2 / (left * v**2 + 1 - left),
        "the square root of ᾱ is taken; variances add with ᾱ itself": lambda v, left: (
            left.sqrt() * v / (left.sqrt() * v + (1 - left).sqrt())
        ),
        "v is missing: this holds for data of variance 1": lambda v, left: left,
        "this is the variance of the image given x_t; the loss is that of the noise": _of_shares(
            lambda x, e: x * e / (x + e)
        ),
        "this is the signal-to-noise ratio; below the line belongs all of x_t's variance": _of_shares(
            lambda x, e: x / e
        ),
        "this is the root of the loss; the loss is a variance": _of_shares(lambda x, e: (x / (x + e)).sqrt()),
    },
)
def irreducible_loss() -> Iterator[Case]:
    """`irreducible_loss(variance, alphas_cumprod)` → `[T]`: the loss of the best denoiser on data x ~ N(μ, v), per dimension.

    variance v, a number; alphas_cumprod ᾱ `[T]`. The loss is E[(ε − E[ε | x_t])²].
    """
    for variance in (0.04, 1.0, 3.0):
        left = numbers(0.9, 0.5, 0.1)
        # the residual of ε after its regression on x_t, from the 2×2 covariance of the two
        of_state, shared = left * variance + 1 - left, (1 - left).sqrt()
        residual = torch.stack([torch.linalg.det(torch.stack([torch.stack([a, b]), torch.stack([b, torch.ones_like(a)])]))
                                for a, b in zip(of_state, shared, strict=True)]) / of_state  # fmt: skip
        yield Case(f"data of variance {variance:g}", residual, (variance, left))


def _needed(
    rule: Callable[[float, float], float], rounded: Callable[[float], int] = math.ceil
) -> Callable[..., Tensor]:
    """Counts for independent and for shared draws; `rule` gives the variance of one draw's difference from σ and ρ."""

    def draws_needed(deviation: float, correlation: float, error: float) -> Tensor:
        return torch.tensor([rounded(rule(deviation, rho) / error**2) for rho in (0.0, correlation)]).double()

    return draws_needed


def _smallest(variance: float, error: float) -> int:
    draws = 1
    while variance / draws > error**2:
        draws += 1
    return draws


@exercise(
    gives="(independent draws, shared draws)",
    mistakes={
        "the variance of a difference has a share of both models: the 2 is missing": _needed(
            lambda s, r: s**2 * (1 - r)
        ),
        "σ is a standard deviation: square it": _needed(lambda s, r: 2 * s * (1 - r)),
        "the error falls with √S, so S grows with its square": lambda s, r, e: torch.tensor(
            [math.ceil(2 * s**2 * (1 - c) / e) for c in (0.0, r)]
        ).double(),
        "correlation counts once: 1 − ρ, not 1 − ρ²": _needed(lambda s, r: 2 * s**2 * (1 - r**2)),
        "shared draws move both losses the same way, so the difference varies less: 1 − ρ, not 1 + ρ": _needed(
            lambda s, r: 2 * s**2 * (1 + r)
        ),
        "round up: with the number below, the error is still too large": _needed(
            lambda s, r: 2 * s**2 * (1 - r), math.floor
        ),
        "the two numbers stand in the other order": lambda s, r, e: _needed(lambda s, r: 2 * s**2 * (1 - r))(
            s, r, e
        ).flip(0),
    },
)
def draws_needed() -> Iterator[Case]:
    """`draws_needed(deviation, correlation, error)` → (S independent, S shared): draws that bring a difference to an error.

    The difference is that of two models' mean losses. deviation σ: standard deviation of each model's loss over draws;
    correlation ρ of the two losses on one draw; error: the standard deviation of the difference that is allowed. The first
    number holds if each model has draws of its own, the second if both see the same ones. Whole numbers, rounded up.
    """  # fmt: skip
    for deviation, correlation, error in ((1.0, 0.75, 0.5), (0.3, 0.99, 0.013), (2.0, 0.4, 0.7)):
        counts = [_smallest(2 * deviation**2 * (1 - rho), error) for rho in (0.0, correlation)]
        name = f"σ = {deviation:g}, ρ = {correlation:g}, error {error:g}"
        yield Case(name, tuple(map(float, counts)), (deviation, correlation, error), ask=_stacked)


def _stacked(function: Callable[..., object], *arguments: float) -> tuple[object, ...]:
    returned = function(*arguments)
    return tuple(returned) if isinstance(returned, (Tensor, list, tuple)) else (returned,)


def _weights(rule: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Weights from β_t, ᾱ_{t−1} and ᾱ_t, 0 at t = 0."""

    def elbo_weights(betas: Tensor) -> Tensor:
        left = (1 - betas).cumprod(0)
        return torch.cat([torch.zeros_like(betas[:1]), rule(betas[1:], left[:-1], left[1:])])

    return elbo_weights


@exercise(
    gives="the weights",
    mistakes={
        "this is for a step of variance β_t; here it has the posterior's, β̃_t": _weights(
            lambda b, before, left: b / (2 * (1 - b) * (1 - left))
        ),
        "the ½ of the Gaussian's exponent is missing": _weights(lambda b, before, left: b / ((1 - b) * (1 - before))),
        "α_t is missing below the line": _weights(lambda b, before, left: b / (2 * (1 - before))),
        "the step's variance β̃_t is missing below the line": _weights(
            lambda b, before, left: b**2 / (2 * (1 - b) * (1 - left))
        ),
        "ᾱ_t stands where α_t = 1 − β_t belongs": _weights(lambda b, before, left: b / (2 * left * (1 - before))),
        "these weights turn an error of the image into KL; the loss is an error of the noise": _weights(
            lambda b, before, left: b * before / (2 * (1 - before) * (1 - left))
        ),
    },
)
def elbo_weights() -> Iterator[Case]:
    """`elbo_weights(betas)` → w `[T]`: KL_t = w_t ‖ε − ε_θ‖² in nats, for steps with the posterior's variance β̃_t.

    betas β `[T]`, timesteps from 0 on. ‖·‖² is the sum over dimensions. Step 0 has no KL: w_0 = 0.
    """
    for name, betas in (("three steps", numbers(0.25, 0.75, 0.5)), ("ten steps", numbers(0.5, 0.75).repeat(5))):
        left, expected = (1 - betas).cumprod(0), [0.0]
        for t in range(1, len(betas)):
            # KL of two Gaussians of one variance whose means come from images that differ by an error of 1 in the noise
            of_image = float(left[t - 1].sqrt() * betas[t] / (1 - left[t]))
            variance = float(betas[t] * (1 - left[t - 1]) / (1 - left[t]))
            moved = of_image * float(((1 - left[t]) / left[t]).sqrt())
            expected.append(moved**2 / (2 * variance))
        yield Case(name, numbers(*expected), (betas,))


def _weighted(rule: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A mean from values and the weights (1/T)/p."""
    return lambda values, timesteps, p: rule(values, 1 / (len(p) * p[timesteps]))


@exercise(
    gives="the mean",
    mistakes={
        "the weights are missing: often drawn timesteps count too often": _weighted(lambda v, w: v.mean()),
        "the weights are upside down: divide by the probability": _weighted(lambda v, w: (v / w).mean()),
        "the weights are applied twice": _weighted(lambda v, w: (v * w**2).mean()),
        "the sum of the weights is divided by, not the number of draws: that estimate is biased": _weighted(
            lambda v, w: (v * w).sum() / w.sum()
        ),
        "T is missing: uniform timesteps have probability 1/T each": lambda v, t, p: (v / p[t]).mean(),
        "this is a sum over the draws; give their mean": _weighted(lambda v, w: (v * w).sum()),
    },
)
def importance_mean() -> Iterator[Case]:
    """`importance_mean(values, timesteps, probabilities)` → a number: the mean over *uniform* timesteps, without bias.

    values `[S]`, one a draw; timesteps `[S]` integers, drawn with probabilities p `[T]`.
    """
    by_time, p = numbers(4.0, 1.0, -3.0), numbers(0.5, 0.25, 0.25)
    timesteps = torch.tensor([0, 1, 0, 2])  # each as often as its probability says, so nothing is left to chance
    yield Case("four draws in proportion to p", by_time.mean(), (by_time[timesteps], timesteps, p))
    p, by_time = numbers(0.1, 0.2, 0.3, 0.4), normal("by-time", 4)
    timesteps = torch.arange(4).repeat_interleave(torch.arange(1, 5))
    yield Case("ten draws in proportion to p", by_time.mean(), (by_time[timesteps], timesteps, p))
    few = torch.tensor([3, 3])
    yield Case("two draws of one timestep", by_time[3] * 0.25 / 0.4, (by_time[few], few, p))
