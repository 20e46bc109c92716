"""Options of a report, and what is sensible where none are given.

The defaults are those that did best in the book: EK-FAC of GGN^model, damping 1e-6, 64 shared draws in proportion to the
signal for each training gradient. Draws of the curvature are spread over the training images: few images get more each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffinf_lib.configuration import (
    REPORT_DAMPING,
    CurvatureConfig,
    DrawConfig,
    MeasurementConfig,
    MeasurementName,
    StoreFormat,
    as_measurement,
    check_dampings,
)
from diffinf_lib.errors import require
from diffinf_lib.options import checked

CURVATURE_DRAWS = 9_000
"""Draws of all training images together for the curvature; the digits of the book take as many."""
STORE = StoreFormat("int8")
"""How training gradients are kept: a quarter of the bytes, and ranks that agree to 0.999."""
SKETCH = 4096
"""Dimension of the random projection in which training images are compared where whole gradients do not fit into memory."""
SAMPLER_STEPS = 100
"""Steps in which images are generated to be explained, at most those that the model has."""


@dataclass(frozen=True)
class ReportOptions:
    """What scores depend on beside model and images.

    Attributes:
        dampings: λ; the page shows the first.
        draws: of each training gradient.
        curvature: what is fitted, and from how many draws.
        measurement: what of the queries is attributed.
        generate: number of generated queries, 0 for images from files.
    """

    dampings: tuple[float, ...]
    draws: DrawConfig
    curvature: CurvatureConfig
    measurement: MeasurementConfig
    seed: int = 0
    generate: int = 0


def options_for(
    count: int,
    *,
    damping: float | Sequence[float] = REPORT_DAMPING,
    draws: DrawConfig | int | None = None,
    curvature: CurvatureConfig | None = None,
    measurement: MeasurementConfig | MeasurementName | None = None,
    seed: int = 0,
    generate: int = 0,
) -> ReportOptions:
    """The options of a report about so many training images; those not given are chosen.

    Raises:
        ConfigurationError: a value that cannot be used, or a measurement that needs more than images.
    """
    measurement = as_measurement(measurement)
    require(measurement.attributable and not measurement.objective.on_trajectories, f"measurement={measurement.name!r}: it "
            "cannot be attributed to images from files; give loss or elbo")  # fmt: skip
    rule = (
        draws
        if isinstance(draws, DrawConfig)
        else DrawConfig(64 if draws is None else draws, timestep_rule="signal", shared=True)
    )
    fitted = checked("curvature", curvature, CurvatureConfig | None) or curvature_for(count)
    return ReportOptions(tuple(check_dampings(damping)), rule, fitted, measurement, seed, generate)


def curvature_for(count: int) -> CurvatureConfig:
    """EK-FAC of GGN^model; an even number of draws of each image, from 4 to 60."""
    each = 2 * math.ceil(min(60, max(4, CURVATURE_DRAWS / count)) / 2)
    return CurvatureConfig(draws=DrawConfig(each))
