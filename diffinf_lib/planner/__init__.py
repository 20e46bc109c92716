"""Planner: what a run will cost in FLOPs, bytes and seconds, before anything runs."""

from diffinf_lib.planner.plan import Plan, StageEstimate, estimate
from diffinf_lib.planner.rates import Rates

__all__ = ["Plan", "Rates", "StageEstimate", "estimate"]
