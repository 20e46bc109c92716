"""Packing: data as a page carries it: numbers and flags as base64, images on one sheet, text that cannot end a script."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffinf_lib.pictures import SMALL, picture

LARGEST = 64
"""Longest side of an image on a sheet; larger ones are scaled down."""
LOSSLESS = 48_000
"""Sheets up to so many bytes stay PNG, pixel for pixel; larger ones are packed with loss."""


def script_json(value: Any) -> str:
    """JSON that nothing in it, such as a file's name, can end the script around it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """Values as the page will hold them."""
    if bits == 32:
        return values.astype(np.float32).astype(np.float64)
    low, step = _steps(values)
    return low + step * _codes(values, low, step)


def packed_numbers(values: np.ndarray, bits: int) -> dict[str, Any]:
    """Values that `rounded` has been through."""
    if bits == 32:
        return {"shape": values.shape, "type": "f4", "data": _base64(values.astype("<f4").tobytes())}
    low, step = _steps(values)
    codes = _codes(values, low, step).astype("<u2")
    return {"shape": values.shape, "type": "u2", "data": _base64(codes.tobytes()), "low": low, "step": step}


def _steps(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return low, (high - low) / 65535


def _codes(values: np.ndarray, low: float, step: float) -> np.ndarray:
    return np.rint((values - low) / step) if step > 0 else np.zeros_like(values)


def packed_codes(values: np.ndarray, by: Sequence[str] = ()) -> dict[str, Any]:
    """Small whole numbers; `by` names the controls of the leading axes."""
    kind = "u1" if values.size == 0 or values.max() < 256 else "u2"
    data = _base64(values.astype(f"<{kind}").tobytes())
    return {"shape": values.shape, "type": kind, "data": data, "by": list(by)}


def sheet(images: Tensor | Sequence[Tensor]) -> dict[str, Any]:
    """Images `[n, C, H, W]` in [−1, 1] side by side in one picture, with what finds each again."""
    pictures = [picture(image) for image in images]
    for one in pictures:
        one.thumbnail((LARGEST, LARGEST))
    width, height = pictures[0].size
    columns = min(16, len(pictures))
    whole = Image.new(pictures[0].mode, (columns * width, -(-len(pictures) // columns) * height))
    for place, one in enumerate(pictures):
        whole.paste(one, (place % columns * width, place // columns * height))
    return {"uri": image_uri(whole), "columns": columns, "width": width, "height": height}


def image_uri(image: Image.Image) -> str:
    """A picture inline: PNG where it is small, WebP where it is not."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    if buffer.tell() <= LOSSLESS:
        return f"data:image/png;base64,{_base64(buffer.getvalue())}"
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=82, method=6)
    return f"data:image/webp;base64,{_base64(buffer.getvalue())}"


def strip(images: Sequence[Tensor] | Tensor, side: int) -> str:
    """Images `[n, C, H, W]` in a row, each `side` pixels wide, inline."""
    pictures = [picture(torch.as_tensor(image)) for image in images]
    kept = Image.Resampling.NEAREST if max(pictures[0].size) <= SMALL else Image.Resampling.BILINEAR
    gap = max(2, side // 12)
    row = Image.new("RGBA", (len(pictures) * (side + gap) - gap, side))
    for place, one in enumerate(pictures):
        row.paste(one.convert("RGBA").resize((side, side), kept), (place * (side + gap), 0))
    return image_uri(row)
