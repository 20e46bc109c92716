"""Peers: the unit, and EK-FAC by curvlinops 3.0.1, set up for diffusion models as its authors would.

curvlinops and kronfluence (`benchmarks.kronfluence_peer`) fit the same matrix as this library's default, GGN^model =
(2/C) E[JᵀJ] with one sampled label a draw, over the same Conv2d and Linear layers, biases joined to their weights, weights
shared over positions as in K-FAC-expand. A data point of either is one draw (image, t, ε): the whole predicted noise is one
output vector, hence one loss term. Both make two passes over the draws: the factors, then the eigenvalues in their eigenbasis.

They are given what makes them fast: draws made beforehand, batches cut beforehand, no progress bars, no profiling, no
checks of determinism, no counting passes over the data.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import curvlinops
import torch
from torch import Tensor, nn

from diffinf_lib.configuration import DrawConfig, Expectation
from diffinf_lib.curvature.layers import curvature_layers, layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_values

Inverse = Any
"""A curvlinops operator that multiplies with (F + λI)⁻¹."""


def draw_batches(
    model: Denoiser, images: ImageSet, draws: DrawConfig, *, batch_size: int, seed: int = 0, purpose: str = "factors"
) -> list[DrawBatch]:
    """All draws of all images on the model's device, cut into batches."""
    return list(Expectation(draws, purpose, seed).batches(model, images, batch_size))


def plain_forward_backward(model: Denoiser, batches: Sequence[DrawBatch]) -> None:
    """The unit: forward and backward of the loss over the draws, weight gradients included; nothing is kept."""
    parameters = layer_parameters(curvature_layers(model))
    for batch in batches:
        losses = objective_values(model, batch)
        torch.autograd.grad(losses.sum(), parameters)


class _FlatPrediction(nn.Module):
    """The network as curvlinops wants it: one argument, and one output vector `[B, C]` a data point."""

    def __init__(self, model: Denoiser):
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model(inputs["state"], inputs["timesteps"]).flatten(1)


def fit_with_curvlinops(
    model: Denoiser, batches: Sequence[DrawBatch], *, fisher_type: str = "mc"
) -> curvlinops.EKFACLinearOperator:
    """EK-FAC in both passes by curvlinops.

    Its mean-squared error with reduction "mean" has the Hessian (2/C) I in the output, so its operator has the scale of
    this library's curvature: one damping means the same for both.
    """
    data = [({"state": batch.state, "timesteps": batch.timesteps}, batch.target.flatten(1)) for batch in batches]
    operator = curvlinops.EKFACLinearOperator(
        _FlatPrediction(model), nn.MSELoss(reduction="mean"), layer_parameters(curvature_layers(model)), data,
        fisher_type=fisher_type, mc_samples=1, kfac_approx="expand", separate_weight_and_bias=False,
        num_per_example_loss_terms=1, num_data=sum(len(batch.images) for batch in batches),
        batch_size_fn=lambda inputs: len(inputs["timesteps"]), check_deterministic=False, progressbar=False,
    )  # fmt: skip
    operator.compute_kronecker_factors()
    operator.compute_eigenvalue_correction()
    return operator


def damped_inverse(operator: curvlinops.EKFACLinearOperator, damping: float) -> Inverse:
    """(F + λI)⁻¹ in the eigenbasis, λ added to every corrected eigenvalue."""
    return curvlinops.KFACInverseLinearOperator(operator, damping=damping, use_exact_damping=True)


def averaged_gradients(
    model: Denoiser,
    images: ImageSet,
    draws: DrawConfig,
    *,
    purpose: str,
    seed: int = 0,
    batch_size: int = 256,
) -> Iterator[Tensor]:
    """∇ℓ(θ, x_n) of one image after another by plain autograd, averaged over its draws, flattened to one vector."""
    parameters = layer_parameters(curvature_layers(model))
    for position in range(len(images)):
        total = None
        one = images.subset(slice(position, position + 1))
        for batch in draw_batches(model, one, draws, batch_size=batch_size, seed=seed, purpose=purpose):
            losses = objective_values(model, batch) * batch.draw_weights
            gradients = torch.autograd.grad(losses.sum() / draws.count, parameters)
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            total = flat if total is None else total + flat
        assert total is not None
        yield total
