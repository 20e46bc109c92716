"""Blocks: the pieces of a layer's gradient matrix that get a curvature of their own.

Curvature between blocks is set to zero. Mostly a block is a whole layer, its bias as the last column ("joint"). With
separate biases, weight and bias are two blocks; where only one of them is covered, it is the only one. A grouped
convolution has one block a group, because a group's outputs see only that group's inputs. A block is always a rectangle
of the layer's `[d_out, d_in]` gradient matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diffinf_lib.configuration import BiasRule
from diffinf_lib.curvature.layers import (
    Covers,
    Layer,
    LayerInput,
    Layers,
    curvature_layers,
    layer_inputs,
    layer_shape,
)
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.options import checked


@dataclass(frozen=True, eq=False)
class Block:
    """One block of one layer.

    Attributes:
        layer_name: the layer's name in the model.
        covered: the layer, with what of it is covered.
        group: which group of a grouped convolution.
        part: `joint` (weight and bias), `weight` or `bias`.
    """

    layer_name: str
    covered: Layer
    group: int = 0
    part: Literal["joint", "weight", "bias"] = "joint"

    @property
    def layer(self) -> nn.Module:
        """The layer itself."""
        return self.covered.module

    @property
    def groups(self) -> int:
        """Number of groups of the layer."""
        return self.layer.groups if isinstance(self.layer, nn.Conv2d) else 1

    @property
    def rows(self) -> slice:
        """The block's rows in the layer's gradient matrix, and its channels among the layer's outputs."""
        size = layer_shape(self.covered)[0] // self.groups
        return slice(self.group * size, (self.group + 1) * size)

    @property
    def columns(self) -> slice:
        """The block's columns in the layer's gradient matrix."""
        inputs = layer_shape(self.covered)[1]
        weights = inputs - (self.covered.bias is not None)
        return {"joint": slice(0, inputs), "weight": slice(0, weights), "bias": slice(weights, None)}[self.part]

    @property
    def has_bias(self) -> bool:
        """Whether the bias is one of the block's columns."""
        return self.part != "weight" and self.covered.bias is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the block."""
        outputs, inputs = layer_shape(self.covered)
        return outputs // self.groups, len(range(inputs)[self.columns])

    def of(self, matrix: Shaped[Tensor, "*n O I"]) -> Shaped[Tensor, "*n o i"]:
        """The block out of the layer's gradient matrix, a view."""
        return matrix[..., self.rows, self.columns]

    def inputs(self, raw: LayerInput) -> Float[Tensor, "B L i"]:
        """The block's inputs a at each position, from what the layer was called with."""
        if self.part == "bias":
            return layer_positions(self.layer, raw)
        return layer_inputs(self.covered, raw, self.group)[..., self.columns]

    def output_gradients(self, gradients: Float[Tensor, "B L O"]) -> Float[Tensor, "B L o"]:
        """The block's output gradients g out of the layer's."""
        return gradients[..., self.rows]


def layer_positions(layer: nn.Module, raw: LayerInput) -> Float[Tensor, "B L 1"]:
    """A constant 1 at each position: the input of a bias that is a block of its own."""
    return raw.new_ones(len(raw), position_count(layer, raw), 1)


def position_count(layer: nn.Module, raw: LayerInput) -> int:
    """Number of positions L that share a layer's weights, from what the layer was called with."""
    if not isinstance(layer, nn.Conv2d):
        return raw[0].numel() // raw.shape[-1]
    height, width = output_size(layer, raw)
    return height * width


def output_size(layer: nn.Conv2d, raw: Float[Tensor, "B channels H W"]) -> tuple[int, int]:
    """Height and width of a convolution's output."""
    padding = layer._reversed_padding_repeated_twice  # left, right, top, bottom
    height, width = raw.shape[-2] + padding[2] + padding[3], raw.shape[-1] + padding[0] + padding[1]
    sizes = [
        (size - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, dilation, stride in zip(
            (height, width), layer.kernel_size, layer.dilation, layer.stride, strict=True
        )
    ]
    return sizes[0], sizes[1]


def layer_blocks(layers: Layers, bias: BiasRule = "joint") -> dict[str, Block]:
    """The blocks of some layers by name: a layer's own name where it is one block.

    Groups are named `LAYER.groupG`, separate parts `….weight` and `….bias`.
    """
    checked("bias", bias, BiasRule)
    blocks = {}
    for name, layer in layers.items():
        groups = layer.module.groups if isinstance(layer.module, nn.Conv2d) else 1
        for group in range(groups):
            base = name if groups == 1 else f"{name}.group{group}"
            if bias == "joint":
                blocks[base] = Block(name, layer, group, "bias" if layer.weight is None else "joint")
                continue
            if layer.weight is not None:
                blocks[f"{base}.weight"] = Block(name, layer, group, "weight")
            if layer.bias is not None:
                blocks[f"{base}.bias"] = Block(name, layer, group, "bias")
    return blocks


def curvature_blocks(model: Denoiser, bias: BiasRule = "joint", covers: Covers = None) -> dict[str, Block]:
    """The blocks of a model by name (see `layer_blocks` and `coverage`)."""
    return layer_blocks(curvature_layers(model, covers), bias)


def layers_of(blocks: Mapping[str, Block]) -> dict[str, Layer]:
    """The layers that some blocks are pieces of, in order."""
    return {block.layer_name: block.covered for block in blocks.values()}


def split_into_blocks(
    matrices: dict[str, Shaped[Tensor, "*n _O _I"]], blocks: dict[str, Block]
) -> dict[str, Shaped[Tensor, "*n _o _i"]]:
    """Layers' gradient matrices `[..., O, I]` as blocks', views."""
    return {name: block.of(matrices[block.layer_name]) for name, block in blocks.items()}


def joined_from_blocks(
    parts: dict[str, Float[Tensor, "*n _o _i"]], blocks: dict[str, Block]
) -> dict[str, Float[Tensor, "*n _O _I"]]:
    """Blocks' matrices `[..., o, i]` put back into their layers'; the inverse of `split_into_blocks`."""
    matrices: dict[str, Tensor] = {}
    for name, block in blocks.items():
        part = parts[name]
        if block.layer_name not in matrices:
            matrices[block.layer_name] = torch.zeros(
                *part.shape[:-2], *layer_shape(block.covered), dtype=part.dtype, device=part.device
            )
        block.of(matrices[block.layer_name]).copy_(part)
    return matrices
