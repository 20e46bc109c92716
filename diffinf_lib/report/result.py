"""Result: what `attribute` found, as the page shows it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.configuration import MeasurementConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.report.findings import CopyGroup, LabelDoubt, Likeness, Unusual
from diffinf_lib.report.text import counted, readable
from diffinf_lib.shapes import Images, PerExample, Scores

COMPARED_AT_ONCE = 256
"""Images whose pixels are compared at a time."""


@dataclass(frozen=True, eq=False)
class Named:
    """Images with the files they came from.

    Attributes:
        images: in pixels, as people see them.
        names: of each image, the path of its file within its folder.
        class_names: what the labels count.
        notes: what was done while reading them, a sentence each.
        latents: of the same images, where the network denoises latents and they were needed; None else.
    """

    images: ImageSet
    names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    latents: ImageSet | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def attributed(self) -> ImageSet:
        """What the network takes of the images: their latents where there are any, else their pixels."""
        return self.images if self.latents is None else self.latents

    def class_of(self, place: int) -> str | None:
        """The name of an image's class, where the folder has several."""
        label = int(self.images.labels[place])
        return self.class_names[label] if label >= 0 and len(self.class_names) > 1 else None


@dataclass(frozen=True, eq=False)
class Findings:
    """Candidates to look at among the training images, the clearest first.

    Attributes:
        unusual: the images with the largest self-influence, flagged or not.
    """

    copies: tuple[CopyGroup, ...]
    unusual: tuple[Unusual, ...]
    label_doubts: tuple[LabelDoubt, ...]

    @property
    def flagged(self) -> list[Unusual]:
        """The unusual images that stand apart from the rest."""
        return [found for found in self.unusual if found.flagged]


@dataclass(frozen=True, eq=False)
class Report:
    """What `attribute` found.

    Attributes:
        scores: `[D, Q, N]`, float64, for each damping: how the measurement of a query would change if a training image were
            left out.
        pixel_distances: root mean square difference of pixels, in units of their whole range, `[Q, N]`.
        self_influence: of each training image on its own loss, `[N]`.
        likeness: how training images resemble one another.
        made: options, versions and cost.
    """

    folder: Path
    train: Named
    queries: Named
    dampings: tuple[float, ...]
    measurement: MeasurementConfig
    scores: Float[Tensor, "D Q N"]
    pixel_distances: Scores
    self_influence: PerExample
    likeness: Likeness
    findings: Findings
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def page(self) -> Path:
        """The page to open in a browser."""
        return self.folder / "index.html"

    @property
    def support(self) -> Scores:
        """Scores of the first damping, signed so that a positive one makes the query more likely."""
        return self.scores[0] if self.measurement.direction != "more likely" else -self.scores[0]

    def order(self, query: int) -> Int[Tensor, "N"]:
        """Training images for a query, from the one that makes it most likely to the one that makes it least likely."""
        return self.support[query].argsort(descending=True, stable=True)

    def top(self, query: int | str, count: int = 10) -> list[tuple[str, float]]:
        """The training files that make a query most likely, and their scores.

        Args:
            query: its position, or its file's name.
        """
        place = query if isinstance(query, int) else self._place(query)
        return [(self.train.names[n], float(self.scores[0, place, n])) for n in self.order(place)[:count].tolist()]

    def _place(self, name: str) -> int:
        names: Sequence[str] = self.queries.names
        require(name in names, f"query={name!r}: no such file among the queries; report.queries.names lists them")
        return names.index(name)

    def __str__(self) -> str:
        found = self.findings
        count = len(self.train.class_names)
        classes = f" of {counted(count, 'class', 'classes')}" if count > 1 else ""
        lines = [
            f"{counted(len(self.queries), 'query', 'queries')}, {counted(len(self.train), 'training image')}{classes}",
            f"to look at: {counted(len(found.copies), 'group')} of copies, {counted(len(found.flagged), 'unusual image')}, "
            f"{counted(len(found.label_doubts), 'doubtful label')}",
        ]
        for query in range(min(3, len(self.queries))):
            names = ", ".join(readable(name) for name, _ in self.top(query, 3))
            lines.append(f"{readable(self.queries.names[query])}: {names}, …")
        return "\n".join([*lines, f"page: {self.page}"])


def pixel_distances(queries: Float[Tensor, "Q C H W"], train: Images) -> Scores:
    """Root mean square difference of pixels, in units of their range: 0 for the same image, 1 for black and white.

    A few images are in memory at a time: a mapped folder of them may be larger.
    """
    pixels = queries[0].numel()
    rows = [
        torch.cat([_apart(some, others) for others in train.split(COMPARED_AT_ONCE)], dim=1)
        for some in queries.split(COMPARED_AT_ONCE)
    ]
    return torch.cat(rows) / (2 * pixels**0.5)


def _apart(some: Float[Tensor, "Q C H W"], others: Images) -> Scores:
    flat = some.flatten(1).double(), others.flatten(1).double()
    return torch.cdist(*flat, compute_mode="donot_use_mm_for_euclid_dist")
