"""Tables: rows under headings, as Markdown that the book and JupyterLab lay out.

A cell may therefore hold what any line of a page may: a formula, a link, a citation. Numbers stand to the right, with their
intervals; the page's own script sorts long tables, and wide ones scroll inside themselves.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from diffinf_lib.errors import require

SORTABLE_ROWS = 6  # a shorter table is taken in at a glance
SMALL = 1e-4  # below, zeros would have to be counted: 1e−8
FIGURE_SPACE = "\u2007"  # as wide as a digit


@dataclass(frozen=True)
class Number:
    """A number as the book prints it; it shows itself in a sentence just as in a table.

    Attributes:
        value: after scaling, such as percent.
        digits: after the decimal point; None for three significant ones.
        interval: its ends, scaled alike.
        signed: a plus stands before positive numbers.
        unit: behind the number, such as " %"; tables have units in their headings.
    """

    value: float
    digits: int | None = None
    interval: tuple[float, float] | None = None
    signed: bool = False
    unit: str = ""

    def text(self, width: int = 0) -> str:
        """As printed; the ends of the interval are filled up to `width` characters."""
        shown = self._one(self.value)
        if self.interval is None:
            return shown + self.unit
        low, high = (self._one(end).rjust(width, FIGURE_SPACE) for end in self.interval)
        return f"{shown}{self.unit} [{low}, {high}]"

    def __repr__(self) -> str:
        return self.text()

    @property
    def width(self) -> int:
        """Characters of the longer end of the interval."""
        return 0 if self.interval is None else max(len(self._one(end)) for end in self.interval)

    def _one(self, value: float) -> str:
        if not math.isfinite(value):
            return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
        sign = "+" if self.signed else ""
        if self.digits is None and 0 < abs(value) < SMALL:
            mantissa, exponent = f"{value:{sign}.2e}".split("e")
            return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
        digits = _significant(value) if self.digits is None else self.digits
        return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")


def number(value: Real | float, digits: int | None = None, *, signed: bool = False, unit: str = "") -> Number:
    """A number with `digits` after the point, or three significant ones; whole numbers stay whole."""
    if digits is None and isinstance(value, Integral):
        digits = 0
    return Number(float(value), digits, signed=signed, unit=unit)


def percent(
    value: float, interval: Iterable[float] | None = None, *, digits: int = 1, signed: bool = False, unit: str = ""
) -> Number:
    """A fraction in percent, with its interval.

    Args:
        value: the fraction, such as an LDS.
        interval: its ends, as fractions.
        unit: behind the number in a sentence, such as " %"; none in a table, whose heading says it.
    """
    low_high = None if interval is None else tuple(100 * float(end) for end in interval)
    require(low_high is None or len(low_high) == 2, f"interval={interval}: give its two ends")
    return Number(100 * float(value), digits, low_high, signed, unit)  # type: ignore[arg-type]


def cite(*keys: str) -> str:
    """Citations of the bibliography's entries, as a cell; nothing for no key."""
    return f"{{cite:t}}`{','.join(filter(None, keys))}`" if any(keys) else ""


@dataclass(frozen=True)
class Table:
    """A table that knows how to show itself: Markdown for pages and JupyterLab, the same as plain text elsewhere.

    Attributes:
        headings: of the columns.
        cells: `[rows][columns]`: a number, Markdown, or None where there is none.
        caption: Markdown in one line.
        name: of the table, to refer to it.
    """

    headings: tuple[str, ...]
    cells: tuple[tuple[Any, ...], ...]
    caption: str = ""
    name: str = ""

    def markdown(self) -> str:
        """The table as a MyST directive around a Markdown table."""
        columns = [[row[i] for row in self.cells] for i in range(len(self.headings))]
        printed = [_column(cells) for cells in columns]
        rules = ["--:" if _numeric(cells) else ":--" for cells in columns]
        lines = [_line(map(_escaped, self.headings)), _line(rules), *map(_line, zip(*printed, strict=True))]
        options = [f":class: {self._classes()}", *([f":name: {self.name}"] if self.name else [])]
        return "\n".join([f":::{{table}} {self.caption}".rstrip(), *options, "", *lines, ":::"])

    def _classes(self) -> str:
        return "diffinf-table" + (" sortable" if len(self.cells) >= SORTABLE_ROWS else "")

    def _repr_markdown_(self) -> str:
        return self.markdown()

    def __repr__(self) -> str:
        return self.markdown()


def table(rows: Sequence[Mapping[str, Any]], *, caption: str = "", name: str = "", source: Any | None = None) -> Table:
    """A table of rows that each give a cell for some of the headings.

    Args:
        rows: heading → cell; headings come in the order in which they first stand. A missing cell is left empty.
        caption: what the table shows; Markdown, in one line.
        name: to refer to it.
        source: a bundle or benchmark whose name and commit end the caption.

    Raises:
        ConfigurationError: there is no row, or a caption of several lines.
    """
    require(bool(rows), "rows: give at least one")
    require("\n" not in caption, f"caption={caption!r}: give one line")
    headings = tuple(dict.fromkeys(heading for row in rows for heading in row))
    cells = tuple(tuple(row.get(heading) for heading in headings) for row in rows)
    return Table(headings, cells, " ".join(filter(None, (caption, source_note(source)))), name)


def source_note(source: Any | None) -> str:
    """Where numbers come from, as the end of a caption: a bundle's or a benchmark's name and the commit that made it."""
    if source is None:
        return ""
    if isinstance(source, Mapping):
        return f"(Benchmark `{source['benchmark']}`, commit `{source['environment']['git_commit']}`.)"
    return f"(Bundle `{source.name}`, commit `{source.manifest['environment']['git_commit']}`.)"


def _significant(value: float) -> int:
    """Digits after the point that leave three significant ones."""
    return 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))


def _numeric(cells: Sequence[Any]) -> bool:
    present = [cell for cell in cells if cell is not None and cell != ""]
    return bool(present) and all(isinstance(cell, Number | Real) for cell in present)


def _column(cells: Sequence[Any]) -> list[str]:
    """The cells of a column as Markdown, intervals filled up to one width so that the numbers stand below each other."""
    numbers = [number(cell) if isinstance(cell, Real) else cell for cell in cells]
    width = max((cell.width for cell in numbers if isinstance(cell, Number)), default=0)
    return [
        "" if cell is None else cell.text(width) if isinstance(cell, Number) else _escaped(cell) for cell in numbers
    ]


def _escaped(cell: Any) -> str:
    """A bar would end the cell, a line break the table."""
    return re.sub(r"(?<!\\)\|", r"\\|", str(cell)).replace("\n", " ")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
