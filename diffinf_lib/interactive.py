"""Interactive figures with two faces: live ipywidgets in JupyterLab, and a self-contained fragment in a built page.

The fragment needs no kernel and no network: images are inlined, a few lines of plain JavaScript move a native `range` or
`select`, which brings the keyboard and the screen reader along. Colours are inherited, so dark pages stay readable.
"""

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from diffinf_lib.configuration import Process
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.figures import ranked
from diffinf_lib.pictures import data_uri

_numbers = count()
_PICTURE = "image-rendering:pixelated;border:1px solid currentColor"


@dataclass(frozen=True)
class Frames:
    """A labelled control that chooses one of several frames of HTML.

    Attributes:
        label: of the control.
        names: what each frame is called; spoken and shown when it is chosen.
        frames: the HTML of each frame.
        slider: a range control, or a list to choose from.
    """

    label: str
    names: Sequence[str]
    frames: Sequence[str]
    slider: bool = True

    def _repr_html_(self) -> str:
        key = f"diffinf-{next(_numbers)}"
        last = len(self.frames) - 1
        options = "".join(f'<option value="{i}">{html.escape(name)}</option>' for i, name in enumerate(self.names))
        control = (
            f'<input type="range" id="{key}-control" min="0" max="{last}" value="0" style="width:60%">'
            if self.slider
            else f'<select id="{key}-control">{options}</select>'
        )
        frames = "".join(
            f'<div data-frame="{i}"{"" if i == 0 else " hidden"}>{f}</div>' for i, f in enumerate(self.frames)
        )
        return f"""<div class="diffinf-interactive" id="{key}">
<label for="{key}-control">{html.escape(self.label)}</label> {control}
<output for="{key}-control" aria-live="polite">{html.escape(self.names[0])}</output>
{frames}
<script>(function () {{
  const box = document.getElementById("{key}"), names = {_script_text(list(self.names))};
  const control = document.getElementById("{key}-control"), output = box.querySelector("output");
  control.addEventListener("input", function () {{
    const chosen = Number(control.value);
    output.textContent = names[chosen];
    control.setAttribute("aria-valuetext", names[chosen]);
    box.querySelectorAll("[data-frame]").forEach(function (frame) {{
      frame.hidden = Number(frame.dataset.frame) !== chosen;
    }});
  }});
}})();</script>
</div>"""

    def widget(self) -> Any:
        """The same control as live ipywidgets."""
        import ipywidgets

        options = [(name, i) for i, name in enumerate(self.names)]
        kind = ipywidgets.SelectionSlider if self.slider else ipywidgets.Dropdown
        control = kind(options=options, value=0, description=self.label, style={"description_width": "initial"})
        view = ipywidgets.HTML(self.frames[0])
        control.observe(lambda change: setattr(view, "value", self.frames[change["new"]]), names="value")
        return ipywidgets.VBox([control, view])


def _script_text(value: Any) -> str:
    """JSON that nothing in it, such as a file's name, can end the script around it."""
    return json.dumps(value).replace("<", "\\u003c")


def _picture(image: Tensor, alternative: str, size: int = 64) -> str:
    return f'<img src="{data_uri(image)}" alt="{html.escape(alternative)}" width="{size}" style="{_PICTURE}">'


def timestep_scrubber(
    image: Tensor, noise: Tensor, *, timesteps: Sequence[int], process: Process = Process()
) -> Frames:
    """One image `[C, H, W]` on its way into noise, a frame a timestep."""
    require(len(timesteps) > 0, "timesteps: give at least one")
    steps = torch.tensor(list(timesteps))
    shape = (len(steps), *image.shape)
    states = process.noisy(image.expand(shape), steps, noise.expand(shape))
    kept = process.alphas_cumprod[steps]
    names = [
        f"t = {t}: √ᾱ = {k**0.5:.2f}, √(1−ᾱ) = {(1 - k) ** 0.5:.2f}"
        for t, k in zip(timesteps, kept.tolist(), strict=True)
    ]
    frames = [_picture(state, f"the image at timestep {t}", 128) for state, t in zip(states, timesteps, strict=True)]
    return Frames("Timestep", names, frames)


def ranked_image_explorer(
    train: ImageSet, queries: ImageSet, scores: Tensor, *, shown: Sequence[int] | None = None, images: int = 8
) -> Frames:
    """Choose a query, see its most positive, most negative and most neutral training images with their scores.

    Args:
        scores: `[Q, N]`.
        shown: which queries; default the first twelve.
        images: images a row.
    """
    shown = list(range(min(12, len(queries)))) if shown is None else list(shown)
    require(len(shown) > 0, "shown: give at least one query")
    frames = [_ranked_frame(train, queries.images[q], scores[q], q, images) for q in shown]
    titles = [f"query {q}" if queries.names is None else f"query {q}: {queries.names[q]}" for q in shown]
    return Frames("Query", titles, frames, slider=False)


def _called(images: ImageSet, position: int) -> str:
    return str(int(images.ids[position])) if images.names is None else images.names[position]


def _ranked_frame(train: ImageSet, query: Tensor, scores: Tensor, number: int, images: int) -> str:
    rows = [f"<p>{_picture(query, f'query {number}', 80)}</p>"]
    for name, places in ranked(scores, images).items():
        cells = "".join(
            f'<figure style="display:inline-block;margin:2px;text-align:center">'
            f"{_picture(train.images[n], f'training image {_called(train, n)}', 48)}"
            f'<figcaption style="font-size:70%">{scores[n]:+.1e}</figcaption></figure>'
            for n in places.tolist()
        )
        rows.append(f'<p style="margin:0"><strong>{name}</strong></p><div>{cells}</div>')
    return "".join(rows)
