"""Planner: what a run will cost in FLOPs, bytes and seconds, before anything runs."""

from diffinf_lib.planner.plan import Plan, StageEstimate, estimate
from diffinf_lib.planner.rates import Rates
from diffinf_lib.planner.recipe import Amounts, Recipe, StageCost, amounts_of, recipe_of, stage_costs

__all__ = [
    "Amounts",
    "Plan",
    "Rates",
    "Recipe",
    "StageCost",
    "StageEstimate",
    "amounts_of",
    "estimate",
    "recipe_of",
    "stage_costs",
]
