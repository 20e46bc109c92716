"""Pictures: images in 8 bits, as Pillow has them, and as data URIs that a page holds inside."""

import base64
import io

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

SMALL = 48
"""Thumbnails up to this side are kept pixel for pixel; larger ones are packed with loss."""


def to_bytes(images: Float[Tensor, "*N C H W"]) -> UInt8[Tensor, "*N C H W"]:
    """Images in [−1, 1] in 8 bits, from 0 to 255; what lies outside is cut off. On the CPU."""
    return ((images.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def from_bytes(levels: UInt8[Tensor, "*N C H W"]) -> Float[Tensor, "*N C H W"]:
    """Images in [−1, 1], from their 8 bits."""
    return levels.float() / 127.5 - 1


def picture(image: Float[Tensor, "C H W"]) -> Image.Image:
    """An image `[C, H, W]` in [−1, 1] as one of Pillow's.

    One channel is grey, three or more are read as red, green and blue; of two, the first is shown.
    """
    values = to_bytes(image)
    return Image.fromarray(values[:3].permute(1, 2, 0).numpy() if len(values) >= 3 else values[0].numpy())


def data_uri(image: Float[Tensor, "C H W"], side: int | None = None) -> str:
    """An image `[C, H, W]` in [−1, 1] inline, as PNG.

    Args:
        side: of a thumbnail: larger images are scaled down to it, and those above `SMALL` packed as WebP.
    """
    shown, buffer = picture(image), io.BytesIO()
    small = side is None or max(shown.size) <= SMALL
    if side is not None:
        shown.thumbnail((side, side))
    shown.save(buffer, format="PNG" if small else "WEBP", quality=80, optimize=True)
    return f"data:image/{'png' if small else 'webp'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
