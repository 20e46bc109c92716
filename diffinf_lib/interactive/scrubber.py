"""Scrubber: pictures, or pieces of HTML, that follow a control."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.configuration import Process
from diffinf_lib.errors import require
from diffinf_lib.interactive.controls import Control, Slider, State, Switched, SwitchedText, by, texts_by
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import text
from diffinf_lib.interactive.packing import packed_codes, sheet, strip
from diffinf_lib.interactive.stills import pictures


@dataclass(frozen=True, eq=False)
class Scrubber(Figure):
    """One or several pictures, or HTML, for every state of some controls.

    Attributes:
        frames: images in [−1, 1], `by(images, control)` of `[options, C, H, W]`, or of `[options, n, C, H, W]` for n
            pictures side by side; or HTML, `texts_by(pieces, control)`, put into the page as it is: escape what is not yours.
        captions: a sentence for each state, `texts_by(sentences, control)`.
        names: of the pictures side by side.
        size: of a picture on the page, in pixels.
    """

    frames: Switched | SwitchedText
    captions: SwitchedText
    names: Sequence[str] = ()
    size: int = 128

    kind: ClassVar[str] = "scrubber"

    def __post_init__(self) -> None:
        if isinstance(self.frames, SwitchedText):
            return
        axes = len(self.frames.shape)
        require(axes in (3, 4), f"frames of shape {self.frames.shape} a state: give [C, H, W] or [n, C, H, W]")
        count = self.frames.shape[0] if axes == 4 else 1
        require(len(self.names) in (0, count), f"names: {len(self.names)} for {count} pictures; give one for each")

    @classmethod
    def noising(
        cls, image: Tensor, noise: Tensor, *, timesteps: Sequence[int], process: Process = Process(), **options: Any
    ) -> "Scrubber":
        """One image `[C, H, W]` on its way into noise `[C, H, W]`, a frame a timestep.

        Args:
            timesteps: ascending.
            options: of any figure: `caption`, `presets`, `start`.
        """
        require(len(timesteps) > 0, "timesteps: give at least one")
        steps, shape = torch.tensor(list(timesteps)), (len(timesteps), *image.shape)
        states = process.noisy(image.expand(shape), steps, noise.expand(shape))
        control = Slider("Timestep", timesteps)
        kept = process.alphas_cumprod[steps].tolist()
        captions = [
            f"t = {t}: √ᾱ = {text(k**0.5, '.2f')} of the image, √(1−ᾱ) = {text((1 - k) ** 0.5, '.2f')} of noise."
            for t, k in zip(timesteps, kept, strict=True)
        ]
        options = {"alternative": "The image with noise"} | options
        return cls(by(states, control), texts_by(captions, control), **options)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """Those of the frames and of the captions."""
        return (*self.frames.controls, *self.captions.controls)

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or "A picture"

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """The different images `[m, C, H, W]`, and which of them each place of each state shows."""
        assert isinstance(self.frames, Switched)
        *_, channels, height, width = self.frames.shape
        flat = np.round((self.frames.values.reshape(-1, channels * height * width).clip(-1, 1) + 1) * 127.5)
        unique, places = np.unique(flat, axis=0, return_inverse=True)
        images = unique.reshape(-1, channels, height, width) / 127.5 - 1
        return images, places.reshape(*self.frames.values.shape[: len(self.frames.controls)], -1)

    def tell(self, state: State) -> str:
        """The caption of the state."""
        return str(self.captions.at(state))

    def payload(self) -> dict[str, Any]:
        """A sheet of images, or the HTML of every state."""
        found: dict[str, Any] = {"told": self.captions.payload(), "html": None}
        if isinstance(self.frames, SwitchedText):
            return found | {"html": self.frames.payload()}
        images, places = self._images
        return found | {
            "sheet": sheet(torch.from_numpy(images)),
            "places": packed_codes(places, [control.name for control in self.frames.controls]),
            "names": list(self.names) or [""] * places.shape[-1],
            "size": self.size,
        }

    def still(self, state: State) -> str:
        """The pictures of one state."""
        if isinstance(self.frames, SwitchedText):
            return str(self.frames.at(state))
        images = self.frames.at(state).reshape(-1, *self.frames.shape[-3:])
        row = pictures(strip(torch.from_numpy(images), self.size), self.own_alternative, self.size)
        return row + (f"<p>{html.escape(' · '.join(self.names))}</p>" if self.names else "")
