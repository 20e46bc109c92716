"""Checks of the proximal question: what damped influence answers where all is quadratic (chapter 11)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import by_cramer, normal, numbers, positive_definite, with_damping


def _minimiser(
    *, own: Callable[[int], float] = lambda count: -1 / count, pull: Callable[[int], float] = lambda count: 1 / count,
    strength: Callable[[float, int], float] = lambda damping, count: damping,
) -> Callable[[Tensor, Tensor, Tensor, float, int], Tensor]:  # fmt: skip
    """A solution with other factors before the image's curvature and gradient, and another damping."""

    def proximal(hessian: Tensor, own_hessian: Tensor, gradient: Tensor, damping: float, count: int) -> Tensor:
        matrix = with_damping(hessian + own(count) * own_hessian, strength(damping, count))
        return torch.linalg.solve(matrix, pull(count) * gradient)

    return proximal


@exercise(
    gives="the step",
    mistakes={
        "this is damped influence: the curvature of the image's own loss, H_n/N, is missing": _minimiser(
            own=lambda count: 0.0
        ),
        "the image's curvature is added; its loss is raised, so H_n/N is taken away": _minimiser(
            own=lambda count: 1 / count
        ),
        "this lowers the image's loss; the minus before (1/N) ℓ_n is missing": _minimiser(
            own=lambda count: 1 / count, pull=lambda count: -1 / count
        ),
        "the sign of the step is the other way round": _minimiser(pull=lambda count: -1 / count),
        "the 1/N is missing before the image's curvature": _minimiser(own=lambda count: -1.0),
        "the 1/N is missing before the image's gradient": _minimiser(pull=lambda count: 1.0),
        "the 1/N is missing before both the image's gradient and its curvature": _minimiser(
            own=lambda count: -1.0, pull=lambda count: 1.0
        ),
        "the damping is missing": _minimiser(strength=lambda damping, count: 0.0),
        "half the damping: the derivative of (λ/2) ‖u‖² is λu": _minimiser(strength=lambda damping, count: damping / 2),
        "twice the damping: the derivative of (λ/2) ‖u‖² is λu": _minimiser(
            strength=lambda damping, count: 2 * damping
        ),
        "λ is divided by N; it stands beside a mean over images as it is": _minimiser(
            strength=lambda damping, count: damping / count
        ),
        "the inverse is missing: this multiplies by the matrix": lambda h, own, g, damping, count: (
            with_damping(h - own / count, damping) @ g / count
        ),
    },
)
def proximal() -> Iterator[Case]:
    """`proximal(hessian, own_hessian, gradient, damping, count)` → step u `[P]` that answers the proximal question.

    u minimises ½ uᵀHu − (1/N)(gᵀu + ½ uᵀH_n u) + (λ/2) ‖u‖². hessian H `[P, P]`, of the distance to the old outputs, mean
    over images; own_hessian H_n `[P, P]` and gradient g `[P]`, of the image's loss; damping λ; count N.
    """
    hessian, gradient, nothing = torch.diag(numbers(1.0, 3.0)), numbers(8.0, 4.0), torch.zeros(2, 2).double()
    by_hand = numbers(1.0, 0.25)  # (H + I)⁻¹ g / 4
    yield Case("a loss without curvature, by hand: damped influence", by_hand, (hessian, nothing, gradient, 1.0, 4))
    hessian, gradient, row = positive_definite("proximal", 3), normal("proximal-gradient", 3), normal("proximal-row", 3)
    influence = by_cramer(with_damping(hessian, 0.2), gradient) / 9
    leverage = row @ by_cramer(with_damping(hessian, 0.2), row) / 9
    pulled = by_cramer(with_damping(hessian, 0.2), row) / 9 * (row @ influence) / (1 - leverage)
    case = (hessian, torch.outer(row, row), gradient, 0.2, 9)
    yield Case("a loss that curves along one direction, by its leverage", influence + pulled, case)
    own = 0.5 * positive_definite("proximal-own", 3)
    solved = by_cramer(with_damping(hessian - own / 6, 0.1), gradient / 6)
    yield Case("a loss that curves along all, by Cramer's rule", solved, (hessian, own, gradient, 0.1, 6))
