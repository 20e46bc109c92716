"""Latents: what an autoencoder makes of images, for models that denoise latents (Rombach et al. 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffinf_lib.data.images import ImageSet, Selection
from diffinf_lib.data.mapped import rows_at
from diffinf_lib.errors import DataError, require
from diffinf_lib.shapes import Images


@dataclass(frozen=True, eq=False)
class Latents(ImageSet):
    """Images by what an autoencoder's encoder says of them: a normal distribution each.

    `images` are its means, which are measured and attributed. Training draws from it anew in every step, and mirrors an image
    before it is encoded: the latent of a mirrored image is not the mirrored latent.

    Attributes:
        log_variances: of each number of a latent, `[N, C, H, W]`.
        mirrored, mirrored_log_variances: the same of the mirrored images.
    """

    log_variances: Images
    mirrored: Images
    mirrored_log_variances: Images

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in (self.log_variances, self.mirrored, self.mirrored_log_variances):
            require(part.shape == self.images.shape, f"latents of shapes {tuple(self.images.shape)} and {tuple(part.shape)}: "
                    "give means and log-variances of the same images", DataError)  # fmt: skip

    def subset(self, index: Selection) -> "Latents":
        """The latents of the images at these positions, or where a mask is True."""
        means, *others = (rows_at(part, index) for part in self.parts)
        return Latents(means, self.labels[index], self.ids[index], *others, names=self.names_at(index))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Means and log-variances, then those of the mirrored images."""
        return (self.images, self.log_variances, self.mirrored, self.mirrored_log_variances)

    def for_training(self, index: Tensor, mirror: Tensor | None, generator: torch.Generator) -> Tensor:
        """One draw of each of some images' distributions."""
        means, log_variances, *mirrored = (part[index] for part in self.parts)
        if mirror is not None:
            here = mirror.view(-1, 1, 1, 1)
            means, log_variances = torch.where(here, mirrored[0], means), torch.where(here, mirrored[1], log_variances)
        noise = torch.randn(means.shape, generator=generator)
        return means + (0.5 * log_variances).exp() * noise
