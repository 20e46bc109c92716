"""Report: one command from a model and a folder of images to a page for people, and to what is wrong with the images."""

from diffinf_lib.report.findings import (
    CopyGroup,
    LabelDoubt,
    Likeness,
    Unusual,
    compare,
    find_copies,
    find_label_doubts,
    find_unusual,
)
from diffinf_lib.report.job import attribute
from diffinf_lib.report.page import render
from diffinf_lib.report.result import Findings, Named, Report

__all__ = [
    "CopyGroup",
    "Findings",
    "LabelDoubt",
    "Likeness",
    "Named",
    "Report",
    "Unusual",
    "attribute",
    "compare",
    "find_copies",
    "find_label_doubts",
    "find_unusual",
    "render",
]
