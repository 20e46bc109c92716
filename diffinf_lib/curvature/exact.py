"""Exact: dense curvature in small models, slow and obviously right; what every approximation is tested against."""

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.curvature.labels import exact_vectors
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, DrawBatch, Network, NoiseSchedule, noisy_images, predict_noise


def flat_gradients(model: Network, prediction: Tensor, vector: Tensor) -> dict[str, Tensor]:
    """Jᵀv as one flattened `[d_out · d_in]` vector a layer."""
    layers = curvature_layers(model)
    gradients = torch.autograd.grad(prediction, layer_parameters(layers), vector, retain_graph=True)
    return {name: matrix.flatten() for name, matrix in gradient_matrices(layers, gradients).items()}


def dense_ggn(model: Network, batch: DrawBatch, schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> Float[Tensor, "P P"]:
    """GGN^model = (2/C) E[JᵀJ] over the given draws, dense, over the parameters of all layers.

    One backward pass for each draw and each output dimension: for models of a few hundred parameters.

    Returns:
        `[P, P]`; a layer's parameters stand in the order of its flattened `[d_out, d_in]` gradient, layers in the order
        of `curvature_layers`.
    """
    total: Tensor | None = None
    for row in range(len(batch.images)):
        one = slice(row, row + 1)
        noisy = noisy_images(batch.images[one], batch.timesteps[one], batch.noise[one], schedule)
        prediction = predict_noise(model, noisy, batch.timesteps[one])
        for vector in exact_vectors(prediction):
            flat = torch.cat(list(flat_gradients(model, prediction, vector).values()))
            outer = torch.outer(flat, flat)
            total = outer if total is None else total + outer
    assert total is not None
    return total / len(batch.images)


def layer_slices(model: Network) -> dict[str, slice]:
    """Where each layer's parameters stand in the dense matrices."""
    slices, start = {}, 0
    for name, layer in curvature_layers(model).items():
        size = sum(tensor.numel() for tensor in (layer.weight, layer.bias) if isinstance(tensor, Tensor))
        slices[name] = slice(start, start + size)
        start += size
    return slices


def dense_blocks(model: Network, batch: DrawBatch, schedule: NoiseSchedule = DEFAULT_SCHEDULE) -> dict[str, Tensor]:
    """The diagonal block of `dense_ggn` of each layer, `[d_out · d_in, d_out · d_in]`."""
    dense = dense_ggn(model, batch, schedule)
    return {name: dense[where, where] for name, where in layer_slices(model).items()}
