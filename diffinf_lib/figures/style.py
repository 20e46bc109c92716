"""Style: one look for every figure of the book."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6E6E6E"
SKY, PURPLE = "#56B4E9", "#CC79A7"

STYLE: Any = {
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.grid": False,
    "legend.frameon": False,
}


def subplots(*arguments: Any, **options: Any) -> tuple[Figure, Any]:
    """`plt.subplots` in the book's style; the figure is left to the caller to show."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*arguments, layout="constrained", **options)
    plt.close(figure)
    return figure, axes
