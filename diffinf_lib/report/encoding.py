"""Encoding: the images of a report as its network takes them, which are latents where it denoises what an autoencoder makes
of images. People are shown pixels all the same.

Attributed are the means of the latents, as in a run; nothing is drawn from their spread, and nothing mirrored.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.autoencoder import Autoencoder, read_autoencoder
from diffinf_lib.data import ImageSet
from diffinf_lib.data.mapped import kept_rows
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.identity import config_of
from diffinf_lib.errors import require
from diffinf_lib.loading import autoencoder_beside
from diffinf_lib.options import PositiveInt, checked
from diffinf_lib.report.result import Named
from diffinf_lib.report.sources import Source
from diffinf_lib.shapes import Images, ImageShape

GIVE_ONE = (
    "give the one that did: autoencoder=PATH (--autoencoder PATH), its folder, that of a pipeline with one, or a hub id"
)


def autoencoder_of(
    model: Denoiser, source: Source | None, asked: Source | None, device: str | None = None
) -> Autoencoder | None:
    """What encodes images for a network: the autoencoder that is asked for, else the one in its pipeline; None for pixels.

    Args:
        source: folder or hub id of the model; None where it was given as it is.

    Raises:
        ArtifactError: the autoencoder is not there, or cannot be read.
        ConfigurationError: it is of another kind than `AutoencoderKL`, or its latents have other channels than the network
            takes.
    """
    if asked is None:
        if model.encoder is None or source is None:  # a latent model without one is refused where its images are told
            return None
        asked = autoencoder_beside(source)
    found = read_autoencoder(asked, device)
    taken, made = config_of(model.network).get("in_channels"), found.network.config.latent_channels
    require(taken in (None, made), f"autoencoder={asked}: its latents have {made} channels, the network takes {taken}; give "
            "the autoencoder that the network was trained with")  # fmt: skip
    return found


def image_shape(model: Denoiser, image_size: int | None = None, autoencoder: Autoencoder | None = None) -> ImageShape:
    """(C, H, W) in pixels of the images that are read for a network, from its configuration and the autoencoder's.

    Raises:
        ConfigurationError: its configuration names no size, and none is given; or it takes latents, and no autoencoder is
            given.
    """
    checked("image_size", image_size, PositiveInt | None)
    require(autoencoder is not None or model.encoder is None, f"model: it denoises the latents that its {model.encoder} "
            f"makes of images; {GIVE_ONE}")  # fmt: skip
    config, smaller = config_of(model.network), 1 if autoencoder is None else autoencoder.downsampling
    side = _side(config, smaller) if image_size is None else image_size
    multiple = smaller * 2 ** (len(config.get("block_out_channels", (0,))) - 1)
    whose = "the network takes" if autoencoder is None else "the network and its autoencoder take"
    require(side % multiple == 0, f"image_size={side}: {whose} multiples of {multiple}")
    if autoencoder is not None:
        channels = autoencoder.network.config.in_channels
        require(channels in (1, 3), f"autoencoder: it encodes images of {channels} channels, and grey or RGB images are read "
                "here: score encoded images with di.fit_curvature and di.influence")  # fmt: skip
        return (channels, side, side)
    channels = config.get("in_channels", 3)
    require(channels in (1, 3), f"model: it takes {channels} channels, which an autoencoder may have made of images; "
            f"{GIVE_ONE}")  # fmt: skip
    return (channels, side, side)


def _side(config: Mapping[str, Any], smaller: int) -> int:
    """The side in pixels of the square images that a network was built for."""
    size = config.get("sample_size")
    require(
        size is not None, "image_size: the network's configuration names no sample_size; give one (--image-size 32)"
    )
    sides: tuple[int, ...] = (size, size) if isinstance(size, int) else tuple(size or ())
    require(sides[0] == sides[1], f"sample_size={size}: images are read as squares; give image_size (--image-size)")
    return int(sides[0]) * smaller


def encoded(
    named: Named, autoencoder: Autoencoder, folder: Path, identity: Any, *, batch_size: int, progress: bool
) -> Named:
    """Images with their latents, encoded by the first call into `folder` and then read.

    Args:
        identity: all that the latents depend on.
        batch_size: images a pass.
    """
    images, count = named.images, len(named)
    shape: tuple[int, ...] = (1, count, *autoencoder.latent_shape(images.shape))
    with tqdm(total=count, desc=f"encode {folder.name}", unit="image", disable=not progress) as bar:

        def rows(start: int, stop: int) -> Float[Tensor, "1 n C H W"]:
            if not bar.n:  # of a killed call some are there
                bar.initial = bar.n = start
            means = autoencoder.means(images.images[start:stop])
            bar.update(stop - start)
            return means[None]

        (means,) = kept_rows(folder, identity, shape, rows, name="latents", at_once=batch_size)
        bar.update(count - bar.n)
    return replace(named, latents=ImageSet(means, images.labels, images.ids, names=images.names))


def decoded(autoencoder: Autoencoder, latents: Images, *, batch_size: int) -> Float[Tensor, "N _C _H _W"]:
    """The pictures that latents stand for, on the CPU."""
    return torch.cat([autoencoder.decode(part) for part in latents.split(batch_size)])
