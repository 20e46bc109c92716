"""Decoding: one image file as pixels, with all that its format says about them heeded.

- Rotation and mirroring as EXIF says are carried out.
- Transparent pixels are laid on white, as a page shows them; what lies hidden under them is never seen.
- Depth is kept: 16 bits (and 12 in TIFF) are read in full. Integers of 32 bits and floats come without a stated range.
- Of several frames or pages the first is read. CMYK, LAB and palettes become RGB; one bit is black and white.
"""

import warnings
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Real, UInt8
from PIL import Image, ImageOps

from diffinf_lib.errors import DataError

_GREY = ("1", "L", "LA")
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262


class Remark(Enum):
    """What was decided about an image, as a note says it after `3 of 40 images`."""

    TRANSPARENT = "had transparency, laid on white"
    TURNED = "were turned as their EXIF orientation says"
    FRAMES = "hold several frames or pages; the first is read"
    CUT = "are not square; their central square is read"
    ENLARGED = "are smaller than asked for and were enlarged"
    GREYED = "are stored in colour, read as grey"
    COLOURED = "are grey, read as RGB"
    SHALLOW = "have 16 bits a colour in a form that is read with 8; as PNG they are read in full"


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        pixels: `[H, W, C]` with one channel or three; black is 0.
        white: the value of white; None where the format does not say.
        remarks: what was decided on the way.
    """

    pixels: Real[np.ndarray, "H W C"]
    white: float | None
    remarks: frozenset[Remark]


def decode(path: Path) -> Picture:
    """Decode one image file.

    Raises:
        DataError: the file is missing, empty, damaged or too large.
    """
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            return _deep_colour(path, image) if _is_deep_png(image) else _decoded(image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large to be read ({str(error).partition(',')[0]}); scale it down") from None
    except Exception as error:  # decoders raise every kind of exception for a damaged file
        reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        raise DataError(f"{path}: cannot be read as an image{reason}; remove or replace it") from None


def _decoded(image: Image.Image) -> Picture:
    remarks = {Remark.FRAMES} if getattr(image, "n_frames", 1) > 1 else set()
    remarks |= {Remark.TURNED} if _is_turned(image) else set()
    remarks |= {Remark.SHALLOW} if ";16" in _raw_mode(image) and image.mode[0] != "I" else set()
    white, transparent_value = _white(image), image.info.get("transparency")
    is_inverted = image.mode.startswith("I;16") and _tiff_tag(image, _PHOTOMETRIC) == 0
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode[0] == "I":
        pixels: np.ndarray = np.array(image, dtype=np.float64 if image.mode == "I" else np.float32)
        if is_inverted and white is not None:
            pixels = np.subtract(white, pixels)
        is_clear = (
            pixels == transparent_value if isinstance(transparent_value, int) and white else np.zeros(1, dtype=bool)
        )
        pixels = np.where(is_clear, white or 0.0, pixels)
        has_clear = bool(is_clear.any())
    else:
        pixels, has_clear = _eight_bits(image)
    remarks |= {Remark.TRANSPARENT} if has_clear else set()
    return Picture(pixels.reshape(*pixels.shape[:2], -1), white, frozenset(remarks))


def _eight_bits(image: Image.Image) -> tuple[UInt8[np.ndarray, "H W"] | UInt8[np.ndarray, "H W 3"], bool]:
    """Pixels `[H, W]` or `[H, W, 3]` laid on white, and whether any of them was transparent."""
    kind, has_clear = "L" if image.mode in _GREY else "RGB", False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        lowest = image.getchannel("A").getextrema()[0]
        has_clear = isinstance(lowest, int) and lowest < 255
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert(kind)), has_clear


def _deep_colour(path: Path, image: Image.Image) -> Picture:
    """Colour PNG of 16 bits a channel, which Pillow reads with 8."""
    from torchvision.io import ImageReadMode, decode_png

    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    channels = decode_png(data, ImageReadMode.UNCHANGED, apply_exif_orientation=True)
    pixels = channels.to(torch.float32).permute(1, 2, 0).numpy()
    remarks = {Remark.TURNED} if _is_turned(image) else set()
    if pixels.shape[2] in (2, 4):
        pixels, alpha = pixels[..., :-1], pixels[..., -1:] / 65535
        remarks |= {Remark.TRANSPARENT} if alpha.min() < 1 else set()
        pixels = alpha * pixels + (1 - alpha) * 65535
    return Picture(pixels, 65535.0, frozenset(remarks))


def _is_deep_png(image: Image.Image) -> bool:
    deep = image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and ";16" in _raw_mode(image)
    return deep and "transparency" not in image.info


def _raw_mode(image: Image.Image) -> str:
    """How pixels lie in the file, as Pillow names it, such as `RGB;16B`."""
    arguments = [tile[3] for tile in getattr(image, "tile", [])[:1]]
    return " ".join(str(argument) for argument in arguments)


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in range(2, 9)


def _tiff_tag(image: Image.Image, tag: int) -> Any:
    return image.tag_v2.get(tag) if hasattr(image, "tag_v2") else None


def _white(image: Image.Image) -> float | None:
    """The value of white: the largest that the format's bits can hold, where it says how they are meant."""
    if image.mode.startswith("I;16"):
        (bits,) = _tiff_tag(image, _BITS_PER_SAMPLE) or (16,)
        return float(2**bits - 1)
    if image.mode == "I":
        return 65535.0 if image.format in ("PNG", "PPM") else None  # Pillow scales the latter to 16 bits
    return None if image.mode == "F" else 255.0
