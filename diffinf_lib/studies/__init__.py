"""Studies: the book's experiments, each a class of its own; see `Study` for what those on one run share."""

from diffinf_lib.studies.answers import DecompositionConfig
from diffinf_lib.studies.compression import CompressionStudy
from diffinf_lib.studies.curvatures import CurvatureChoice, CurvatureStudy
from diffinf_lib.studies.decomposition import Decomposition
from diffinf_lib.studies.draws import DrawsCell, DrawsStudy
from diffinf_lib.studies.ladder import LADDERS, LadderStudy, Rung
from diffinf_lib.studies.measuring import MeasuringStudy
from diffinf_lib.studies.methods import MethodCell, MethodsStudy
from diffinf_lib.studies.offers import OfferCell, OffersStudy
from diffinf_lib.studies.protocol import ProtocolCell, ProtocolStudy
from diffinf_lib.studies.rectify import RectifyStudy
from diffinf_lib.studies.removal import RemovalConfig, RemovalStudy
from diffinf_lib.studies.solves import SolveCell, SolvesStudy
from diffinf_lib.studies.study import Study
from diffinf_lib.studies.timesteps import TimestepStudy

__all__ = [
    "LADDERS",
    "CompressionStudy",
    "CurvatureChoice",
    "CurvatureStudy",
    "Decomposition",
    "DecompositionConfig",
    "DrawsCell",
    "DrawsStudy",
    "LadderStudy",
    "MeasuringStudy",
    "MethodCell",
    "MethodsStudy",
    "OfferCell",
    "OffersStudy",
    "ProtocolCell",
    "ProtocolStudy",
    "RectifyStudy",
    "RemovalConfig",
    "RemovalStudy",
    "Rung",
    "SolveCell",
    "SolvesStudy",
    "Study",
    "TimestepStudy",
]
