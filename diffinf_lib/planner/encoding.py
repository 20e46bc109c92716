"""Encoding: what it costs to turn images into latents and back, counted on the meta device as the passes of a network are."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from diffinf_lib.autoencoder import Autoencoder, configuration_at_hand
from diffinf_lib.models import count_parameters
from diffinf_lib.planner.network import Pass, flops_of, peak_bytes_of
from diffinf_lib.planner.rates import MOST_FLOPS, seconds_of
from diffinf_lib.presets import Preset
from diffinf_lib.shapes import ImageBatch, ImageShape

STABLE_DIFFUSION: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
"""The autoencoder of Stable Diffusion (Rombach et al. 2022), by which is planned where the one that is named is not at hand."""


class AutoencoderCount:
    """FLOPs an image and bytes a batch of an autoencoder's passes.

    Args:
        config: of an `AutoencoderKL`, as diffusers keeps it.
        image: (C, H, W) of one image in pixels.
    """

    def __init__(self, config: Mapping[str, Any], image: ImageShape):
        import diffusers

        with torch.device("meta"):
            self.network = diffusers.AutoencoderKL.from_config(config).eval()
        self.image = image
        self.parameters = count_parameters(self.network)

    @staticmethod
    def of_preset(preset: Preset) -> "AutoencoderCount":
        """That of a preset whose network denoises latents; nothing is downloaded to count it."""
        assert preset.dataset.autoencoder is not None
        config = configuration_at_hand(preset.dataset.autoencoder) or STABLE_DIFFUSION
        channels, halvings = config.get("in_channels", 3), len(config["block_out_channels"]) - 1
        side = preset.dataset.image_size or preset.unet.sample_size * 2**halvings
        return AutoencoderCount(config, (channels, side, side))

    @cached_property
    def latent(self) -> ImageShape:
        """(C, H, W) of the latent of one image."""
        _, channels, height, width = self.encode_pass(1).shape
        return (channels, height, width)

    @torch.no_grad()
    def encode_pass(self, images: int) -> ImageBatch:
        """The means of so many images' latents."""
        means: ImageBatch = self.network.encode(torch.empty(images, *self.image, device="meta")).latent_dist.mean
        return means

    @torch.no_grad()
    def decode_pass(self, images: int) -> ImageBatch:
        """The pictures that so many latents stand for."""
        pictures: ImageBatch = self.network.decode(torch.empty(images, *self.latent, device="meta")).sample
        return pictures

    def peak_bytes(self, run: Pass, images: int) -> int:
        """The most bytes alive at once in a pass over so many images, above the weights."""
        return peak_bytes_of(run, images, self.network)

    @cached_property
    def encoding(self) -> float:
        """FLOPs of encoding one image."""
        return flops_of(self.encode_pass, 1)

    @cached_property
    def decoding(self) -> float:
        """FLOPs of decoding one latent."""
        return flops_of(self.decode_pass, 1)


def encoding_rate(autoencoder: Autoencoder, image: ImageShape, batch: int) -> float:
    """FLOPs a second of encoding on this machine, timed on smaller pictures where those of the batch would take long."""
    channels, side, _ = image
    count = AutoencoderCount(autoencoder.network.config, image)
    while count.encoding > MOST_FLOPS and side % (2 * autoencoder.downsampling) == 0:
        side //= 2
        count = AutoencoderCount(autoencoder.network.config, (channels, side, side))
    pictures = torch.zeros(max(1, min(batch, int(MOST_FLOPS / count.encoding))), *count.image)
    return len(pictures) * count.encoding / seconds_of(lambda: autoencoder.means(pictures))
