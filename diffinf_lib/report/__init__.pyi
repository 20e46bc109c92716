"""What a report is made of; each name is loaded when it is first asked for."""

from .findings import (
    CopyGroup as CopyGroup,
    LabelDoubt as LabelDoubt,
    Likeness as Likeness,
    Unusual as Unusual,
    compare as compare,
    find_copies as find_copies,
    find_label_doubts as find_label_doubts,
    find_unusual as find_unusual,
)
from .job import attribute as attribute
from .page import render as render
from .result import Findings as Findings, Named as Named, Report as Report
