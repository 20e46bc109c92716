"""Figure: what every interactive figure is: data and a still picture as HTML, brought to life by one script.

In the book the script is one file of the site, and a fragment carries data only. Elsewhere (JupyterLab, Colab, VS Code) each
fragment carries script and style with it: there an output may stand in a frame of its own, be shown without the one
before it, or be read back from a saved notebook. The script is safe to run any number of times.
"""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import files
from typing import Any, ClassVar

from diffinf_lib.errors import require
from diffinf_lib.figures.style import SITE
from diffinf_lib.interactive.controls import Control, Preset, State, merged, resolved
from diffinf_lib.interactive.packing import script_json

LARGEST = 150_000
"""Bytes of a figure's HTML, without the script."""


def asset(name: str) -> str:
    """The script `diffinf-interactive.js` or the style `diffinf-interactive.css`."""
    return (files("diffinf_lib.interactive") / "static" / name).read_text(encoding="utf-8")


@dataclass(frozen=True, eq=False, kw_only=True)
class Figure:
    """An interactive figure, shown by Jupyter as it is.

    Attributes:
        caption: below the figure, plain text.
        alternative: what the drawing shows, for those who cannot see it; the numbers are told by `told`.
        presets: buttons that make the points one after another.
        start: the state it opens in, by control; the first option of those not named.
    """

    caption: str = ""
    alternative: str = ""
    presets: Sequence[Preset] = ()
    start: Mapping[str, Any] = field(default_factory=dict)

    kind: ClassVar[str] = ""

    @property
    def views(self) -> "tuple[Figure, ...]":
        """The drawings it is made of."""
        return (self,)

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """The controls that this drawing depends on."""
        raise NotImplementedError

    @property
    def opening(self) -> State:
        """Places of the options it opens with where these are not the first ones."""
        return {}

    @property
    def own_alternative(self) -> str:
        """Alternative text for a drawing that was given none."""
        return self.alternative or self.kind

    def payload(self) -> dict[str, Any]:
        """What the script needs to draw it."""
        raise NotImplementedError

    def tell(self, state: State) -> str:
        """What the script says below the drawing in a state."""
        raise NotImplementedError

    def still(self, state: State) -> str:
        """HTML of a state without a script."""
        raise NotImplementedError

    @cached_property
    def controls(self) -> tuple[Control, ...]:
        """Everything that can be chosen."""
        return merged(control for view in self.views for control in view.own_controls)

    def state(self, **wanted: Any) -> dict[str, int]:
        """The state it opens in, with other options for the controls that are named.

        Raises:
            ConfigurationError: no such control or option.
        """
        first = {control.name: 0 for control in self.controls}
        for view in self.views:
            first |= view.opening
        return first | resolved(self.controls, self.start) | resolved(self.controls, wanted)

    def told(self, **wanted: Any) -> str:
        """What the figure says in a state, from the same definitions as the script; see `state`."""
        state = self.state(**wanted)
        return " ".join(sentence for view in self.views if (sentence := view.tell(state)))

    def data(self) -> dict[str, Any]:
        """All that the script is given."""
        start = self.state()
        presets = [
            {"name": preset.name, "note": preset.note, "state": resolved(self.controls, preset.state)}
            for preset in self.presets
        ]
        return {
            "controls": [control.payload(start[control.name]) | self._pictures(control) for control in self.controls],
            "presets": presets,
            "views": [{"kind": view.kind, "alternative": view.own_alternative} | view.payload() for view in self.views],
        }

    def _pictures(self, control: Control) -> dict[str, Any]:
        """Pictures for the options of a control, where one of the views has some."""
        found: dict[str, Any] = {}
        for view in self.views:
            found |= view.option_pictures(control)
        return found

    def option_pictures(self, control: Control) -> dict[str, Any]:
        """A sheet of pictures to choose the options of `control` by, if there is one."""
        return {}

    @cached_property
    def fragment(self) -> str:
        """The figure's HTML, without the script.

        Raises:
            ConfigurationError: it would be too large for a page, or a preset or the start asks for what is not there.
        """
        state = self.state()
        still = "".join(view.still(state) for view in self.views)
        words = f"{self.told()} {self._note(state)}".strip()
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        found = (
            f'<figure class="diffinf-interactive"><div class="diffinf-fallback">{still}<p>{html.escape(words)}</p></div>'
            f'<script type="application/json">{script_json(self.data())}</script>{caption}</figure>'
        )
        size = len(found.encode())
        require(
            size <= LARGEST,
            f"{type(self).__name__} of {size // 1000} kB: a figure may have {LARGEST // 1000}; show fewer "
            "queries, images or options, or give `by` 16 bits",
        )
        return found

    def _note(self, state: State) -> str:
        """Of the first preset that holds in a state."""
        holding = (preset for preset in self.presets if resolved(self.controls, preset.state).items() <= state.items())
        return next((preset.note for preset in holding), "")

    def html(self, site: bool = False) -> str:
        """The figure as HTML.

        Args:
            site: for a page that loads the script and the style itself; otherwise they come with it.
        """
        if site:
            return self.fragment
        style, script = asset("diffinf-interactive.css"), asset("diffinf-interactive.js")
        return f"<style>{style}</style>{self.fragment}<script>{script}</script>"

    def _repr_html_(self) -> str:
        return self.html(site=os.environ.get(SITE) == "1")  # the book serves script and style as files


@dataclass(frozen=True, eq=False)
class Together(Figure):
    """Several drawings in one figure, moved by the same controls; those of one name are one.

    Attributes:
        parts: the drawings; their own captions, presets and starts are left out.
    """

    parts: Sequence[Figure]

    @property
    def views(self) -> tuple[Figure, ...]:
        """The drawings, side by side where there is room."""
        return tuple(view for part in self.parts for view in part.views)
