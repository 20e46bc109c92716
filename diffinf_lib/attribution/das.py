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

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.attribution.scoring import KeptQueries, images_trained_on
from diffinf_lib.configuration import DEFAULT_DAMPING, Approximation, check_dampings
from diffinf_lib.curvature import Curvature
from diffinf_lib.curvature.damping import DampingKind, Inverses
from diffinf_lib.errors import require
from diffinf_lib.finite import check_scores
from diffinf_lib.gradients import GradientSet, check_blocks
from diffinf_lib.options import check_counts
from diffinf_lib.settings import own_settings


@own_settings
def das_scores(
    probes: Sequence[GradientSet],
    train: GradientSet,
    curvature: Curvature,
    *,
    damping: float | Sequence[float] = DEFAULT_DAMPING,
    probes_per_query: int = 1,
    approximation: Approximation = "ekfac",
    damping_kind: DampingKind = "absolute",
    count: int | None = None,
) -> Float[Tensor, "D Q N"]:
    """DAS with a fitted curvature, for each damping; ≥ 0, float64, on the CPU.

    Args:
        probes: probe gradients v = J_{q,s}ᵀ u in the eigenbasis, query by query, `probes_per_query` rows each; several such
            sets, say one a draw. The mean is over all.
        train: gradients of the training images' loss in the eigenbasis; shards are read once.
        damping: λ, one or several.
        probes_per_query: rows of each query in each set of probes.
        count: N, the number of images the model was trained on; default all of `train`.

    Raises:
        ConfigurationError: rows that are no multiple of `probes_per_query`, other blocks, projected gradients, a damping that
            is negative or NaN.
    """
    inverses = Inverses(check_dampings(damping), [approximation], damping_kind)
    curvature.check_approximations([approximation])
    total = images_trained_on(count, train)
    check_blocks(train, curvature, "train")
    _check_probes(probes, probes_per_query)
    kept = [KeptQueries(part, train, curvature, inverses) for part in probes]
    columns: list[Tensor] = []
    for _, shard in train.shards():
        changes = [(part.scores(shard) / total).unflatten(1, (-1, probes_per_query)) for part in kept]
        columns.append(torch.stack([change.square().mean(2) for change in changes]).mean(0))
    scores = torch.cat(columns, dim=-1)
    check_scores(scores, query=None, training_image=train.ids)
    return scores


def _check_probes(probes: Sequence[GradientSet], per_query: int) -> None:
    """Refuse probes that are not of the same queries."""
    check_counts(probes_per_query=per_query)
    require(len(probes) > 0, "probes: there are none; give at least one a query")
    rows = probes[0].count
    require(rows % per_query == 0, f"probes_per_query={per_query}: {rows} rows of probes are no multiple of it")
    for part in probes:
        require(part.count == rows, f"probes: {part.count} rows after {rows}; give each draw's probes of all queries")
