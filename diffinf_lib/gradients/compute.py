"""Compute: the gradient of each example's loss, or of another objective, averaged over its draws.

The draws of one example are one batch, and autograd's own weight gradients are the sum over it: nothing per draw is kept.
Where an example has few draws, several examples share a batch, and each layer's per-example gradients are one batched
product of its inputs and output gradients.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import DrawConfig, Objective, Precision, Process
from diffinf_lib.curvature import Block, Curvature, ForwardPass, curvature_layers, split_into_blocks
from diffinf_lib.curvature.blocks import layers_of
from diffinf_lib.curvature.layers import Covers, Layers, differentiable, gradient_matrices, layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_batches, objective_of_prediction, objective_values
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.finite import check_draws_finite, first_not_finite
from diffinf_lib.options import Options
from diffinf_lib.precision import matrix_precision
from diffinf_lib.settings import own_settings

LayerGradients = dict[str, Float[Tensor, "n O I"]]

TRAIN_STAGE = "train-gradients"
"""The stage under which the draws of training gradients are keyed."""

GROUPED_UP_TO = 8
"""Examples share batches up to so many draws each; beyond, one batch an example is faster (`benchmarks.gradients`)."""


@dataclass(frozen=True)
class GradientConfig(Options):
    """Which draws a gradient is averaged over.

    Attributes:
        draws: the draws of each example.
        stage: what the draws are keyed by; a query takes its measurement's stage, and with it the measurement's draws.
        seed: of the draws.
        timesteps: take only the draws with low ≤ t < high, still dividing by all: gradients of a partition of 0..T add up
            to the whole. None takes all.
        precision: of the matrix products, see `diffinf_lib.configuration.precision`.
        objective: what is differentiated.
    """

    draws: DrawConfig = DrawConfig(250)
    stage: str = TRAIN_STAGE
    seed: int = 0
    timesteps: tuple[int, int] | None = None
    precision: Precision = "float32"
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        super().__post_init__()
        low_high = self.timesteps
        require(low_high is None or 0 <= low_high[0] < low_high[1], f"timesteps={low_high}: give (low, high) with "
                "0 <= low < high")  # fmt: skip


def _batches(model: Denoiser, images: ImageSet, config: GradientConfig, batch_size: int) -> Iterator[DrawBatch]:
    """The draws that the gradients are averaged over; batches that hold none are left out."""
    batches = objective_batches(
        model, images, config.draws, config.objective, seed=config.seed, stage=config.stage, batch_size=batch_size,
    )  # fmt: skip
    for batch in batches:
        if config.timesteps is not None:
            low, high = config.timesteps
            kept = ((batch.timesteps >= low) & (batch.timesteps < high)).nonzero().squeeze(1)
            batch = batch.rows(kept)
        if len(batch.images):
            yield batch


@own_settings
def example_gradient(
    model: Denoiser,
    image: ImageSet,
    config: GradientConfig,
    *,
    covers: Covers = None,
    batch_size: int = 256,
) -> dict[str, Float[Tensor, "O I"]]:
    """∇ℓ(θ, x): the gradient of one example's loss averaged over its draws, one matrix a layer, the bias its last column.

    Args:
        image: one image and its id.
        covers: which parameters; by default the trainable ones, see `coverage`.
        batch_size: draws a pass; the result depends on it by rounding only.

    Raises:
        ConfigurationError: the network gives something that is not finite; the message names the image and the timestep.
    """
    return _mean_gradient(model, curvature_layers(model, covers), image, config, batch_size)


def _mean_gradient(
    model: Denoiser, layers: Layers, image: ImageSet, config: GradientConfig, batch_size: int
) -> dict[str, Float[Tensor, "O I"]]:
    parameters = layer_parameters(layers)
    total: list[Tensor] | None = None
    for batch in _batches(model, image, config, batch_size):
        with differentiable(model, layers), matrix_precision(config.precision, batch.images.device):
            losses = objective_values(model, batch, config.objective) * batch.weights
            check_draws_finite(losses, model, batch, image.ids)
            gradients = torch.autograd.grad(losses.sum() / config.draws.count, parameters, materialize_grads=True)
        total = list(gradients) if total is None else [a.add_(b) for a, b in zip(total, gradients, strict=True)]
    if total is None:
        total = [torch.zeros_like(parameter) for parameter in parameters]
    return gradient_matrices(layers, tuple(total))


@own_settings
def grouped_gradients(
    model: Denoiser,
    images: ImageSet,
    config: GradientConfig,
    blocks: Mapping[str, Block],
    *,
    batch_size: int = 256,
) -> LayerGradients:
    """The same for several examples that share batches, `[n, d_out, d_in]` a block; worth it where draws are few."""
    layers = layers_of(blocks)
    like = layer_parameters(layers)[0]
    totals = {name: like.new_zeros(len(images), *block.shape) for name, block in blocks.items()}
    examples = max(1, batch_size // config.draws.count)
    for batch in _batches(model, images, config, examples * config.draws.count):
        with differentiable(model, layers), matrix_precision(config.precision, like.device):
            forward = ForwardPass(model, layers, batch)
            check_draws_finite(forward.prediction, model, batch, images.ids)
            pulled = forward.pull_back(_output_gradient(forward.prediction, batch, config, model.process))
            example = batch.example.to(like.device)
            for name, block in blocks.items():
                gradients = block.output_gradients(pulled[block.layer_name]).transpose(1, 2)
                products = gradients @ block.inputs(forward.raw_input(block.layer_name))
                totals[name].index_add_(0, example, products.to(like.dtype))
    return totals


def _output_gradient(prediction: Tensor, batch: DrawBatch, config: GradientConfig, process: Process) -> Tensor:
    """The gradient in the network's output of each draw's share of its example's objective."""
    output = prediction.detach().requires_grad_()
    shares = objective_of_prediction(output, batch, config.objective, process) * batch.weights / config.draws.count
    return torch.autograd.grad(shares.sum(), output)[0]


@own_settings
def gradients_in_eigenbasis(
    model: Denoiser,
    curvature: Curvature,
    images: ImageSet,
    config: GradientConfig,
    *,
    batch_size: int = 256,
) -> LayerGradients:
    """Q_Bᵀ ∇ℓ(θ, x_n) Q_A of every image, `[n, d_out, d_in]` a block.

    Raises:
        ConfigurationError: a gradient is not finite; the message names the image, and the timestep or the block.
    """
    blocks = curvature.blocks(model)
    if config.draws.count <= GROUPED_UP_TO:
        parts = grouped_gradients(model, images, config, blocks, batch_size=batch_size)
    else:
        parts = separate_gradients(model, images, config, blocks, batch_size)
    for name, matrices in parts.items():
        place = first_not_finite(matrices)
        if place is not None:
            example = int(images.ids[place[0]])
            raise ConfigurationError(f"layer {name}: the gradient of image {example} is not finite though the network's output "
                                     "is; check the network's derivatives there")  # fmt: skip
    return {name: layer.to_eigenbasis(parts[name]) for name, layer in curvature.layers.items()}


def separate_gradients(
    model: Denoiser,
    images: ImageSet,
    config: GradientConfig,
    blocks: Mapping[str, Block],
    batch_size: int,
) -> LayerGradients:
    """The gradients of several examples, a batch or more for each, `[n, d_out, d_in]` a block."""
    layers = layers_of(blocks)
    rows = [
        _mean_gradient(model, layers, images.subset(slice(i, i + 1)), config, batch_size) for i in range(len(images))
    ]
    return split_into_blocks({name: torch.stack([row[name] for row in rows]) for name in rows[0]}, dict(blocks))
