"""Checks of kernels: influence on the Gram matrix of the training features from N × N numbers (chapter 12)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers, with_damping


def _solved(
    damping_of: Callable[[int, float], float], scale: Callable[[int], float] = lambda n: 1.0
) -> Callable[[Tensor, Tensor, float], Tensor]:
    """(ΦΦᵀ + cI)⁻¹ Φ φ_q times a function of N, with c made of N and λ."""

    def woodbury(query: Tensor, features: Tensor, damping: float) -> Tensor:
        n = len(features)
        gram = with_damping(features @ features.T, damping_of(n, damping))
        return scale(n) * torch.linalg.solve(gram, features @ query)

    return woodbury


def _beside_sum(n: int, damping: float) -> float:
    return n * damping


_right = _solved(_beside_sum)


def _bracket(sign: float, scaled: bool) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Woodbury's own form, I ± Φᵀ(ΦΦᵀ + NλI)⁻¹Φ, with or without the 1/(Nλ) before it."""

    def woodbury(query: Tensor, features: Tensor, damping: float) -> Tensor:
        inside = features @ query + sign * features @ features.T @ _right(query, features, damping)
        return inside / (len(features) * damping) if scaled else inside

    return woodbury


def _other_gram(query: Tensor, features: Tensor, damping: float) -> Tensor:
    return torch.linalg.solve(with_damping(features.T @ features, len(features) * damping), features @ query)


@exercise(
    gives="the scores",
    mistakes={
        "λ stands beside the sum ΦΦᵀ as it is; it belongs beside the mean ΦᵀΦ/N, so beside the sum it is Nλ": _solved(
            lambda n, damping: damping
        ),
        "λ is divided by N; out of the mean ΦᵀΦ/N it comes multiplied": _solved(lambda n, damping: damping / n),
        "N times too large: with ΦΦᵀ/N + λI in the inverse, the 1/N of the score has to stand before it": _solved(
            _beside_sum, lambda n: n
        ),
        "divided by N once too often: with ΦΦᵀ + NλI, the 1/N of the score is inside the inverse already": _solved(
            _beside_sum, lambda n: 1 / n
        ),
        "ΦΦᵀ is divided by N and λ is multiplied by it as well; do one of the two": lambda q, features, damping: (
            _solved(lambda n, c: n * n * c, lambda n: n)(q, features, damping)
        ),
        "the Gram matrix is transposed: ΦᵀΦ compares weights; products of images are ΦΦᵀ, N × N": _other_gram,
        "the damping is missing": _solved(lambda n, damping: 0.0),
        "Nλ is added to every entry of ΦΦᵀ; it belongs on the diagonal": lambda q, features, damping: (
            torch.linalg.solve(features @ features.T + len(features) * damping, features @ q)
        ),
        "the inverse is missing: this multiplies by ΦΦᵀ + NλI": lambda q, features, damping: (
            with_damping(features @ features.T, len(features) * damping) @ features @ q
        ),
        "the kernel is missing: these are dot products": lambda q, features, damping: features @ q / len(features),
        "the sign is the other way round": lambda *given: -_right(*given),
        "the 1/(Nλ) before Woodbury's bracket is missing": _bracket(-1.0, scaled=False),
        "Woodbury's second term is subtracted, not added": _bracket(1.0, scaled=True),
    },
)
def woodbury() -> Iterator[Case]:
    """`woodbury(query_feature, features, damping)` → scores `[N]`: (1/N) φ_qᵀ (ΦᵀΦ/N + λI)⁻¹ φ_n from inner products.

    query_feature φ_q `[P]`; features Φ `[N, P]`, a row an image; damping λ beside the mean ΦᵀΦ/N. There may be far more
    weights than images, so no matrix should be larger than N × N.
    """
    features = numbers(1.0, 0.0, 0.0, 1.0, 1.0, 1.0).view(2, 3)
    # ΦΦᵀ + 2I = (3 1; 1 5), and Φ φ_q = (2, 4)
    by_hand = numbers(3 / 7, 5 / 7)
    yield Case("two images and three weights, by hand", by_hand, (numbers(2.0, 1.0, 1.0), features, 1.0))
    for images, weights in ((3, 3), (4, 9)):
        features, query = normal("features", images, weights), normal("feature", weights)
        curvature = with_damping(features.T @ features / images, 0.2)
        scores = torch.stack([query @ torch.linalg.inv(curvature) @ row / images for row in features])
        yield Case(
            f"{images} images and {weights} weights, by a matrix of weights × weights", scores, (query, features, 0.2)
        )
