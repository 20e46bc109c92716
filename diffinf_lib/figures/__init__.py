"""Figures: one function each, returning a Matplotlib figure; no reading, no writing, one style."""

from diffinf_lib.figures.evaluation import constancy_spread, nested_dots, power_curves, sign_scatter
from diffinf_lib.figures.graphs import job_graph
from diffinf_lib.figures.images import image_grid, noising_strip, ranked, schedule_curves, top_influence, training_curve
from diffinf_lib.figures.results import draws_curves, growth_curves, lds_bars, predicted_against_measured
from diffinf_lib.figures.studies import against, heat_map, intervals, option_curves
from diffinf_lib.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, BookFigure, subplots

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILION",
    "BookFigure",
    "against",
    "constancy_spread",
    "draws_curves",
    "growth_curves",
    "heat_map",
    "image_grid",
    "intervals",
    "job_graph",
    "lds_bars",
    "nested_dots",
    "noising_strip",
    "option_curves",
    "power_curves",
    "predicted_against_measured",
    "ranked",
    "schedule_curves",
    "sign_scatter",
    "subplots",
    "top_influence",
    "training_curve",
]
