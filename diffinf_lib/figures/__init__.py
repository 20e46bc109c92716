"""Figures: one function each, returning a Matplotlib figure; no reading, no writing, one style."""

from diffinf_lib.figures.images import image_grid, noising_strip, ranked, schedule_curves, top_influence, training_curve
from diffinf_lib.figures.results import draws_curves, growth_curves, lds_bars, predicted_against_measured

__all__ = [
    "draws_curves",
    "growth_curves",
    "image_grid",
    "lds_bars",
    "noising_strip",
    "predicted_against_measured",
    "ranked",
    "schedule_curves",
    "top_influence",
    "training_curve",
]
