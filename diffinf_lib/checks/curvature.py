"""Checks of the exact curvature: the GGN and the Fisher of sampled labels (chapter 05)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.func import hessian

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers, orthogonal


def _gram(scale: Callable[[Tensor], float]) -> Callable[[Tensor], Tensor]:
    """JᵀJ averaged over draws, times a scale that depends on the Jacobians' shape."""
    return lambda jacobians: scale(jacobians) * torch.einsum("dcp,dcq->pq", jacobians, jacobians) / len(jacobians)


@exercise(
    gives="the GGN",
    mistakes={
        "this is for a loss that is a sum over the C outputs; here it is a mean: (2/C) JᵀJ": _gram(lambda j: 2.0),
        "the 2 is missing, the second derivative of a square": _gram(lambda j: 1 / j.shape[1]),
        "2/C is missing": _gram(lambda j: 1.0),
        "this is a sum over draws; give their mean": _gram(lambda j: 2 * len(j) / j.shape[1]),
        "1/C is there twice": _gram(lambda j: 2 / j.shape[1] ** 2),
        "the mean over draws is taken of J; it belongs outside of JᵀJ": lambda j: (
            2 / j.shape[1] * j.mean(0).T @ j.mean(0)
        ),
        "J is summed over the outputs before it is squared": lambda j: 2 / j.shape[1] * j.sum(1).T @ j.sum(1) / len(j),
        "this is J Jᵀ, between outputs; the curvature is between weights": lambda j: (
            2 / j.shape[1] * (j @ j.mT).mean(0)
        ),
    },
)
def ggn() -> Iterator[Case]:
    """`ggn(jacobians)` → `[P, P]`: the GGN of a loss that is a mean over draws and over the C outputs of squared errors.

    jacobians J `[S, C, P]`: derivatives of the C outputs in the P weights, at each of S draws.
    """
    by_hand = numbers(1.0, 2.0, 0.0, 2.0, 1.0, 0.0, 4.0, 0.0).view(2, 2, 2)
    yield Case(
        "two draws, outputs and weights, by hand",
        numbers(9.0, 1.0, 1.0, 4.0).view(2, 2),
        (by_hand,),
        {"S": 2, "C": 2, "P": 2},
    )
    for draws, outputs, weights in ((4, 3, 2), (3, 2, 5)):
        jacobians = normal("jacobians", draws, outputs, weights)
        name = f"{draws} draws, {outputs} outputs and {weights} weights, by a linear model's Hessian"
        yield Case(name, _hessian_of_linear(jacobians), (jacobians,), {"S": draws, "C": outputs, "P": weights})


def _hessian_of_linear(jacobians: Tensor) -> Tensor:
    """The Hessian, by automatic differentiation, of the loss of the outputs Jθ; it is their GGN."""
    targets, weights = normal("targets", *jacobians.shape[:2]), normal("weights", jacobians.shape[2])
    return hessian(lambda theta: (targets - jacobians @ theta).square().mean())(weights)


def _fisher(
    scale: Callable[[int], float], together: Callable[[Tensor], Tensor] = lambda outer: outer.mean((0, 1))
) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean outer product of the gradients Jᵀv with v = scale(C) · noise."""

    def sampled_fisher(jacobians: Tensor, noise: Tensor) -> Tensor:
        gradients = torch.einsum("dcp,ldc->ldp", jacobians, scale(jacobians.shape[1]) * noise)
        return together(gradients.unsqueeze(-1) * gradients.unsqueeze(-2))

    return sampled_fisher


def _of_mean_gradients(jacobians: Tensor, noise: Tensor) -> Tensor:
    return _fisher(lambda c: (2 / c) ** 0.5)(jacobians, noise.mean(0, keepdim=True))


@exercise(
    gives="the Fisher",
    mistakes={
        "these labels have variance 1; for a mean over C outputs the model's own Gaussian has variance C/2": _fisher(
            lambda c: 2 / c
        ),
        "these labels have variance ½, which is right for a loss that is a sum over outputs; for a mean it is C/2": _fisher(
            lambda c: 2 / c * 0.5**0.5
        ),
        "C/2 is the labels' variance; it was taken for their standard deviation": _fisher(lambda c: 1.0),
        "the gradient is that of a sum over outputs; of a mean it is (2/C) Jᵀ(f − y)": _fisher(
            lambda c: 2 * (c / 2) ** 0.5
        ),
        "the labels have the right variance, but the gradient's 2 is missing": _fisher(lambda c: (c / 2) ** 0.5 / c),
        "this is a sum over labels; give their mean": _fisher(
            lambda c: (2 / c) ** 0.5, lambda outer: outer.mean(1).sum(0)
        ),
        "this is a sum over draws; give their mean": _fisher(
            lambda c: (2 / c) ** 0.5, lambda outer: outer.sum(1).mean(0)
        ),
        "gradients are averaged over labels before their outer product; average after it": _of_mean_gradients,
    },
)
def sampled_fisher() -> Iterator[Case]:
    """`sampled_fisher(jacobians, noise)` → `[P, P]`: the mean outer product of loss gradients at sampled labels.

    jacobians J `[S, C, P]`; noise `[V, S, C]`, standard normal numbers, from which you make V labels y of each draw. The
    loss is ‖f − y‖²/C; labels are drawn from the Gaussian around f under which this loss is −log p, up to a constant. In
    the cases the noise has the second moment of a normal distribution exactly, so that the Fisher is the GGN.
    """
    for draws, outputs, weights in ((1, 3, 2), (3, 2, 3), (2, 4, 3)):
        jacobians = normal("fisher", draws, outputs, weights)
        turned = [[orthogonal(f"labels-{draw}-{half}", outputs) for half in range(2)] for draw in range(draws)]
        noise = torch.stack([outputs**0.5 * torch.cat(halves) for halves in turned], dim=1)  # [2C, S, C]
        name = f"{draws} draws and {2 * outputs} labels of {outputs} outputs, against the GGN"
        sizes = {"S": draws, "C": outputs, "V": 2 * outputs}
        yield Case(name, _hessian_of_linear(jacobians), (jacobians, noise), sizes)
