"""Figures: one function each, returning a Matplotlib figure; no reading, no writing, one style."""

from diffinf_lib.figures.evaluation import constancy_spread, power_curves, sign_scatter
from diffinf_lib.figures.images import image_grid, noising_strip, ranked, schedule_curves, top_influence, training_curve
from diffinf_lib.figures.results import draws_curves, growth_curves, lds_bars, predicted_against_measured
from diffinf_lib.figures.studies import against, heat_map, intervals, option_curves
from diffinf_lib.figures.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "against",
    "constancy_spread",
    "draws_curves",
    "growth_curves",
    "heat_map",
    "image_grid",
    "intervals",
    "lds_bars",
    "noising_strip",
    "option_curves",
    "power_curves",
    "predicted_against_measured",
    "ranked",
    "schedule_curves",
    "sign_scatter",
    "top_influence",
    "training_curve",
]
