"""Autoencoder: images to latents and back, by an `AutoencoderKL` of diffusers (Rombach et al. 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import json_digest, plain, read_json, tensor_digest
from diffinf_lib.devices import usable_device
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.hub import kept_repository, repository
from diffinf_lib.loading import AUTOENCODER_CLASS, AUTOENCODERS, WEIGHTS, chosen_weights, kind_of_module, read_module
from diffinf_lib.model_sources import local_folder
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch, ImageShape

PLACES = ("", *(f"{name}/" for name in AUTOENCODERS))
"""Where its configuration may lie: the folder itself, or a part of a pipeline."""
CERTAIN = [f"{place}config.json" for place in PLACES]
STEM = WEIGHTS.removesuffix(".safetensors")


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """An autoencoder in eval mode. Latents are in the units that a network denoises: shifted and scaled as its configuration
    says."""

    network: Any

    @property
    def digest(self) -> str:
        """SHA-256 of configuration and weights, wherever they lie and whichever version wrote them."""
        weights = self.network.state_dict()
        config = {name: value for name, value in self.network.config.items() if not name.startswith("_")}
        return json_digest([plain(config), sorted(weights), tensor_digest(*weights.values())])

    @own_settings
    @torch.no_grad()
    def moments(self, images: ImageBatch) -> Float[Tensor, "4 B _C _H _W"]:
        """Means and log-variances of the images' latents, then those of the mirrored images', on the CPU."""
        found = []
        for pixels in (images, images.flip(-1)):
            said = self._said(pixels)
            found += [self._in_units(said.mean), said.logvar + 2 * math.log(self._scale)]
        return torch.stack(found).cpu()

    @own_settings
    @torch.no_grad()
    def means(self, images: ImageBatch) -> Float[Tensor, "B _C _H _W"]:
        """Means of the images' latents, on the CPU: the first of the `moments`, at half their price."""
        return self._in_units(self._said(images).mean).cpu()

    @own_settings
    @torch.no_grad()
    def decode(self, latents: ImageBatch) -> Float[Tensor, "B _C _H _W"]:
        """The images that latents stand for, within [−1, 1], on the CPU."""
        plain_latents = latents.to(self.network.device, torch.float32) / self._scale + self._shift
        pictures: Tensor = self.network.decode(plain_latents).sample
        return pictures.clamp(-1, 1).cpu()

    def latent_shape(self, image: ImageShape) -> ImageShape:
        """(C, H, W) of the latent of an image of this shape.

        Raises:
            ArtifactError: the encoder takes other images.
        """
        channels, height, width = image
        config, smaller = self.network.config, self.downsampling
        require(channels == config.in_channels, f"autoencoder: it encodes images of {config.in_channels} channels, these have "
                f"{channels}; give another", ArtifactError)  # fmt: skip
        require(height % smaller == width % smaller == 0, f"autoencoder: it takes sides that are multiples of {smaller}, the "
                f"images have {height}×{width}; give dataset.image_size", ArtifactError)  # fmt: skip
        return config.latent_channels, height // smaller, width // smaller

    @property
    def downsampling(self) -> int:
        """How many times smaller than an image's its latent's sides are."""
        return 2 ** (len(self.network.config.block_out_channels) - 1)

    def _said(self, images: ImageBatch) -> Any:
        """The normal distribution of each image's latent, in the autoencoder's own units."""
        return self.network.encode(images.to(self.network.device)).latent_dist

    def _in_units(self, means: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return (means - self._shift) * self._scale

    @property
    def _scale(self) -> float:
        return float(self.network.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(self.network.config.get("shift_factor") or 0.0)


@own_settings
def read_autoencoder(source: Path | str, device: str | None = None) -> Autoencoder:
    """Read an autoencoder from its folder, a pipeline's, or a hub id of either; float32.

    Args:
        device: default a GPU if there is one.

    Raises:
        ArtifactError: there is none, it is of another kind, its weights are damaged or stored as pickle.
    """
    import diffusers

    folder = local_folder(source, "autoencoder")
    if folder is None:
        folder = repository(str(source), _needed, CERTAIN, what="autoencoder")
    network = read_module(diffusers.AutoencoderKL, _place(folder, source), torch.float32)
    return Autoencoder(network.requires_grad_(False).to(usable_device(device)))


def configuration_at_hand(source: Path | str) -> dict[str, Any] | None:
    """The configuration of an autoencoder as diffusers keeps it; None of a hub's that was not downloaded yet.

    Raises:
        ArtifactError: there is no such folder, or no such autoencoder in it.
    """
    folder = local_folder(source, "autoencoder") or kept_repository(str(source), CERTAIN)
    return None if folder is None else dict(read_json(_place(folder, source) / "config.json"))


def _place(folder: Path, source: Path | str) -> Path:
    """Where in a folder the autoencoder is."""
    kinds = {place: kind for place in PLACES if (kind := kind_of_module(folder / place))}
    found = [folder / place for place, kind in kinds.items() if kind == AUTOENCODER_CLASS]
    require(bool(found or kinds), f"autoencoder={source}: no config.json of an {AUTOENCODER_CLASS} there or in "
            f"{' or '.join(AUTOENCODERS)}/; give the folder that its save_pretrained wrote, or that of a pipeline with one",
            ArtifactError)  # fmt: skip
    require(bool(found), f"autoencoder={source}: it is a {next(reversed(kinds.values()))}, and only an "
            f"{AUTOENCODER_CLASS} is read; give one, or score encoded images with di.fit_curvature and di.influence",
            ArtifactError)  # fmt: skip
    return found[0]


@lru_cache(maxsize=1)
@own_settings
def load_autoencoder(source: Path | str, device: str | None = None) -> Autoencoder:
    """As `read_autoencoder`; the last one read is kept, for those who ask again and again."""
    return read_autoencoder(source, device)


def _needed(names: Sequence[str]) -> list[str]:
    """Of all files of a repository those of its autoencoder."""
    places = [place for place in (*PLACES[1:], "") if f"{place}config.json" in names]
    inside = {place: [name.removeprefix(place) for name in names if name.startswith(place)] for place in places}
    weighted = {place: found for place, found in inside.items() if any(name.startswith(STEM) for name in found)}
    weights = [place + name for place, found in weighted.items() for name in chosen_weights(found, place or ".")[1]]
    return [*(f"{place}config.json" for place in places), *weights]
