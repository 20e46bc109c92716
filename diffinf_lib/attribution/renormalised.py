"""Renormalised influence: scores divided by a length of each training image's own, so that unusual images do not always lead.

An image with a large gradient moves the weights far when it is left out, and heads the ranking of every query. Dividing by how
far it moves them asks whose removal does most for its size:

- θ-relative influence (RelatIF, Barshan et al. 2020) divides by ‖(F + λI)⁻¹ ∇ℓ_n‖, the length of the step itself;
- ℓ-relative influence (the same paper) divides by √(∇ℓ_nᵀ (F + λI)⁻¹ ∇ℓ_n), the square root of the self-influence;
- renormalised influence (Hammoudeh & Lowd 2022) divides by ‖∇ℓ_n‖.

Signs stay; the scale is arbitrary afterwards, and sums over removed images no longer predict a change.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import DampingKind, Inverses
from diffinf_lib.attribution.trak import Trak, TrakKernel, checked_shards
from diffinf_lib.configuration import Approximation, check_dampings
from diffinf_lib.curvature import Curvature
from diffinf_lib.errors import require
from diffinf_lib.gradients import LayerGradients
from diffinf_lib.settings import own_settings


class TrainingNorms(NamedTuple):
    """The lengths that influence is divided by, of every training image, for each of D dampings; float64, on the CPU.

    Attributes:
        step: ‖(F + λI)⁻¹ ∇ℓ_n‖, `[D, N]`: θ-relative influence.
        self_influence: √(∇ℓ_nᵀ (F + λI)⁻¹ ∇ℓ_n), `[D, N]`: ℓ-relative influence.
        gradient: ‖∇ℓ_n‖, `[N]`: renormalised influence.
    """

    step: Float[Tensor, "D N"]
    self_influence: Float[Tensor, "D N"]
    gradient: Float[Tensor, "N"]


@own_settings
def renormalised_scores(scores: Float[Tensor, "... Q N"], norms: Float[Tensor, "... N"]) -> Float[Tensor, "... Q N"]:
    """Scores divided by a length of each training image; 0 where the length is 0. Arbitrary scale.

    Args:
        scores: `[Q, N]`, or `[D, Q, N]`.
        norms: `[N]`, or `[D, N]` for scores at the same dampings: a field of `TrainingNorms`.

    Raises:
        ConfigurationError: the shapes do not belong together, or a number is NaN, or a length is negative.
    """
    fits = norms.shape[-1:] == scores.shape[-1:] and norms.ndim in (1, scores.ndim - 1)
    fits = fits and norms.shape[:-1] in (scores.shape[:-2], torch.Size())
    require(fits, f"norms: of shape {tuple(norms.shape)} for scores of {tuple(scores.shape)}; give one a training image, and "
            "for several dampings those of the same dampings")  # fmt: skip
    require(bool(torch.isfinite(scores).all()), "scores: some are not finite; check the gradients")
    require(bool((torch.isfinite(norms) & (norms >= 0)).all()), "norms: some are negative or not finite; give lengths")
    lengths = norms.double().unsqueeze(-2)
    return torch.where(lengths > 0, scores.double() / torch.where(lengths > 0, lengths, 1.0), 0.0)


@own_settings
def training_norms(
    train: LayerGradients | Iterable[tuple[slice, LayerGradients]],
    curvature: Curvature,
    *,
    damping: float | Sequence[float] = 1e-8,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> TrainingNorms:
    """All lengths of training images from one reading of their gradients in the eigenbasis; a rotation leaves lengths alone.

    Args:
        train: gradients in one piece, or shards of them, from `gradient_shards`; each is read once and forgotten.
        damping: λ, one or several.

    Raises:
        ConfigurationError: a damping is negative or NaN, the gradients are projected, not finite or of other blocks.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    curvature.check_approximations([approximation])
    source = train if isinstance(train, dict) else lambda: train
    parts = [_squares(gradients, curvature, inverses) for _, gradients in checked_shards(source, "train")]
    step, self_influence, gradient = (torch.cat(squares, dim=-1).sqrt() for squares in zip(*parts, strict=True))
    return TrainingNorms(step, self_influence, gradient)


def _squares(gradients: LayerGradients, curvature: Curvature, inverses: Inverses) -> TrainingNorms:
    """The squares of all lengths, a block after the other."""
    check_blocks(gradients, curvature, "train")
    some = next(iter(gradients.values()))
    curvature = curvature.to(some.device)
    count = len(some)
    step, own = (torch.zeros(len(inverses), count, dtype=torch.float64) for _ in range(2))
    plain = torch.zeros(count, dtype=torch.float64)
    for name, gradient in gradients.items():
        squares = gradient.flatten(1).double().square()
        plain += squares.sum(1).cpu()
        for index, factor in enumerate(inverses.factors(curvature, name)):
            flat = factor.flatten().double()
            own[index] += (squares @ flat).cpu()
            step[index] += (squares @ flat.square()).cpu()
    return TrainingNorms(step, own, plain)


@own_settings
def trak_norms(
    trak: Trak | TrakKernel, *, damping: float | Sequence[float], damping_kind: DampingKind = "absolute"
) -> TrainingNorms:
    """The same lengths with TRAK's curvature: ‖(ΦᵀΦ + λI)⁻¹ φ_n‖, the square root of the leverage, and ‖φ_n‖.

    From a projection they are those of the projected gradients, near the true ones. A gradient that the decomposition cannot
    tell from none has length 0.
    """
    kernel = trak.kernel if isinstance(trak, Trak) else trak
    squares = kernel.coordinates.square() @ kernel.squared_lengths
    there = squares > kernel.rounding  # a quotient of two roundings would be a score of any size
    return TrainingNorms(
        torch.where(there, kernel.step_lengths(damping, damping_kind=damping_kind), 0.0),
        torch.where(there, kernel.leverages(damping, damping_kind=damping_kind).sqrt(), 0.0),
        torch.where(there, squares.sqrt(), 0.0),
    )


def check_blocks(gradients: LayerGradients, curvature: Curvature, name: str) -> None:
    """Refuse gradients that are not of the curvature's blocks; the message names the first that differs."""
    found = {block: tuple(gradient.shape[1:]) for block, gradient in gradients.items()}
    expected = {block: tuple(layer.shape) for block, layer in curvature.layers.items()}
    for block in found | expected:
        shapes = [part.get(block, "none") for part in (found, expected)]
        require(shapes[0] == shapes[1], f"{name}: layer {block}: gradients of shape {shapes[0]}, {shapes[1]} in the curvature; "
                "give gradients in this curvature's eigenbasis")  # fmt: skip
