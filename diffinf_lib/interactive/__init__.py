"""Interactive figures: drawings that answer the reader, in a built page as in a live notebook.

A figure is made from arrays. What a reader can choose is a `Choice` or a `Slider`; `by` says which axes of an array
belong to it, and `computed` fills them. `Together` joins drawings under the same controls; a `Preset` is a button that makes
one point. One script of our own draws them, without a network; a still picture of the opening state stands where no
script runs, and in print.
"""

from diffinf_lib.interactive.controls import Choice, Preset, Slider, Switched, SwitchedText, by, computed, texts_by
from diffinf_lib.interactive.curve import Curve
from diffinf_lib.interactive.explorer import Explorer, Removal
from diffinf_lib.interactive.figure import Figure, Together
from diffinf_lib.interactive.lines import Handle, Line, Lines
from diffinf_lib.interactive.matrices import Matrices
from diffinf_lib.interactive.planner import Planner
from diffinf_lib.interactive.points import Points
from diffinf_lib.interactive.readouts import Readouts
from diffinf_lib.interactive.scatter import Scatter
from diffinf_lib.interactive.scrubber import Scrubber

__all__ = [
    "Choice",
    "Curve",
    "Explorer",
    "Figure",
    "Handle",
    "Line",
    "Lines",
    "Matrices",
    "Planner",
    "Points",
    "Preset",
    "Readouts",
    "Removal",
    "Scatter",
    "Scrubber",
    "Slider",
    "Switched",
    "SwitchedText",
    "Together",
    "by",
    "computed",
    "texts_by",
]
