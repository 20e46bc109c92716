"""Compute: the gradient of an expectation at each image, in the weights or in the eigenbasis of a curvature.

The draws of one example are one batch, and autograd's own weight gradients are the sum over it: nothing per draw is kept.
Where an example has few draws, several examples share a batch, and each layer's per-example gradients are one batched
product of its inputs and output gradients.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Expectation, Precision, Process
from diffinf_lib.curvature import Block, Curvature, ForwardPass, curvature_layers, split_into_blocks
from diffinf_lib.curvature.blocks import layers_of
from diffinf_lib.curvature.layers import Covers, Layers, differentiable, gradient_matrices, layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_of_prediction, objective_values
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.finite import check_draws_finite, first_not_finite
from diffinf_lib.gradients.sets import LayerGradients
from diffinf_lib.precision import matrix_precision
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch

GRADIENT_BATCH = 64
"""Draws a pass: the paper's networks take 4 to 5 GB for so many."""
GROUPED_UP_TO = 8
"""Examples share batches up to so many draws each; beyond, one batch an example is faster (`benchmarks.gradients`)."""


@own_settings
def example_gradient(
    model: Denoiser,
    image: ImageSet,
    expectation: Expectation,
    *,
    covers: Covers = None,
    batch_size: int = GRADIENT_BATCH,
    precision: Precision = "float32",
) -> dict[str, Float[Tensor, "_O _I"]]:
    """∇ℓ(θ, x): the gradient of an expectation at one image, one matrix a layer, the bias its last column.

    Args:
        image: one image and its id.
        covers: which parameters; by default the trainable ones, see `coverage`.
        batch_size: draws a pass; the result depends on it by rounding only.
        precision: of the matrix products, see `diffinf_lib.precision`.

    Raises:
        ConfigurationError: the network gives something that is not finite; the message names the image and the timestep.
    """
    return _mean_gradient(model, curvature_layers(model, covers), image, expectation, batch_size, precision)


def _mean_gradient(
    model: Denoiser, layers: Layers, image: ImageSet, expectation: Expectation, batch_size: int, precision: Precision
) -> dict[str, Float[Tensor, "_O _I"]]:
    parameters = layer_parameters(layers)
    total: list[Tensor] | None = None
    for batch in expectation.batches(model, image, batch_size):
        with differentiable(model, layers), matrix_precision(precision, batch.images.device):
            losses = objective_values(model, batch, expectation.objective) * batch.draw_weights
            check_draws_finite(losses, model, batch, image.ids)
            gradients = torch.autograd.grad(losses.sum() / expectation.draws.count, parameters, materialize_grads=True)
        total = list(gradients) if total is None else [a.add_(b) for a, b in zip(total, gradients, strict=True)]
    if total is None:
        total = [torch.zeros_like(parameter) for parameter in parameters]
    return gradient_matrices(layers, tuple(total))


@own_settings
def grouped_gradients(
    model: Denoiser,
    images: ImageSet,
    expectation: Expectation,
    blocks: Mapping[str, Block],
    *,
    batch_size: int = GRADIENT_BATCH,
    precision: Precision = "float32",
) -> LayerGradients:
    """The same for several examples that share batches, `[n, d_out, d_in]` a block; worth it where draws are few."""
    layers = layers_of(blocks)
    like = layer_parameters(layers)[0]
    totals = {name: like.new_zeros(len(images), *block.shape) for name, block in blocks.items()}
    examples = max(1, batch_size // expectation.draws.count)
    for batch in expectation.batches(model, images, examples * expectation.draws.count):
        with differentiable(model, layers), matrix_precision(precision, like.device):
            forward = ForwardPass(model, layers, batch)
            check_draws_finite(forward.prediction, model, batch, images.ids)
            pulled = forward.pull_back(_output_gradient(forward.prediction, batch, expectation, model.process))
            example = batch.example.to(like.device)
            for name, block in blocks.items():
                gradients = block.output_gradients(pulled[block.layer_name]).transpose(1, 2)
                products = gradients @ block.inputs(forward.raw_input(block.layer_name))
                totals[name].index_add_(0, example, products.to(like.dtype))
    return totals


def _output_gradient(
    prediction: ImageBatch, batch: DrawBatch, expectation: Expectation, process: Process
) -> ImageBatch:
    """The gradient in the network's output of each draw's share of its example's objective."""
    output = prediction.detach().requires_grad_()
    shares = (
        objective_of_prediction(output, batch, expectation.objective, process)
        * batch.draw_weights
        / expectation.draws.count
    )
    return torch.autograd.grad(shares.sum(), output)[0]


@own_settings
def gradients_in_eigenbasis(
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    expectation: Expectation,
    *,
    batch_size: int = GRADIENT_BATCH,
    precision: Precision = "float32",
) -> LayerGradients:
    """Q_Bᵀ ∇ℓ(θ, x_n) Q_A of every image, `[n, d_out, d_in]` a block.

    Raises:
        ConfigurationError: a gradient is not finite; the message names the image, and the timestep or the block.
    """
    blocks = curvature.blocks(model)
    compute = grouped_gradients if expectation.draws.count <= GROUPED_UP_TO else separate_gradients
    parts = compute(model, images, expectation, blocks, batch_size=batch_size, precision=precision)
    for name, matrices in parts.items():
        place = first_not_finite(matrices)
        if place is not None:
            example = int(images.ids[place[0]])
            raise ConfigurationError(f"layer {name}: the gradient of image {example} is not finite though the network's output "
                                     "is; check the network's derivatives there")  # fmt: skip
    # what is turned is dropped: there is never a second copy of all of them
    return {name: layer.to_eigenbasis(parts.pop(name)) for name, layer in curvature.layers.items()}


def separate_gradients(
    model: Denoiser,
    images: ImageSet,
    expectation: Expectation,
    blocks: Mapping[str, Block],
    *,
    batch_size: int = GRADIENT_BATCH,
    precision: Precision = "float32",
) -> LayerGradients:
    """The gradients of several images, a batch or more for each, `[n, d_out, d_in]` a block."""
    layers = layers_of(blocks)
    like = layer_parameters(layers)[0]
    found = {name: like.new_empty(len(images), *block.shape) for name, block in blocks.items()}
    for i in range(len(images)):
        one = _mean_gradient(model, layers, images.subset(slice(i, i + 1)), expectation, batch_size, precision)
        for name, part in split_into_blocks(one, dict(blocks)).items():
            found[name][i] = part
    return found
