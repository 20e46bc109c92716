"""Numbers: how the figures write a number; the script's `text` writes the same."""

import math
import re
from decimal import ROUND_HALF_UP, Decimal

from diffinf_lib.errors import require

_FORM = re.compile(r"\+?(?:d|\.\d+[efg%])")


def check_form(name: str, form: str) -> None:
    """Refuse a form that the script cannot write.

    Raises:
        ConfigurationError: the form is not `d`, or `.` with digits and e, f, g or %, with or without a leading plus.
    """
    require(
        _FORM.fullmatch(form) is not None,
        f"{name}={form!r}: give d, or .2f, .3g, .1e, .1%, with or without a plus before it",
    )


def text(value: float, form: str) -> str:
    """A number as readers see it: a real minus sign, no plus in exponents, none of 0, halves rounded away from zero.

    Args:
        form: `d` for whole numbers with commas, or digits after a point and a kind: `.2f`, `.1e`, `.1%`, and `.3g` for
            that many digits that count. A leading plus shows the sign of positive numbers too.
    """
    if not math.isfinite(value):
        return "–"
    kind, digits = form[-1], int(form[form.index(".") + 1 : -1]) if "." in form else 0
    write = {"d": _whole, "f": _fixed, "e": _exponential, "g": _significant, "%": _percent}[kind]
    written = write(value, digits)
    if not re.search("[1-9]", written.split("e")[0]):
        written = written.replace("-", "")
    plus = "+" if form.startswith("+") and not written.startswith("-") else ""
    return (plus + written).replace("-", "−")


def _fixed(value: float, digits: int) -> str:
    return f"{_rounded(Decimal(value), digits):f}"


def _rounded(value: Decimal, digits: int) -> Decimal:
    return value.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)


def _whole(value: float, _: int) -> str:
    return f"{math.floor(value + 0.5):,}"


def _percent(value: float, digits: int) -> str:
    return _fixed(100 * value, digits) + " %"


def _exponential(value: float, digits: int) -> str:
    exponent = _exponent(value, digits)
    return _fixed_decimal(Decimal(value).scaleb(-exponent), digits) + (f"e{exponent}" if exponent else "")


def _fixed_decimal(value: Decimal, digits: int) -> str:
    return f"{_rounded(value, digits):f}"


def _exponent(value: float, digits: int) -> int:
    """Of ten, once the value is rounded to so many digits after the first."""
    if value == 0:
        return 0
    exact = Decimal(value)
    exponent = exact.adjusted()
    return exponent + (abs(_rounded(exact.scaleb(-exponent), digits)) >= 10)


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    exponent = _exponent(value, digits - 1)
    if exponent < -4 or exponent >= 6:
        return _exponential(value, digits - 1)
    return _fixed(value, max(0, digits - 1 - exponent))


def capital(sentence: str) -> str:
    """A sentence with a capital letter; the rest of it stays as it is."""
    return sentence[:1].upper() + sentence[1:]
