"""Experiments: papermill templates, the graph of launches that a preset needs, their records, costs and state.

Nothing here loads torch before it has to: a workflow engine reads this package for every job.
"""

from diffinf_lib.experiments.graph import Experiment, Job
from diffinf_lib.experiments.records import holds, launch_recorded
from diffinf_lib.experiments.templates import (
    KINDS,
    check_parameters,
    known_parameters,
    launch,
    parse_parameters,
    template_path,
    templates_root,
)

__all__ = [
    "KINDS",
    "Experiment",
    "Job",
    "check_parameters",
    "holds",
    "known_parameters",
    "launch",
    "launch_recorded",
    "parse_parameters",
    "template_path",
    "templates_root",
]
