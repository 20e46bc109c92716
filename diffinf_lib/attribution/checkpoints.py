"""Along the run: scores averaged over the checkpoints of one training run, or over trained models of several seeds.

The final weights are one point of a path, and what a training image did to the model happened along it. Scores from each
checkpoint, with that checkpoint's own curvature, err in different ways; their mean errs less. Averaging final models of
several seeds does the same at the price of several trainings.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import DrawConfig
from diffinf_lib.errors import DataError, require
from diffinf_lib.options import check_counts, checked

Weighting = Literal["standardised", "learning_rate"]


def average_scores(
    scores: Sequence[Float[Tensor, "... Q N"]],
    *,
    weighting: Weighting = "standardised",
    learning_rates: Sequence[float] | None = None,
) -> Float[Tensor, "... Q N"]:
    """The mean over checkpoints or models of scores of the same queries and training images.

    Args:
        scores: `[..., Q, N]` of each checkpoint, all of one shape.
        weighting: `standardised`, each query's scores at each checkpoint divided by their standard deviation over training
            images, so that no checkpoint outweighs the others: early ones have gradients many times as large. Scores of
            equal spread at every checkpoint are then scaled back by the mean of those deviations. Or `learning_rate`, the
            weights of TracIn (Pruthi et al. 2020).
        learning_rates: of the checkpoints, for `learning_rate`.

    Returns:
        `[..., Q, N]`, on the scale of the scores that went in.

    Raises:
        ConfigurationError: no scores, unequal shapes, or an unknown weighting.
        DataError: scores that are NaN or infinite.
    """
    require(len(scores) > 0, "scores: give those of at least one checkpoint")
    checked("weighting", weighting, Weighting)
    shapes = {tuple(values.shape) for values in scores}
    require(len(shapes) == 1, f"scores of shapes {sorted(shapes)}: give the same queries and images at each checkpoint")
    stacked = torch.stack([values.double().cpu() for values in scores])
    require(bool(torch.isfinite(stacked).all()), "scores: some are NaN or infinite; score again", DataError)
    if weighting == "learning_rate":
        require(learning_rates is not None and len(learning_rates) == len(scores), f"learning_rates={learning_rates}: give one "
                f"for each of {len(scores)} checkpoints")  # fmt: skip
        weights = torch.tensor(learning_rates, dtype=torch.float64)
        require(bool((weights >= 0).all()) and float(weights.sum()) > 0, f"learning_rates={learning_rates}: give numbers >= 0, "
                "not all 0")  # fmt: skip
        return torch.tensordot(weights / weights.sum(), stacked, dims=1)
    spread = stacked.std(-1, keepdim=True)
    return (stacked / torch.where(spread > 0, spread, 1.0)).mean(0) * spread.mean(0)


def split_draws(draws: DrawConfig, parts: int) -> DrawConfig:
    """The same rule with the draws shared out over `parts` checkpoints, in whole pairs; at least one pair each."""
    check_counts(parts=parts)
    pair = 2 if draws.noise_rule == "antithetic" else 1
    return replace(draws, count=max(pair, draws.count // parts // pair * pair))
