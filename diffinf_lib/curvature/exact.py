"""Exact: dense curvature of small models, slow and obviously right; what every approximation is tested against.

Everything here is plain automatic differentiation, one draw at a time, without curvlinops and without hooks, so that the
linear operators of `operators` and the factors of the fit have something independent to agree with.

Matrices are `[P, P]` over all covered parameters (`covers`, see `coverage`): a layer's parameters stand in the order of its
flattened `[d_out, d_in]` gradient, layers in the order of `curvature_layers`.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffinf_lib.curvature.layers import (
    Covers,
    Layers,
    curvature_layers,
    differentiable,
    gradient_matrices,
    layer_parameters,
)
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_values
from diffinf_lib.errors import require
from diffinf_lib.settings import own_settings

Outer = Literal["draw", "example"]


@own_settings
def dense_ggn(model: Denoiser, batch: DrawBatch, *, covers: Covers = None) -> Float[Tensor, "P P"]:
    """GGN^model = (2/C) E[JᵀJ] over the given draws (Mlodozeniec et al. 2025, section 3.1).

    One backward pass for each draw and each output dimension: for models of a few thousand parameters.
    """
    layers, total = curvature_layers(model, covers), torch.zeros(())
    for weight, prediction, _ in _draws(model, layers, batch):
        jacobian = torch.stack([_flat_gradient(layers, output) for output in prediction.flatten()])
        total = total + weight * (2 / prediction.numel()) * jacobian.T @ jacobian
    return total / len(batch.images)


@own_settings
def dense_hessian(model: Denoiser, batch: DrawBatch, *, covers: Covers = None) -> Float[Tensor, "P P"]:
    """∇² of the mean over draws of the mean-dim loss, by double backward.

    It is GGN^model plus what the curvature of the network itself adds, and may have negative eigenvalues.
    """
    layers = curvature_layers(model, covers)
    with differentiable(model, layers), sdpa_kernel(SDPBackend.MATH):
        losses = objective_values(model, batch)
        gradient = _flat_gradient(layers, (batch.draw_weights.to(losses) * losses).mean(), create_graph=True)
        basis = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
        return torch.cat([_rows_of_jacobian(layers, gradient, rows) for rows in basis.split(128)])


@own_settings
def dense_empirical_fisher(
    model: Denoiser,
    batch: DrawBatch,
    *,
    per: Outer = "draw",
    covers: Covers = None,
) -> Float[Tensor, "P P"]:
    """GGN^loss: the mean outer product of loss gradients (Mlodozeniec et al. 2025, section 3.1 and appendix G).

    Two matrices go under that name. Per draw it is E[∇ℓ_s ∇ℓ_sᵀ] over all draws; per example it is the mean over examples
    of ḡ_n ḡ_nᵀ, with ḡ_n the example's gradient averaged over its draws: TRAK's Gram matrix, divided by N.
    """
    check_outer(per)
    layers = curvature_layers(model, covers)
    weights, gradients = [], []
    for weight, prediction, target in _draws(model, layers, batch):
        weights.append(weight)
        gradients.append(_flat_gradient(layers, (prediction - target).square().mean()))
    rows, scales = torch.stack(gradients), torch.tensor(weights).to(gradients[0])
    if per == "draw":
        return (scales * rows.T) @ rows / len(rows)
    examples = [batch.example.to(rows.device) == example for example in batch.example.unique()]
    means = torch.stack([(scales[which] @ rows[which]) / which.sum() for which in examples])
    return means.T @ means / len(means)


@own_settings
def layer_slices(model: Denoiser, covers: Covers = None) -> dict[str, slice]:
    """Where each layer's parameters stand in the dense matrices."""
    slices, start = {}, 0
    for name, layer in curvature_layers(model, covers).items():
        size = sum(tensor.numel() for tensor in layer_parameters({name: layer}))
        slices[name] = slice(start, start + size)
        start += size
    return slices


def check_outer(per: str) -> None:
    """Refuse what is neither an outer product per draw nor one per example."""
    require(per in ("draw", "example"), f"per={per!r}: give 'draw' or 'example'")


def _draws(
    model: Denoiser, layers: Layers, batch: DrawBatch
) -> Iterator[tuple[float, Float[Tensor, "C H W"], Float[Tensor, "C H W"]]]:
    """The weight, prediction and target of one draw after the other, `[C, H, W]`."""
    for row, weight in enumerate(batch.draw_weights.tolist()):
        with differentiable(model, layers):
            yield weight, model.predict(batch.rows(slice(row, row + 1)))[0], batch.target[row]


def _flat_gradient(layers: Layers, value: Float[Tensor, ""], *, create_graph: bool = False) -> Float[Tensor, "P"]:
    """∇ of a number over all layers, in the order of the dense matrices."""
    gradients = torch.autograd.grad(
        value, layer_parameters(layers), retain_graph=True, create_graph=create_graph, materialize_grads=True
    )
    return torch.cat([matrix.flatten() for matrix in gradient_matrices(layers, gradients).values()])


def _rows_of_jacobian(
    layers: Layers, outputs: Float[Tensor, "n"], rows: Float[Tensor, "rows n"]
) -> Float[Tensor, "rows P"]:
    """Each row times the Jacobian of `outputs`: one backward pass for many vectors."""
    batched = torch.autograd.grad(
        outputs, layer_parameters(layers), rows, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )
    matrices = [gradient_matrices(layers, gradients) for gradients in zip(*batched, strict=True)]
    return torch.stack([torch.cat([matrix.flatten() for matrix in row.values()]) for row in matrices])
