"""Shared cases: tiny float64 models for which brute force is affordable."""

from dataclasses import replace

import torch
from torch import nn

from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Process, UNetConfig
from diffinf_lib.curvature.exact import dense_ggn, layer_slices
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, iterate_draws
from diffinf_lib.evaluation import GroundTruth
from diffinf_lib.gradients import GradientSet
from diffinf_lib.gradients.sets import from_row
from diffinf_lib.models import build_model


def assert_equal_but_for_rounding(actual, expected, within=1e-5):
    """Two routes to the same numbers: they may differ by a small part of the largest.

    Bits are compared only where the same operations run again; other routes take other kernels on other processors.
    """
    expected = torch.as_tensor(expected)
    actual = torch.as_tensor(actual).to(expected.dtype)
    torch.testing.assert_close(actual, expected, rtol=within, atol=within * float(expected.abs().max()))


class LinearDenoiser(nn.Module):
    """ε_θ = W x_t + b on flattened images: one layer, one position."""

    def __init__(self, side: int = 2, hidden: tuple[int, ...] = ()):
        super().__init__()
        widths = [side * side, *hidden, side * side]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, noisy, timesteps):
        flat = noisy.flatten(1)
        for layer in self.layers:
            flat = layer(flat)
        return flat.view_as(noisy)


class ConvDenoiser(nn.Module):
    """Two convolutions with a smooth non-linearity, odd strides and padding on the way."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(3, 2, 3, padding=2, dilation=2, bias=False)
        self.up = nn.ConvTranspose2d(2, 1, 2, stride=2, bias=False).requires_grad_(False)

    def forward(self, noisy, timesteps):
        return self.up(self.middle(torch.tanh(self.down(noisy))))


def linear_denoiser():
    torch.manual_seed(0)
    return Denoiser(LinearDenoiser(), Process()).double()


def deep_linear_denoiser():
    torch.manual_seed(0)
    return Denoiser(LinearDenoiser(hidden=(3, 5)), Process()).double()


def conv_denoiser():
    torch.manual_seed(0)
    return Denoiser(ConvDenoiser(), Process()).double()


def tiny_unet(attention: bool = False):
    config = UNetConfig(
        sample_size=4, block_out_channels=(2, 4), norm_num_groups=1, add_attention=attention, attention_head_dim=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D" if attention else "DownBlock2D"),
        up_block_types=("AttnUpBlock2D" if attention else "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return build_model(config, seed=0).double()


def images(count: int, side: int, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 1, side, side, generator=generator) * 2 - 1
    return ImageSet(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count) + 10 * seed)


def draw_batch(
    data: ImageSet,
    draws: DrawConfig,
    *,
    purpose: str,
    seed: int = 0,
    dtype=torch.float64,
    process: Process | None = None,
) -> DrawBatch:
    """All draws of all images in one batch."""
    options = {"seed": seed, "purpose": purpose, "batch_size": len(data) * draws.count, "process": process or Process()}
    return next(iterate_draws(data.images.to(dtype), data.ids, draws, **options))


def by_definition(draws: DrawConfig, **options) -> CurvatureConfig:
    """The curvature as it is defined: all draws in both passes, all positions, a square for each draw, exact labels."""
    options = {"exact_labels": True} | options
    return CurvatureConfig(draws=draws, factor_draws=draws, input_positions=None, correction="per_draw", **options)


def same_draws_for_both_passes(monkeypatch):
    """Fit both passes on the draws of purpose `x`, so that they can be compared with a dense matrix over these."""
    from diffinf_lib.curvature import fit

    original = fit._Fit.draws
    monkeypatch.setattr(fit._Fit, "draws", lambda self, draws, pass_name, group: original(self, draws, "x", group))


def random_truth(run, queries, seed):
    """A ground truth of eight halves and two seeds with made-up measurements, for a run of the smoke preset."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([torch.randperm(24, generator=generator) < 12 for _ in range(8)])
    measurements = torch.rand(8, 2, len(queries), generator=generator, dtype=torch.float64)
    return GroundTruth(masks, measurements, run.data.train.ids, queries.ids, queries.images)


def in_shards(gradients, size):
    """A set of gradients, cut anew."""
    whole = gradients.whole()
    rows = [slice(start, min(start + size, gradients.count)) for start in range(0, gradients.count, size)]
    parts = [(where, {n: g[where] for n, g in whole.items()}) for where in rows]
    return replace(gradients, packed=lambda first: from_row(parts, first))


def out_of_eigenbasis(curvature, gradients):
    """The same gradients in the basis of the weights."""
    rotated = gradients.whole()
    return GradientSet.of({name: layer.from_eigenbasis(rotated[name]) for name, layer in curvature.layers.items()})


def dense_blocks(model, batch):
    """The diagonal block of `dense_ggn` of each layer, `[d_out · d_in, d_out · d_in]`."""
    dense = dense_ggn(model, batch)
    return {name: dense[where, where] for name, where in layer_slices(model).items()}
