"""Covariance: fast ways to the input factor of a convolution, Σ over draws of mean_p a_p a_pᵀ.

An input a_p of a k×k convolution is a patch of k² pixels, so the matrix of all patches holds every pixel k² times, and
forming the factor from it costs more than a training step. Two ways around it:

- *sampled positions*: a few random positions a draw give the same matrix in expectation. Draws outnumber the factor's
  dimensions a hundredfold, and patches of one image are much alike, so little is lost.
- *rows of patches* (3×3, stride 1, padding 1): block (i, j) of the factor relates image row h + i to image row h + j, so
  it depends on i and j almost only through j − i. Three products of row patches, one for each distance, give all nine
  blocks, less one border row where a tap leaves the image. A third of the products, a third of the copy, the same matrix.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from diffinf_lib.curvature.blocks import Block, output_size, position_count
from diffinf_lib.curvature.kfac import input_factor_sum, second_moment
from diffinf_lib.curvature.layers import LayerInput, padded_inputs
from diffinf_lib.shapes import PerDraw


def input_covariance_sum(
    block: Block,
    raw: LayerInput,
    *,
    places: Float[Tensor, "B n"] | None = None,
    draw_weights: PerDraw | None = None,
) -> Float[Tensor, "I I"]:
    """Σ over draws of weight · mean_p a_p a_pᵀ, by the cheapest way that fits the layer.

    Args:
        raw: what the layer was called with.
        places: relative positions in [0, 1) of the positions to average over; None takes all.
        draw_weights: of the draws; None for ones.
    """
    if block.part == "bias":
        total = (
            torch.tensor(float(len(raw)), dtype=torch.float64, device=raw.device)
            if draw_weights is None
            else draw_weights.sum()
        )
        return total.view(1, 1)
    sampled = places is not None and position_count(block.layer, raw) > places.shape[1]
    if draw_weights is not None or not isinstance(block.layer, nn.Conv2d):
        inputs = sampled_inputs(block, raw, places) if sampled and places is not None else block.inputs(raw)
        return input_factor_sum(inputs if draw_weights is None else inputs * draw_weights.sqrt().view(-1, 1, 1))
    if sampled and places is not None:
        return input_factor_sum(sampled_inputs(block, raw, places))
    if rows_of_patches_fit(block.layer):
        return row_patch_covariance(block, raw)
    return input_factor_sum(block.inputs(raw))


def sampled_inputs(block: Block, raw: LayerInput, places: Float[Tensor, "B n"]) -> Float[Tensor, "B n I"]:
    """The block's inputs at some positions of each draw.

    Args:
        places: relative positions in [0, 1); the position is ⌊place · L⌋, in the order of the outputs, row by row.
    """
    index = (places * position_count(block.layer, raw)).long()
    if not isinstance(block.layer, nn.Conv2d):
        return block.inputs(raw).gather(1, index.unsqueeze(-1).expand(-1, -1, block.shape[1]))
    patches = _patches_at(block, block.layer, raw, index)
    return F.pad(patches, (0, 1), value=1.0) if block.has_bias else patches


def _patches_at(
    block: Block, layer: nn.Conv2d, raw: Float[Tensor, "B C H W"], index: Int[Tensor, "B n"]
) -> Float[Tensor, "B n I"]:
    images = padded_inputs(layer, raw.chunk(layer.groups, dim=1)[block.group])
    width = output_size(layer, raw)[1]
    corners = [index // width * layer.stride[0], index % width * layer.stride[1]]
    taps = [
        torch.arange(size, device=raw.device) * step
        for size, step in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    rows = (corners[0].unsqueeze(-1) + taps[0]).unsqueeze(-1)  # [B, n, k, 1]
    columns = (corners[1].unsqueeze(-1) + taps[1]).unsqueeze(-2)  # [B, n, 1, k]
    draw = torch.arange(len(raw), device=raw.device).view(-1, 1, 1, 1)
    patches = images[draw, :, rows, columns]  # [B, n, k, k, channels]
    return patches.permute(0, 1, 4, 2, 3).flatten(2)


def rows_of_patches_fit(layer: nn.Conv2d) -> bool:
    """Whether `row_patch_covariance` is right for a layer, and worth it: it pays from 8 channels on (`benchmarks`)."""
    plain = (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
    shape = layer.kernel_size == (3, 3) and list(layer._reversed_padding_repeated_twice) == [1, 1, 1, 1]
    return plain and shape and layer.in_channels >= 8


def row_patch_covariance(block: Block, raw: Float[Tensor, "B C H W"]) -> Float[Tensor, "I I"]:
    """Σ over draws of mean_p a_p a_pᵀ of a 3×3 convolution with stride 1 and padding 1, from rows of patches."""
    channels, positions = raw.shape[1], raw.shape[2] * raw.shape[3]
    padded = F.pad(raw, (1, 1)).permute(2, 0, 3, 1)  # [H, B, W + 2, C]: consecutive image rows are one piece of memory
    taps = [padded[:, :, j : j + raw.shape[3]] for j in range(3)]
    rows = torch.cat(taps, dim=-1).flatten(1, 2)  # [H, B·W, 3C]: patches one pixel high
    blocks = _row_blocks(rows)
    size = 3 * channels
    order = torch.arange(3 * size, device=raw.device).view(3, 3, channels).permute(2, 0, 1).flatten()
    covariance = torch.cat([torch.cat(line, dim=1) for line in blocks])[order][:, order]
    if not block.has_bias:
        return covariance / positions
    sums = torch.cat([rows[:-1].sum((0, 1)), rows.sum((0, 1)), rows[1:].sum((0, 1))])[order]
    corner = sums.new_full((1,), float(len(raw) * positions))
    border = torch.cat([sums, corner])
    return torch.cat([torch.cat([covariance, sums.unsqueeze(0)]), border.unsqueeze(1)], dim=1) / positions


def _row_blocks(rows: Float[Tensor, "H n c"]) -> list[list[Float[Tensor, "c c"]]]:
    """The nine blocks Σ_h rows[h + i − 1]ᵀ rows[h + j − 1], rows outside the image being zero."""

    def apart(distance: int) -> Float[Tensor, "c c"]:
        height = len(rows) - distance
        if height <= 0:
            return rows.new_zeros(rows.shape[2], rows.shape[2])
        return rows[:height].flatten(0, 1).T @ rows[distance:].flatten(0, 1)

    same, near, far = apart(0), apart(1), apart(2)
    above, below = same - second_moment(rows[-1]), same - second_moment(rows[0])
    return [[above, near, far], [near.T, same, near], [far.T, near.T, below]]
