"""Reading: image files as one tensor in [−1, 1], and in plain sentences what was decided about them.

Images are RGB, or grey where all of them are, unless the number of channels is given. Black is −1 and white 1, whatever the
depth. Where a format states no range (integers of 32 bits, floats), the files together must show which is meant: their largest
value lies in the upper half of 0…1, 0…255 or 0…65535. Anything else is refused.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor

from diffinf_lib.data.decoding import Picture, Remark, decode
from diffinf_lib.data.images import to_unit_range
from diffinf_lib.errors import DataError, first_few, require
from diffinf_lib.options import PositiveInt, checked
from diffinf_lib.shapes import Images

RANGES = (1.0, 255.0, 65535.0)
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class _Read:
    """One image as it waits for the others: `[H, W, C]`, and the extremes it had before it was scaled to another size."""

    name: str
    picture: Picture
    low: float
    high: float


def read_images(
    paths: Sequence[Path], names: Sequence[str], *, image_size: int | None = None, channels: int | None = None
) -> tuple[Images, tuple[str, ...]]:
    """Images `[N, C, H, W]` in [−1, 1], and notes.

    Args:
        names: what messages call the files.
        image_size: side to which the central square is scaled (bicubic); None: as they are, all of one size.
        channels: 1 or 3; None: grey where all images are.

    Raises:
        DataError: a file cannot be read, its range is not known, or sizes differ and no `image_size` is given.
    """
    checked("image_size", image_size, PositiveInt | None)
    require(channels in (None, 1, 3), f"channels={channels}: give 1 for grey, or 3 for RGB")
    found = [_read(path, name, image_size, channels) for path, name in zip(paths, names, strict=True)]
    _check_sizes(found)
    unstated, notes = _unstated_white(found)
    count = channels or max(read.picture.pixels.shape[2] for read in found)
    height, width = found[0].picture.pixels.shape[:2]
    images = torch.empty(len(found), count, height, width)
    for place, read in enumerate(found):
        pixels = torch.from_numpy(np.array(read.picture.pixels.transpose(2, 0, 1)))
        images[place] = _with_channels(to_unit_range(pixels, read.picture.white or unstated), count)
    return images, (*_remarks(found), *notes)


def _read(path: Path, name: str, image_size: int | None, channels: int | None) -> _Read:
    picture = decode(path)
    height, width, own = picture.pixels.shape
    low, high = float(picture.pixels.min()), float(picture.pixels.max())
    remarks = {
        Remark.GREYED: own > (channels or own),
        Remark.COLOURED: own < (channels or own),
        Remark.CUT: image_size is not None and height != width,
        Remark.ENLARGED: image_size is not None and min(height, width) < image_size,
    }
    picture = picture._replace(remarks=picture.remarks | {remark for remark, holds in remarks.items() if holds})
    if image_size is not None:
        picture = picture._replace(pixels=_square(picture.pixels, image_size))
    return _Read(name, picture, low, high)


def _square(pixels: Real[np.ndarray, "H W C"], side: int) -> Real[np.ndarray, "{side} {side} C"]:
    """The central square, scaled; 8 bits stay 8 bits, and nothing leaves the range it had."""
    height, width, channels = pixels.shape
    short = min(height, width)
    left, top = (width - short) // 2, (height - short) // 2
    box = (left, top, left + short, top + short)

    def scaled(image: Real[np.ndarray, "H W *C"]) -> Real[np.ndarray, "side side *C"]:
        bicubic = Image.Resampling.BICUBIC
        return np.asarray(Image.fromarray(image).resize((side, side), bicubic, box=box, reducing_gap=3.0))

    if pixels.dtype == np.uint8:
        return scaled(pixels.squeeze(2) if channels == 1 else pixels).reshape(side, side, channels)
    planes = [scaled(pixels[..., channel].astype(np.float32)) for channel in range(channels)]
    return np.stack(planes, axis=2).clip(pixels.min(), pixels.max())


def _check_sizes(found: Sequence[_Read]) -> None:
    first, first_size = found[0].name, found[0].picture.pixels.shape[:2]
    for read in found:
        height, width = read.picture.pixels.shape[:2]
        require((height, width) == first_size, f"{read.name} is {width}×{height}, {first} is {first_size[1]}×{first_size[0]}: "
                "give image_size to bring them to one", DataError)  # fmt: skip


def _unstated_white(found: Sequence[_Read]) -> tuple[float, list[str]]:
    """The value of white of the images whose format states none, and a note that says so."""
    unstated = [read for read in found if read.picture.white is None]
    if not unstated:
        return 1.0, []
    for read in unstated:
        require(math.isfinite(read.high) and read.low >= 0, _no_range(read), DataError)
    brightest = max(unstated, key=lambda read: read.high)
    white = _evident(brightest.high)
    if white is None:
        raise DataError(_no_range(brightest))
    for read in unstated:
        require(
            _evident(read.high) in (white, None),
            f"{_no_range(read)} ({brightest.name} goes to {brightest.high:g})",
            DataError,
        )
    return white, [f"{len(unstated)} of {len(found)} images state no range, read as 0…{white:g} ({_named(unstated)})"]


def _evident(high: float) -> float | None:
    return next((white for white in RANGES if white / 2 < high <= white), None)


def _no_range(read: _Read) -> str:
    return (f"{read.name}: pixels from {read.low:g} to {read.high:g}, and its format does not say what is white; scale them to "
            "0…1, or save it with 8 or 16 bits")  # fmt: skip


def _with_channels(image: Float[Tensor, "channels H W"], count: int) -> Float[Tensor, "{count} H W"]:
    """Grey repeated to RGB, or RGB as its luma, `[C, H, W]`."""
    if len(image) > count:
        return (image * torch.tensor(LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    return image.expand(count, -1, -1)


def _remarks(found: Sequence[_Read]) -> list[str]:
    affected = {remark: [read for read in found if remark in read.picture.remarks] for remark in Remark}
    return [
        f"{len(reads)} of {len(found)} images {remark.value} ({_named(reads)})"
        for remark, reads in affected.items()
        if reads
    ]


def _named(reads: Sequence[_Read]) -> str:
    return first_few([read.name for read in reads])
