"""Studies: the book's experiments on one run, each a class of its own; see `Study` for what they share."""

from diffinf_lib.studies.compression import CompressionStudy
from diffinf_lib.studies.curvatures import CurvatureChoice, CurvatureStudy
from diffinf_lib.studies.draws import DrawsCell, DrawsStudy
from diffinf_lib.studies.ladder import LadderStudy, Rung
from diffinf_lib.studies.methods import MethodCell, MethodsStudy
from diffinf_lib.studies.rectify import RectifyStudy
from diffinf_lib.studies.removal import RemovalConfig, RemovalStudy
from diffinf_lib.studies.solves import SolveCell, SolvesStudy
from diffinf_lib.studies.study import Study
from diffinf_lib.studies.timesteps import TimestepStudy

__all__ = [
    "CompressionStudy",
    "CurvatureChoice",
    "CurvatureStudy",
    "DrawsCell",
    "DrawsStudy",
    "LadderStudy",
    "MethodCell",
    "MethodsStudy",
    "RectifyStudy",
    "RemovalConfig",
    "RemovalStudy",
    "Rung",
    "SolveCell",
    "SolvesStudy",
    "Study",
    "TimestepStudy",
]
