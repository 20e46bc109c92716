"""Sphinx extension: tables in print, through LaTeX, whose columns are as wide as what stands in them.

LaTeX shares a line among columns without regard to numbers and intervals. Here columns of numbers stand to the right and get
what they need; if that leaves too little for words, letters get smaller and intervals go to a second line. Tables that would
not fit on a page run over pages. Widths are estimated from counts of characters, in em.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform

LINE = 452.0  # pt of a line of words on the page
BOX = 24.0  # pt that a frame takes from it
# pt of an em, and pt between two columns
SIZES = {"small": (9.0, 12.0), "footnotesize": (8.0, 12.0), "scriptsize": (7.0, 8.0)}
# what is tried: the size of letters, and whether intervals take a second line
LOOKS = (("small", False), ("footnotesize", False), ("small", True), ("footnotesize", True), ("scriptsize", True))
CHARACTER, BOLD = 0.5, 0.58  # em of a digit, and of a letter in a heading
ROWS = 34  # lines that a table may have before it is laid over pages
SIDE = {True: r">{\raggedleft\arraybackslash}", False: r">{\raggedright\arraybackslash}"}


class Column(NamedTuple):
    """What stands in a column: its heading, its other cells, and whether they are numbers."""

    heading: str
    cells: list[str]
    right: bool

    def least(self, broken: bool) -> float:
        """Em below which a word, or a number with its interval, would stick out."""
        apart = " " if not self.right else r" (?=\[)" if broken else r"$^"
        pieces = [piece for cell in self.cells for piece in re.split(apart, cell)]
        head = BOLD * max(map(len, self.heading.split()), default=0)
        return 0.3 + max(head, CHARACTER * max(map(len, pieces), default=0))

    def wanted(self, broken: bool) -> float:
        """Em with which no cell needs a second line."""
        whole = 0.0 if self.right else CHARACTER * max(map(len, self.cells), default=0)
        return 0.3 + max(self.least(broken), whole, BOLD * len(self.heading))


def _written(entry: nodes.entry) -> str:
    """The words of a cell, a formula's commands as a letter each."""
    return re.sub(r"[{}^_$]", "", re.sub(r"\\[a-zA-Z]+ ?", "x", entry.astext()))


def _column(entries: Sequence[nodes.entry]) -> Column:
    heading, *cells = map(_written, entries)
    return Column(heading, cells, all("text-right" in entry["classes"] for entry in entries))


def shares(columns: Sequence[Column], line: float, broken: bool) -> list[float] | None:
    """Widths of columns that fill at most a line; None where words or numbers would stick out.

    What columns want beyond their least is granted in equal parts of it.
    """
    least = [column.least(broken) for column in columns]
    beyond = [column.wanted(broken) - low for column, low in zip(columns, least, strict=True)]
    left = line - sum(least)
    if left < 0:
        return None
    part = min(1.0, left / max(sum(beyond), 1e-9))
    return [low + part * more for low, more in zip(least, beyond, strict=True)]


def laid_out(columns: Sequence[Column], line: float) -> tuple[str, list[float], bool]:
    """The size of letters, the widths in em, and whether intervals take a second line.

    Args:
        line: pt.
    """
    for size, broken in LOOKS:
        em, between = SIZES[size]
        found = shares(columns, (line - between * len(columns)) / em, broken)
        if found:
            return size, found, broken
    least = [column.least(True) for column in columns]  # too much for a page: nothing better than the smallest letters
    return size, least, True


class Columns(SphinxPostTransform):
    """Tells LaTeX the columns of every table."""

    default_priority = 900  # after the cells are filled
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        """Called by Sphinx."""
        for group in list(self.document.findall(nodes.tgroup)):
            rows = [list(row.findall(nodes.entry)) for row in group.findall(nodes.row)]
            if len({len(row) for row in rows}) == 1:
                self._lay_out(group.parent, list(zip(*rows, strict=True)))

    def _lay_out(self, table: nodes.table, entries: list[tuple[nodes.entry, ...]]) -> None:
        columns = list(map(_column, entries))
        boxed = _boxed(table)
        size, widths, broken = laid_out(columns, LINE - BOX * boxed)
        for column, cells in zip(columns, entries, strict=True):
            if column.right:
                _bind(cells[1:], broken)
        if not boxed and _lines(columns, widths) > ROWS:
            table["classes"].append("longtable")
        spec = "".join(f"{SIDE[column.right]}p{{{width:.2f}em}}" for column, width in zip(columns, widths, strict=True))
        place = table.parent.index(table)
        letters = nodes.raw("", rf"\tablewords{{\{size}}}{{{SIZES[size][1] / 2:g}pt}}", format="latex")
        table.parent.insert(place, [letters, addnodes.tabular_col_spec(spec=spec)])


def _boxed(node: nodes.Node) -> bool:
    """Whether it stands in a frame, where no table runs over pages."""
    while node is not None and not isinstance(node, nodes.Admonition):
        node = node.parent
    return node is not None


def _bind(entries: Sequence[nodes.entry], broken: bool) -> None:
    """Keeps a number and its interval on one line, or each on its own."""
    for text in [text for entry in entries for text in entry.findall(nodes.Text)]:
        text.parent.replace(text, nodes.Text(re.sub(r" (?!\[)" if broken else " ", "\u00a0", text)))


def _lines(columns: Sequence[Column], widths: Sequence[float]) -> int:
    """How many lines a table has, about."""
    lines = [
        [math.ceil(CHARACTER * len(cell) / width) for cell in column.cells]
        for column, width in zip(columns, widths, strict=True)
    ]
    return sum(map(max, zip(*lines, strict=True)))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_post_transform(Columns)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
