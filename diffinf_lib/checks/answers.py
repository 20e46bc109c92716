"""Answers: what a function returned, compared with what is right, and described where it is not."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Function = Callable[..., Any]
Answer = tuple[Tensor, ...]

RELATIVE_ERROR = 1e-10
"""How far an answer may be off, as a part of the largest entry of the right one; all is float64 and small."""


SINGLE_PRECISION = 1e-6
"""What float32 somewhere in a function leaves of its precision."""


def as_answer(returned: Any) -> Answer:
    """What a function returned, one thing or several, as float64 tensors."""
    parts = returned if isinstance(returned, (tuple, list)) else (returned,)
    return tuple(torch.as_tensor(part, dtype=torch.float64).detach().cpu() for part in parts)


def no_answer(value: Any) -> str | None:
    """Why a returned value cannot be compared; None where it can."""
    if value is None:
        return "the function returns None; is there a return at its end?"
    if isinstance(value, np.ndarray):
        return "the function returns a numpy array; give a torch tensor (torch.as_tensor)"
    if not isinstance(value, (Tensor, bool, int, float, np.number)):
        return f"the function returns a {type(value).__name__}; give a torch tensor or a number"
    if isinstance(value, Tensor) and value.is_complex():
        return "the function returns complex numbers; give real ones"
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        kind = str(value.dtype).removeprefix("torch.")
        return f"the function returns {kind} and the cases are in float64; make new tensors in the type of those given"
    return None


def close(found: Tensor, expected: Tensor, within: float = RELATIVE_ERROR) -> bool:
    """Whether two tensors are the same but for rounding, a part of the largest expected entry."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    return bool(((found - expected).abs() <= within * largest).all())


def is_right(found: Answer | Exception, expected: Answer, within: float = RELATIVE_ERROR) -> bool:
    """Whether an answer is the expected one but for rounding."""
    if isinstance(found, Exception) or len(found) != len(expected):
        return False
    return all(close(one, other, within) for one, other in zip(found, expected, strict=True))


def alike(mistaken: Answer | Exception, found: Answer | Exception) -> bool:
    """Whether two solutions do the same: the same numbers, not finite at the same places, or the same kind of error."""
    if isinstance(mistaken, Exception) or isinstance(found, Exception):
        return type(mistaken) is type(found)
    if [part.shape for part in mistaken] != [part.shape for part in found]:
        return False
    pairs = list(zip(mistaken, found, strict=True))
    if not all(torch.equal(one.isfinite(), other.isfinite()) for one, other in pairs):
        return False
    return all(close(other.nan_to_num(0.0, 0.0, 0.0), one.nan_to_num(0.0, 0.0, 0.0)) for one, other in pairs)


def raised(error: Exception, function: Function) -> str:
    """`ValueError in line 3: …`: the line of the cell or file that the function stands in."""
    own = getattr(getattr(function, "__code__", None), "co_filename", None)
    trace, line = error.__traceback__, None
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == own else line
        trace = trace.tb_next
    where = "" if line is None else f" in line {line}"
    return f"{type(error).__name__}{where}: {' '.join(str(error).split())}"


def misshapen(found: Answer, expected: Answer, gives: str) -> str | None:
    """What is wrong with shapes, an order of axes, or numbers that are not finite."""
    if len(found) != len(expected):
        return f"the function returns {len(found)} things, not {len(expected)}: {gives}"
    for one, right in zip(found, expected, strict=True):
        turned = one.ndim == 2 and not close(one, right) and close(one.T, right)
        if one.shape != right.shape:
            aside = ": it is transposed" if turned else ""
            return f"{gives}: shape {list(one.shape)}, not {list(right.shape)}{aside}"
        if turned:
            return f"{gives}: it is transposed"
        if not bool(one.isfinite().all()):
            return f"{gives}: {int((~one.isfinite()).sum())} of {one.numel()} numbers are not finite"
    return None


def factor(found: Answer | Exception, expected: Answer) -> float | None:
    """The number that the whole answer is too large by, if there is one; NaN where the right answer is all zeros."""
    if isinstance(found, Exception) or len(found) != 1 or len(expected) != 1 or found[0].shape != expected[0].shape:
        return None
    one, right = found[0].flatten(), expected[0].flatten()
    if not bool(one.isfinite().all()):
        return None
    square = float(right @ right)
    if square == 0:
        return None if bool(one.any()) else float("nan")
    ratio = float(one @ right) / square
    return ratio if ratio != 0 and close(one / ratio, right) else None


def named_factor(factors: Sequence[float], sizes: Sequence[Mapping[str, float]]) -> str | None:
    """What a factor is that all answers have: the sign, something that was counted, or one number.

    Args:
        sizes: of each case, by what is counted.
    """
    known = [(ratio, counted) for ratio, counted in zip(factors, sizes, strict=True) if ratio == ratio]

    def all_are(value: Callable[[Mapping[str, float]], float]) -> bool:
        return all(abs(ratio / value(counted) - 1) < 1e-8 for ratio, counted in known)

    if all_are(lambda counted: -1.0):
        return "the sign is the other way round"
    for name in sizes[0]:
        for sign, turned in ((1, ""), (-1, ", and the sign is the other way round")):
            if all_are(lambda counted, name=name, sign=sign: sign * counted[name]):  # type: ignore[misc]
                return f"too large by a factor of {name}{turned}"
            if all_are(lambda counted, name=name, sign=sign: sign / counted[name]):  # type: ignore[misc]
                return f"too small by a factor of {name}{turned}"
    if not known:
        return None
    ratio = known[0][0]
    if len(known) > 1 and all_are(lambda counted: ratio):
        return f"{ratio:.6g} times the right answer in every case"
    return None


def difference(found: Answer, expected: Answer, gives: str) -> str:
    """Where an answer is furthest off, and by how much."""
    one, right = next(pair for pair in zip(found, expected, strict=True) if not close(*pair))
    place = int((one - right).abs().argmax())
    index = [int(i) for i in np.unravel_index(place, tuple(right.shape))] if right.ndim else []
    given, wanted = (float(values.flatten()[place]) for values in (one, right))
    at = f" at {index}" if index else ""
    return f"{gives}: {given:.6g}{at} where {wanted:.6g} is right"
