"""Configuration: all that can be chosen, as frozen dataclasses; none loads torch, so that a wrong choice is refused at once."""

from diffinf_lib.configuration.curvature import (
    Approximation,
    BiasRule,
    CurvatureConfig,
    Partition,
    Sharing,
)
from diffinf_lib.configuration.dampings import DEFAULT_DAMPING, REPORT_DAMPING, check_dampings
from diffinf_lib.configuration.datasets import DATASETS, KNOWN_SIZES, DatasetConfig
from diffinf_lib.configuration.draws import DrawConfig, TimestepRule, check_draws
from diffinf_lib.configuration.expectations import (
    MEASUREMENT_PURPOSE,
    QUERY_PURPOSE,
    TRAIN_PURPOSE,
    Expectation,
)
from diffinf_lib.configuration.likelihood import LikelihoodConfig
from diffinf_lib.configuration.measurements import (
    MeasurementConfig,
    MeasurementName,
    QuerySet,
    as_measurement,
    proxy_sign,
)
from diffinf_lib.configuration.methods import MethodName
from diffinf_lib.configuration.objectives import Objective, ObjectiveName
from diffinf_lib.configuration.precision import Precision
from diffinf_lib.configuration.process import Process, SamplerName
from diffinf_lib.configuration.sampling import SamplingConfig
from diffinf_lib.configuration.stores import StoreFormat, StoreKind, check_formats
from diffinf_lib.configuration.training import TrainingConfig
from diffinf_lib.configuration.unet import UNetConfig

__all__ = [
    "DATASETS",
    "DEFAULT_DAMPING",
    "KNOWN_SIZES",
    "MEASUREMENT_PURPOSE",
    "QUERY_PURPOSE",
    "REPORT_DAMPING",
    "TRAIN_PURPOSE",
    "Approximation",
    "BiasRule",
    "CurvatureConfig",
    "DatasetConfig",
    "DrawConfig",
    "Expectation",
    "LikelihoodConfig",
    "MeasurementConfig",
    "MeasurementName",
    "MethodName",
    "Objective",
    "ObjectiveName",
    "Partition",
    "Precision",
    "Process",
    "QuerySet",
    "SamplerName",
    "SamplingConfig",
    "Sharing",
    "StoreFormat",
    "StoreKind",
    "TimestepRule",
    "TrainingConfig",
    "UNetConfig",
    "as_measurement",
    "check_dampings",
    "check_draws",
    "check_formats",
    "proxy_sign",
]
