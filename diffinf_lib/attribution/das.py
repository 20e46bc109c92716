"""DAS: how far the network's own output on a query moves when a training image is left out (Lin et al. 2025).

Leaving n out changes the weights by (F + λI)⁻¹ ∇ℓ_n / N, and with them the output of draw s of query q by J_{q,s} times
that. The score is the mean over draws of the squared length of this change,

    DAS[q, n] = E_s ‖J_{q,s} (F + λI)⁻¹ ∇ℓ_n / N‖²,

the divergence between the distributions that the two models predict, up to the weight of each timestep. No Jacobian is
built: with a random probe u of the output, E[u uᵀ] = I, the squared length is the mean of (v · (F + λI)⁻¹ ∇ℓ_n / N)² over
probe gradients v = J_{q,s}ᵀ u. So the score is the mean square of the influence on random outputs.

A score is never negative: it ranks training images, and cannot tell whose removal lowers the loss. It points the way
influence on the loss does in so far as any change of the output makes a query less likely. Its scale is a squared change of
the output, summed over its dimensions, not a change of the loss.

An interpretation: the paper's released code (github.com/Jinxu-Lin/DAS) reduces the output to one number, the mean of its
absolute values, whose gradient stands for J and makes the Gram matrix, and multiplies by the square root of the training
image's mean loss for its residual. Here the whole output is probed, and the residual of each draw is inside ∇ℓ_n.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.renormalised import check_blocks
from diffinf_lib.attribution.scoring import DampingKind, Inverses, KeptQueries
from diffinf_lib.attribution.trak import GradientSource, Trak, checked_shards
from diffinf_lib.configuration import Approximation, check_dampings
from diffinf_lib.curvature import Curvature
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import LayerGradients
from diffinf_lib.settings import own_settings

Probes = LayerGradients | Sequence[LayerGradients]
"""Probe gradients v = J_{q,s}ᵀ u by block: rows ordered query by query, `probes_per_query` rows each; or several such."""


@own_settings
def das_scores(
    probes: Probes,
    train: GradientSource,
    curvature: Curvature,
    *,
    count: int,
    damping: float | Sequence[float] = 1e-8,
    probes_per_query: int = 1,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D Q N"]:
    """DAS with a fitted curvature, for each damping; ≥ 0, float64, on the CPU.

    Args:
        probes: in the eigenbasis; each row a draw and a probe of its own, so that their mean is over both.
        train: gradients of the training images' loss in the eigenbasis; shards are read once.
        count: N, the number of images the model was trained on.
        damping: λ, one or several.
        probes_per_query: rows of each query in each element of `probes`.

    Raises:
        ConfigurationError: rows that are no multiple of `probes_per_query`, other blocks, gradients that are not finite or
            projected, a damping that is negative or NaN.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    curvature.check_approximations([approximation])
    require(count > 0, f"count={count}: give N, the number of images the model was trained on")
    checked = list(_checked(probes, probes_per_query))
    for part in checked:
        check_blocks(part, curvature, "probes")
    curvature = curvature.to(next(iter(checked[0].values())).device)
    kept = [KeptQueries([part], curvature, inverses) for part in checked]
    columns: list[Tensor] = []
    for _, gradients in checked_shards(train, "train"):
        check_blocks(gradients, curvature, "train")
        squares = [_mean_squares(part.scores(gradients) / count, probes_per_query) for part in kept]
        columns.append(torch.stack(squares).mean(0))
    scores = torch.cat(columns, dim=-1)
    check_scores(scores, query=None, training_image=None)
    return scores


@own_settings
def trak_das_scores(
    probes: Probes,
    trak: Trak,
    *,
    damping: float | Sequence[float],
    probes_per_query: int = 1,
    leave_one_out: bool = False,
    damping_kind: DampingKind = "absolute",
) -> Float[Tensor, "D Q N"]:
    """DAS with TRAK's curvature, the Gram matrix of the training gradients (see `diffinf_lib.attribution.trak`); ≥ 0.

    Args:
        trak: of the gradients of the training images' loss.
        damping: λ ≥ 0, one or several; λ = Nλ' is the damping λ' of `das_scores`.
        leave_one_out: take the image out of the Gram matrix too, as the released code does: the change is divided by 1 minus
            the leverage of the image (Sherman & Morrison 1950).

    Raises:
        ConfigurationError: see `das_scores`; or leaving out an image of leverage 1, which without damping all have when there
            are more weights than images.
    """
    Inverses(check_dampings(damping), damping_kind=damping_kind)
    held = torch.ones(1, dtype=torch.float64)
    if leave_one_out:
        held = 1 - trak.kernel.leverages(damping, damping_kind=damping_kind).unsqueeze(1)
        require(bool((held > 1e-10).all()), f"damping={damping}: without training images of leverage 1 the Gram matrix is "
                "singular; give a larger damping")  # fmt: skip
    squares = [
        _mean_squares(trak.scores(part, damping, damping_kind=damping_kind) / held, probes_per_query)
        for part in _checked(probes, probes_per_query)
    ]
    return torch.stack(squares).mean(0)


def _mean_squares(changes: Float[Tensor, "D QP N"], per_query: int) -> Float[Tensor, "D Q N"]:
    """The mean over each query's probes of the squared change that they see."""
    return changes.unflatten(1, (-1, per_query)).square().mean(2)


def _checked(probes: Probes, per_query: int) -> Iterator[LayerGradients]:
    """The probes' gradients, element by element, each of the same queries."""
    parts = [probes] if isinstance(probes, dict) else list(probes)
    require(per_query > 0, f"probes_per_query={per_query}: give a positive number")
    require(len(parts) > 0, "probes: there are none; give at least one a query")
    rows = None
    for part in parts:
        for where, gradients in checked_shards(part, "probes"):
            size = where.stop
            require(size % per_query == 0, f"probes_per_query={per_query}: {size} rows of probes are no multiple of it")
            require(rows in (None, size), f"probes: {size} rows after {rows}; give each draw's probes of all queries")
            rows = size
            yield gradients
