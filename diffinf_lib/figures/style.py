"""Style: one look for every figure of the book, on light pages and on dark ones, and on paper.

A figure shows itself as SVG inside the page: its words are text, its ink is the page's, and its colours are variables that
the page makes brighter in the dark. What it shows in words is its `alt`, which a cell's metadata may overrule. While the
book is built it shows itself as PDF too, for the printed one.
"""

import html
import io
import os
import re
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SKY, PURPLE = "#56B4E9", "#CC79A7"
INK = "#010203"  # words and axes; stands for the colour of the page's text
_VARIABLES = {
    BLUE: "blue", ORANGE: "orange", GREEN: "green", VERMILION: "vermilion", GREY: "grey", SKY: "sky", PURPLE: "purple",
}  # fmt: skip

STYLE: Any = {
    "figure.dpi": 110,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}

SITE = "DIFFINF_SITE"
"""Set to 1 while the book is built."""
PRINT_DPI = 220
"""Dots per inch of pictures inside a printed figure."""
LEGIBLE = 0.62
"""Share of its size to which a figure shrinks on a narrow page, where words of 10 pt are still read; then it scrolls."""


class BookFigure(Figure):
    """A Matplotlib figure that shows itself as SVG in the page's own colours.

    Attributes:
        alt: what it shows, in words.
    """

    alt: str = ""

    def _repr_html_(self) -> str:
        self._bare_legends()
        written = io.StringIO()
        with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffinf"}):
            self.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        return _framed(written.getvalue(), self.alt)

    def _repr_pdf_(self) -> bytes | None:
        if os.environ.get(SITE) != "1":  # a notebook would carry every figure twice
            return None
        self._bare_legends()
        written = io.BytesIO()
        self.savefig(written, format="pdf", dpi=PRINT_DPI, metadata={"CreationDate": None})
        return written.getvalue()

    def _bare_legends(self) -> None:
        for legend in filter(None, (*self.legends, *(axes.get_legend() for axes in self.axes))):
            legend.set_frame_on(False)


def _framed(svg: str, alt: str) -> str:
    """A written SVG as a part of a page: its name for those who cannot see it, its size, the page's colours."""
    body = svg[svg.index("<svg") :]
    width, height = (float(value) for value in re.findall(r'(?:width|height)="([\d.]+)pt"', body)[:2])
    head = (
        f'<svg role="img" aria-label="{html.escape(alt)}" viewBox="0 0 {width:g} {height:g}" fill="{INK}" '
        f'style="width:{width / 72:.2f}in;min-width:{LEGIBLE * width / 72:.2f}in;stroke-linejoin:round" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    body = head + body[body.index(">") + 1 :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)  # a style would hold for the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # nothing refers to them, and a page holds many figures
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # the page's
    return f'<div class="diffinf-figure">{_page_colours(body)}</div>'


def _page_colours(svg: str) -> str:
    """The ink and the palette as CSS, each with its own colour where a page sets none."""
    svg = re.sub(f"{INK}|(?<=[el]: )#000000", "currentColor", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(f": {colour.lower()}", f": var(--diffinf-{name}, {colour})")
    return svg


def subplots(*arguments: Any, **options: Any) -> tuple[BookFigure, Any]:
    """`plt.subplots` in the book's style; the figure is left to the caller to show.

    Args:
        alt: what the figure shows, in words.
    """
    alt = options.pop("alt", "")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*arguments, layout="constrained", FigureClass=BookFigure, **options)
    plt.close(figure)
    figure.alt = alt
    return figure, axes
