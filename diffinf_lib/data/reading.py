"""Reading: image files as images in [−1, 1], and in plain sentences what was decided about them.

Images are RGB, or grey where all of them are, unless the number of channels is given. Black is −1 and white 1, whatever the
depth. Where a format states no range (integers of 32 bits, floats), the files together must show which is meant: their largest
value lies in the upper half of 0…1, 0…255 or 0…65535. Anything else is refused.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Real
from PIL import Image
from torch import Tensor

from diffinf_lib.data.decoding import Remark, decode
from diffinf_lib.data.images import to_unit_range
from diffinf_lib.data.mapped import LARGEST_IN_MEMORY
from diffinf_lib.errors import DataError, first_few, require
from diffinf_lib.options import PositiveInt, checked
from diffinf_lib.shapes import Images

RANGES = (1.0, 255.0, 65535.0)
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601)."""


@dataclass(frozen=True)
class _Read:
    """What was found in one file.

    Attributes:
        pixels: `[H, W, C]`; None where they are to be decoded again.
        low, high: the extremes that it had before it was scaled to another size.
    """

    name: str
    shape: tuple[int, int, int]
    white: float | None
    remarks: frozenset[Remark]
    low: float
    high: float
    pixels: Real[np.ndarray, "H W C"] | None


@dataclass(frozen=True)
class ReadableImages:
    """Images of files that were all looked at once.

    Attributes:
        shape: [N, C, H, W].
        notes: what was decided about them, in plain sentences.
    """

    paths: Sequence[Path]
    shape: tuple[int, int, int, int]
    notes: tuple[str, ...]
    _found: Sequence[_Read]
    _unstated: float
    _asked: tuple[int | None, int | None]

    @property
    def is_large(self) -> bool:
        """Whether they are too many to be held in memory."""
        return 4 * math.prod(self.shape) > LARGEST_IN_MEMORY

    @property
    def findings(self) -> dict[str, np.ndarray]:
        """What was found in each file, but for its pixels: `shape [N, 3]`, and `white` (NaN where the format states none),
        `remarks` (bits), `low`, `high`, `[N]` each."""
        places = {remark: 1 << place for place, remark in enumerate(Remark)}
        return {
            "shape": np.array([read.shape for read in self._found]),
            "white": np.array([math.nan if read.white is None else read.white for read in self._found]),
            "remarks": np.array([sum(places[remark] for remark in read.remarks) for read in self._found]),
            "low": np.array([read.low for read in self._found]),
            "high": np.array([read.high for read in self._found]),
        }

    def rows(self, start: int = 0, stop: int | None = None) -> Images:
        """Images from one position up to another, in [−1, 1]."""
        chosen = range(*slice(start, stop).indices(len(self.paths)))
        images = torch.empty(len(chosen), *self.shape[1:])
        for place, n in enumerate(chosen):
            read = self._found[n]
            pixels = _read(self.paths[n], read.name, *self._asked).pixels if read.pixels is None else read.pixels
            assert pixels is not None
            tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))
            images[place] = _with_channels(to_unit_range(tensor, read.white or self._unstated), self.shape[1])
        return images


def look_at_images(
    paths: Sequence[Path], names: Sequence[str], *, image_size: int | None = None, channels: int | None = None
) -> ReadableImages:
    """Decode every file once; pixels are kept as long as all of them fit into memory.

    Args:
        names: what messages call the files.
        image_size: side to which the central square is scaled (bicubic); None: as they are, all of one size.
        channels: 1 or 3; None: grey where all images are.

    Raises:
        DataError: a file cannot be read, its range is not known, or sizes differ and no `image_size` is given.
    """
    checked("image_size", image_size, PositiveInt | None)
    require(channels in (None, 1, 3), f"channels={channels}: give 1 for grey, or 3 for RGB")
    found: list[_Read] = []
    kept = 0
    for path, name in zip(paths, names, strict=True):
        read = _read(path, name, image_size, channels)
        kept += read.pixels.nbytes if read.pixels is not None else 0
        found.append(read if kept <= LARGEST_IN_MEMORY // 4 else replace(read, pixels=None))
    return _readable(paths, found, image_size, channels)


def looked_at_before(
    paths: Sequence[Path],
    names: Sequence[str],
    findings: Mapping[str, np.ndarray],
    *,
    image_size: int | None,
    channels: int | None,
) -> ReadableImages:
    """The same from the `findings` of those that `look_at_images` gave; no file is decoded before its pixels are asked for."""
    columns = (findings[name].tolist() for name in ("shape", "white", "remarks", "low", "high"))
    found = [
        _Read(name, tuple(shape), None if math.isnan(white) else white, _remarks_of(bits), low, high, None)
        for name, shape, white, bits, low, high in zip(names, *columns, strict=True)
    ]
    return _readable(paths, found, image_size, channels)


def _readable(
    paths: Sequence[Path], found: Sequence[_Read], image_size: int | None, channels: int | None
) -> ReadableImages:
    _check_sizes(found)
    unstated, notes = _unstated_white(found)
    shape = (len(found), channels or max(read.shape[2] for read in found), *found[0].shape[:2])
    return ReadableImages(paths, shape, (*_remarks(found), *notes), found, unstated, (image_size, channels))


def _remarks_of(bits: int) -> frozenset[Remark]:
    return frozenset(remark for place, remark in enumerate(Remark) if bits >> place & 1)


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
    pixels = picture.pixels if image_size is None else _square(picture.pixels, image_size)
    every = picture.remarks | {remark for remark, holds in remarks.items() if holds}
    height, width, own = pixels.shape
    return _Read(name, (height, width, own), picture.white, every, low, high, pixels)


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
    first, first_size = found[0].name, found[0].shape[:2]
    for read in found:
        height, width = read.shape[:2]
        require((height, width) == first_size, f"{read.name} is {width}×{height}, {first} is {first_size[1]}×{first_size[0]}: "
                "give image_size to bring them to one", DataError)  # fmt: skip


def _unstated_white(found: Sequence[_Read]) -> tuple[float, list[str]]:
    """The value of white of the images whose format states none, and a note that says so."""
    unstated = [read for read in found if read.white is None]
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
    affected = {remark: [read for read in found if remark in read.remarks] for remark in Remark}
    return [
        f"{len(reads)} of {len(found)} images {remark.value} ({_named(reads)})"
        for remark, reads in affected.items()
        if reads
    ]


def _named(reads: Sequence[_Read]) -> str:
    return first_few([read.name for read in reads])
