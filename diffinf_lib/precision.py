"""Precision: matrix products rounded as asked, and models whose weights are in full precision."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffinf_lib.configuration import Precision
from diffinf_lib.errors import require


@contextmanager
def product_rounding(precision: Precision) -> Iterator[None]:
    """Products of float32 matrices in TF32 or in full; the caller's settings are put back at the end."""
    before, allowed = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def matrix_precision(precision: Precision, device: torch.device | str) -> Iterator[None]:
    """Matrix products and convolutions at a precision; the caller's settings are put back at the end."""
    half = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16")
    with product_rounding(precision), half:
        yield


def is_half(tensor: Tensor) -> bool:
    """Whether numbers are kept in fewer than 32 bits: float16, bfloat16 or less."""
    return tensor.is_floating_point() and tensor.element_size() < 4


def require_full_precision(model: nn.Module) -> None:
    """Refuse a model that keeps numbers in half precision.

    Raises:
        ConfigurationError: the message names the first.
    """
    for name, tensor in _tensors(model):
        require(not is_half(tensor), f"{name} is {_kind(tensor)}: steps of a training and a sampler, gradients, curvature and "
                "measurements would be lost in rounding; give model.float()")  # fmt: skip


def in_full_precision(model: nn.Module) -> nn.Module:
    """The model itself; where it holds half-precision numbers, a copy with these in float32, said in a warning.

    Dampings of 1e-8 and products of small gradients are zero in half precision, and positions rounded to it are others.
    Curvature, gradients and scores of the rounded weights are right in float32.
    """
    kinds = sorted({_kind(tensor) for _, tensor in _tensors(model) if is_half(tensor)})
    if not kinds:
        return model
    warnings.warn(
        f"{type(model).__name__}: weights in {' and '.join(kinds)} are too coarse for curvature and scores; a copy in float32 "
        "is used",
        stacklevel=3,
    )
    return copy.deepcopy(model)._apply(lambda tensor: tensor.float() if is_half(tensor) else tensor)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
