"""Renormalised influence: scores divided by a length of each training image's own, so that unusual images do not always lead.

An image with a large gradient moves the weights far when it is left out, and heads the ranking of every query. Dividing by how
far it moves them asks whose removal does most for its size:

- θ-relative influence (RelatIF, Barshan et al. 2020) divides by ‖(F + λI)⁻¹ ∇ℓ_n‖, the length of the step itself;
- ℓ-relative influence (the same paper) divides by √(∇ℓ_nᵀ (F + λI)⁻¹ ∇ℓ_n), the square root of the self-influence;
- renormalised influence (Hammoudeh & Lowd 2022) divides by ‖∇ℓ_n‖.

Signs stay; the scale is arbitrary afterwards, and sums over removed images no longer predict a change.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import DEFAULT_DAMPING, Approximation, check_dampings
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import DampingKind, Inverses
from diffinf_lib.errors import require
from diffinf_lib.gradients import GradientSet, LayerGradients, check_blocks
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
    train: GradientSet,
    curvature: Curvature,
    *,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> TrainingNorms:
    """All lengths of training images from one reading of their gradients in the eigenbasis; a rotation leaves lengths alone.

    Args:
        damping: λ, one or several.

    Raises:
        ConfigurationError: a damping is negative or NaN, the gradients are projected or of other blocks.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    curvature.check_approximations([approximation])
    check_blocks(train, curvature, "train")
    here = curvature.to(train.device)
    parts = [_squares(shard, here, inverses) for _, shard in train.shards()]
    step, self_influence, gradient = (torch.cat(squares, dim=-1).sqrt() for squares in zip(*parts, strict=True))
    return TrainingNorms(step, self_influence, gradient)


def _squares(gradients: LayerGradients, curvature: Curvature, inverses: Inverses) -> TrainingNorms:
    """The squares of all lengths, a block after the other."""
    count = len(next(iter(gradients.values())))
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
