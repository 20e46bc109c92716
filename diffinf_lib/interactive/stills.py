"""Stills: figures of one state for print and for pages without a script, drawn by Matplotlib in the book's style."""

import html
import io

from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from diffinf_lib.interactive.packing import image_uri


def chart(figure: Figure, alternative: str, colours: int = 32) -> str:
    """A Matplotlib figure as an image of few colours, some ten kilobytes."""
    for written in figure.findobj(Text):
        written.set_parse_math(False)  # names are shown as they are
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, facecolor="white")
    shown = Image.open(buffer).convert("RGB").quantize(colours, dither=Image.Dither.NONE)
    width = round(shown.width * 100 / 130)
    return f'<img class="diffinf-still" src="{image_uri(shown)}" alt="{html.escape(alternative)}" width="{width}">'


def pictures(uri: str, alternative: str, height: int) -> str:
    """A strip of small pictures."""
    return f'<img class="diffinf-still-strip" src="{uri}" alt="{html.escape(alternative)}" height="{height}">'
