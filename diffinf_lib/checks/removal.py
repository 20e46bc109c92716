"""Checks of influence and of exact removal from ridge regression (chapters 04 and 10)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import by_cramer, normal, numbers, positive_definite, with_damping


def _scores(query: Tensor, train: Tensor, hessian: Tensor, damping: float) -> Tensor:
    return train @ torch.linalg.solve(with_damping(hessian, damping), query) / len(train)


def _unlike(change: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A wrong solution from the right scores and what they were made of."""
    return lambda *given: change(_scores(*given), *given)


@exercise(
    gives="the scores",
    mistakes={
        "the sign is the other way round: removal is δ = −1/N, and its minus meets that of the implicit function theorem": (
            _unlike(lambda scores, *given: -scores)
        ),
        "the 1/N is missing: removing one of N images changes its weight by 1/N": _unlike(
            lambda scores, q, train, *given: scores * len(train)
        ),
        "the 1/N is there, but the sign is not: a minus is missing": _unlike(
            lambda scores, q, train, *given: -scores * len(train)
        ),
        "divided by N − 1: the mean before the removal is over N": _unlike(
            lambda scores, q, train, *given: scores * len(train) / (len(train) - 1)
        ),
        "the damping is missing": lambda q, train, h, damping: _scores(q, train, h, 0.0),
        "λ is added to the inverse; it belongs on the diagonal of H, before the inverse": lambda q, train, h, damping: (
            train @ (with_damping(torch.linalg.inv(h), damping) @ q) / len(train)
        ),
        "λ is added to every entry of H; it belongs on the diagonal": lambda q, train, h, damping: _scores(
            q, train, h + damping, 0.0
        ),
        "λ is divided by N as well; it stands beside the Hessian of the mean loss as it is": lambda q, train, h, damping: (
            _scores(q, train, h, damping / len(train))
        ),
        "the inverse is missing: this multiplies by H + λI": lambda q, train, h, damping: (
            train @ (with_damping(h, damping) @ q) / len(train)
        ),
        "the curvature is missing: these are dot products": lambda q, train, h, damping: train @ q / len(train),
        "this is the influence on all images' sum; give one score for each image": _unlike(
            lambda scores, *given: scores.sum()
        ),
    },
)
def influence() -> Iterator[Case]:
    """`influence(query_gradient, train_gradients, hessian, damping)` → scores `[N]`: what removing each image does to m.

    query_gradient ∇m `[P]`; train_gradients ∇ℓ_n `[N, P]`; hessian H `[P, P]` of the *mean* loss; damping λ, a number.
    A score estimates m after the removal minus m before, the 1/N included.
    """
    train = numbers(2.0, 0.0, 0.0, 8.0, 4.0, -4.0, -1.0, 1.0).view(4, 2)
    hessian, query = torch.diag(numbers(1.0, 3.0)), numbers(2.0, 1.0)
    # (H + I)⁻¹ ∇m = (1, 1/4), and a quarter of each product
    yield Case("four images and two weights, by hand", numbers(0.5, 0.5, 0.75, -0.1875), (query, train, hessian, 1.0))
    train, query, hessian = normal("train", 5, 3), normal("query", 3), positive_definite("hessian", 3)
    by_rows = torch.stack([by_cramer(with_damping(hessian, 0.2), query) @ row / 5 for row in train])
    yield Case("five images and three weights, by Cramer's rule", by_rows, (query, train, hessian, 0.2))


def _ridge(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
    return torch.linalg.solve(with_damping(features.T @ features, ridge), features.T @ targets)


def _steps(
    share: Callable[[Tensor], Tensor], *, sign: float = 1.0, inner: float = 1.0
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Weights after a Newton step for each image, its length multiplied by a function of the leverage.

    Args:
        inner: what the ridge is multiplied by in the curvature.
    """

    def leave_one_out(features: Tensor, targets: Tensor, ridge: float) -> Tensor:
        weights = _ridge(features, targets, ridge)
        steps = torch.linalg.solve(with_damping(features.T @ features, inner * ridge), features.T).T
        leverage = (features * steps).sum(1)
        errors = targets - features @ weights
        return weights - sign * steps * (errors * share(leverage)).unsqueeze(1)

    return leave_one_out


@exercise(
    gives="the weights",
    mistakes={
        "this is influence alone, a first-order step; divide each by 1 − h": _steps(torch.ones_like),
        "the sign is the other way round: without an image the fit moves away from its target": _steps(
            lambda h: 1 / (1 - h), sign=-1
        ),
        "multiplied by 1 − h; the removal takes curvature away as well, so divide": _steps(lambda h: 1 - h),
        "divided by 1 + h: that is what adding a copy of the image does to the denominator": _steps(
            lambda h: 1 / (1 + h)
        ),
        "divided by (1 − h)²": _steps(lambda h: 1 / (1 - h) ** 2),
        "the ridge is missing in the curvature, XᵀX + λI": _steps(lambda h: 1 / (1 - h), inner=0.0),
        "the ridge is divided by N: it stands beside a sum over images here, not a mean": lambda x, y, ridge: _steps(
            lambda h: 1 / (1 - h)
        )(x, y, ridge / len(x)),
        "these are the weights of the fit to all images, N times": lambda x, y, ridge: _ridge(x, y, ridge).expand(
            len(x), -1
        ),
        "these are changes; add the weights of the fit to all images": lambda x, y, ridge: (
            _steps(lambda h: 1 / (1 - h))(x, y, ridge) - _ridge(x, y, ridge)
        ),
    },
)
def leave_one_out() -> Iterator[Case]:
    """`leave_one_out(features, targets, ridge)` → weights `[N, P]`, row n fitted without example n, from one fit to all.

    features X `[N, P]`; targets y `[N]`; ridge λ, a number. A fit minimises Σ_n (y_n − x_n·w)² + λ ‖w‖²; λ stays as it is
    when an example is left out. Influence is the step (XᵀX + λI)⁻¹ x_n e_n with the residual e_n, and the leverage of n is
    h_n = x_nᵀ (XᵀX + λI)⁻¹ x_n.
    """
    for name, ridge, outlier in (("without ridge", 0.0, 1.0), ("with ridge", 0.5, 1.0), ("with an outlier", 0.1, 20.0)):
        features, targets = normal("features", 6, 2), normal("targets", 6)
        features[0] *= outlier
        refits = [_ridge(*_without(features, targets, [n]), ridge) for n in range(6)]
        yield Case(
            f"six examples {name}, each left out and fitted anew", torch.stack(refits), (features, targets, ridge)
        )


def _without(features: Tensor, targets: Tensor, removed: list[int]) -> tuple[Tensor, Tensor]:
    kept = [n for n in range(len(features)) if n not in removed]
    return features[kept], targets[kept]


def _group_step(
    errors_of: Callable[[Tensor, Tensor], Tensor], *, sign: float = 1.0
) -> Callable[[Tensor, Tensor, float, Tensor], Tensor]:
    """Weights after one step for a group; `errors_of` turns its leverages H_SS and residuals into the step's residuals."""

    def block_leverage(features: Tensor, targets: Tensor, ridge: float, group: Tensor) -> Tensor:
        weights = _ridge(features, targets, ridge)
        chosen = features[group]
        steps = torch.linalg.solve(with_damping(features.T @ features, ridge), chosen.T)
        return weights - sign * steps @ errors_of(chosen @ steps, targets[group] - chosen @ weights)

    return block_leverage


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype)


@exercise(
    gives="the weights",
    mistakes={
        "this is the sum of the images' influences; the group takes its curvature away as well, (I − H)⁻¹": _group_step(
            lambda h, e: e
        ),
        "each image is divided by its own 1 − h; leverages between images of the group count too": _group_step(
            lambda h, e: e / (1 - h.diagonal())
        ),
        "the sign is the other way round": _group_step(lambda h, e: torch.linalg.solve(_eye(h) - h, e), sign=-1),
        "I + H is inverted: that adds the group a second time; removal is I − H": _group_step(
            lambda h, e: torch.linalg.solve(_eye(h) + h, e)
        ),
        "multiplied by I − H; take its inverse": _group_step(lambda h, e: (_eye(h) - h) @ e),
        "these are the weights of the group alone; it is what to remove": lambda x, y, ridge, group: _ridge(
            x[group], y[group], ridge
        ),
    },
)
def block_leverage() -> Iterator[Case]:
    """`block_leverage(features, targets, ridge, group)` → weights `[P]` fitted without a group, from one fit to all.

    features X `[N, P]`; targets y `[N]`; ridge λ; group `[k]`, places of the examples that are removed. A fit minimises
    Σ_n (y_n − x_n·w)² + λ ‖w‖². The leverages of the group are H = X_S (XᵀX + λI)⁻¹ X_Sᵀ, `[k, k]`.
    """
    features, targets = normal("group-features", 8, 3), normal("group-targets", 8)
    for group, ridge in (([2], 0.3), ([0, 4, 5], 0.3), ([1, 2, 6, 7], 0.0)):
        refit = _ridge(*_without(features, targets, group), ridge)
        name = f"{len(group)} of 8 examples removed and fitted anew"
        yield Case(name, refit, (features, targets, ridge, torch.tensor(group)))
