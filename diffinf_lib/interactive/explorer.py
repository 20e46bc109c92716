"""Explorer: a query and the training images behind it, ranked by score."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.artifacts import Bundle
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import require
from diffinf_lib.figures import ranked
from diffinf_lib.interactive.controls import Choice, Control, State, Switched, SwitchedText, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import capital, check_form, text
from diffinf_lib.interactive.packing import packed_codes, packed_numbers, sheet, strip
from diffinf_lib.interactive.stills import pictures
from diffinf_lib.pictures import from_bytes

QUERIES = 12
"""Queries that are shown unless others are asked for."""
MORE_DIGITS = 4
"""Of a score, at most, to tell it from another; the script has the same."""


@dataclass(frozen=True, eq=False)
class Removal:
    """What became of the queries when models were trained again without some images.

    Attributes:
        name: what was left out, such as "the top 2 %".
        removed: for each query of the explorer, positions of the training images left out.
        before: measurement of the model trained on everything, `[Q]`.
        after: measurement of the models trained again, `[Q]`.
        images: what the model trained again generates from the noise of each query, `[Q, C, H, W]`.
        chance: measurement of models trained without as many random images, `[Q]`: what a change is held against.
    """

    name: str
    removed: Sequence[Sequence[int]]
    before: Float[np.ndarray, "Q"]
    after: Float[np.ndarray, "Q"]
    images: Float[Tensor, "Q C H W"] | None = None
    chance: Float[np.ndarray, "Q"] | None = None

    @classmethod
    def of_study(cls, bundle: Bundle, shown: Sequence[int]) -> list["Removal"]:
        """The outcomes in the bundle of a removal study, such as `digits-removal`, for some of its queries by position.

        Where all of them are generated, with the picture that the first model without the images draws from the query's seed.
        """
        arrays, places = bundle.arrays, list(shown)
        drawn = np.cumsum(arrays["sets"] == "generated") - 1  # of each generated query: its place among them
        has_pictures = "pictures" in arrays and bool((arrays["sets"][places] == "generated").all())
        return [
            cls(
                f"the {condition} {text(share, '.0%')}",
                [row[row >= 0].tolist() for row in arrays["removed"][s, c, places]],
                arrays["full"][places].mean(1),
                arrays["measurements"][s, c, places].mean(1),
                from_bytes(torch.tensor(arrays["pictures"][s, c, drawn[places], 0])) if has_pictures else None,
                chance=arrays["random"][s][:, places].mean((0, 2)),
            )
            for s, share in enumerate(bundle.metrics["shares"])
            for c, condition in enumerate(bundle.metrics["conditions"])
        ]

    def tell(self, query: int, form: str) -> str:
        """The outcome for one query."""
        before, after = float(self.before[query]), float(self.after[query])
        beside = "" if self.chance is None else (
            f"; without as many random images {text(float(self.chance[query]) - before, '+' + form)}"
        )  # fmt: skip
        return (
            f"Trained again without {self.name} ({len(self.removed[query])} images, crossed out): {text(before, form)} → "
            f"{text(after, form)}, a change of {text(after - before, '+' + form)}{beside}."
        )


def score_form(values: Float[np.ndarray, "rows images"]) -> str:
    """How the scores of a state are written: one digit after the point, or as many as tell the highest from the lowest."""
    largest, apart = np.abs(values).max(), values[0, 0] - values[1, 0]
    more = math.floor(math.log10(largest / apart)) if apart > 0 else 0
    return f"+.{1 + min(max(more, 0), MORE_DIGITS)}e"


@dataclass(frozen=True, eq=False)
class Explorer(Figure):
    """Choose a query; see its most positive, most negative training images, and those nearest to zero, with their scores.

    Where all scores of a query have one sign, the ends are the highest and the lowest, and nothing is nearest to zero.

    Attributes:
        train: the training images.
        queries: the images asked about.
        scores: `[Q, N]`, or with leading axes for controls: `by(scores, method, damping)`.
        shown: which queries, by position; default the first twelve.
        images: images a row.
        removals: outcomes of training again, for the queries shown; a control more.
        form: of the measurements in them.
        hint: beside the query until an image is pointed at; `texts_by(hints, method)` where it depends on controls.
        missing: what is said where a query's scores are all NaN, because nobody computed them; empty refuses NaN.
    """

    train: ImageSet
    queries: ImageSet
    scores: Any
    shown: Sequence[int] | None = None
    images: int = 8
    removals: Sequence[Removal] = ()
    form: str = ".4f"
    hint: str | SwitchedText = (
        "A score ranks the images by how much the query's measurement is predicted to rise without each."
    )
    missing: str = ""

    kind: ClassVar[str] = "explorer"

    def __post_init__(self) -> None:
        shape, wanted = self._scores.shape, (len(self.queries), len(self.train))
        require(shape == wanted, f"scores of shape {shape}: these images need [Q, N] = {wanted}")
        finite = np.isfinite(self._scores.values)
        there = finite.all() or (bool(self.missing) and (finite.all(-1) | np.isnan(self._scores.values).all(-1)).all())
        require(
            bool(there), "scores: some are NaN or infinite; score again, or leave out whole queries and say `missing`"
        )
        require(len(self._shown) > 0, "shown: give at least one query")
        inside = all(0 <= query < len(self.queries) for query in self._shown)
        require(inside, f"shown={list(self._shown)}: give positions from 0 to {len(self.queries) - 1}")
        require(1 <= self.images <= len(self.train), f"images={self.images}: give 1 to {len(self.train)}")
        check_form("form", self.form)
        for removal in self.removals:
            counts = {len(removal.removed), len(removal.before), len(removal.after)}
            counts |= set() if removal.images is None else {len(removal.images)}
            require(
                counts == {len(self._shown)},
                f"removals: {removal.name} is of {sorted(counts)} queries, {len(self._shown)} are shown; give one of each",
            )
        drawn = {removal.images is None for removal in self.removals}
        require(len(drawn) < 2, "removals: some have images and some have none; give all of them images, or none")

    @cached_property
    def _scores(self) -> Switched:
        return switched(self.scores)

    @cached_property
    def _shown(self) -> tuple[int, ...]:
        return tuple(range(min(QUERIES, len(self.queries))) if self.shown is None else self.shown)

    @cached_property
    def query(self) -> Choice:
        """Which query."""
        names = [
            f"query {q}" if self.queries.names is None else f"query {q}: {self.queries.names[q]}" for q in self._shown
        ]
        return Choice("Query", tuple(names))

    @cached_property
    def removal(self) -> Choice | None:
        """Which images were left out, if that was tried."""
        return Choice("Left out", ("nothing", *(removal.name for removal in self.removals))) if self.removals else None

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """The query, whatever the scores and the hint depend on, and what was left out."""
        of_hint = self.hint.controls if isinstance(self.hint, SwitchedText) else ()
        return (self.query, *self._scores.controls, *of_hint, *([self.removal] if self.removal else []))

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return (
            self.alternative
            or "A query and the training images with the highest and the lowest scores and those nearest to zero"
        )

    def option_pictures(self, control: Control) -> dict[str, Any]:
        """Queries are chosen by their pictures."""
        if control.name != self.query.name:
            return {}
        return {"look": "radio", "sheet": sheet(self.queries.images[list(self._shown)])}

    @cached_property
    def ends(self) -> tuple[Switched, Switched]:
        """Positions and scores of the images in each row, `[*controls, shown, rows, images]`, rows as `titles` has them."""
        scores = torch.from_numpy(self._scores.values[..., list(self._shown), :])
        flat = scores.reshape(-1, len(self.train))
        places = torch.stack([torch.stack([*ranked(row, self.images).values()]) for row in flat])
        values = flat[:, None].expand(-1, places.shape[1], -1).gather(2, places)
        controls = (*self._scores.controls, self.query)
        shape = (*(len(control.options) for control in controls), *places.shape[1:])
        return Switched(places.reshape(shape).numpy(), controls), Switched(values.reshape(shape).numpy(), controls)

    @cached_property
    def titles(self) -> tuple[str, ...]:
        """What the rows are called where scores have both signs."""
        return tuple(ranked(torch.zeros(len(self.train)), 1))

    def row_titles(self, values: Float[np.ndarray, "rows images"]) -> tuple[str, ...]:
        """What the rows are called in a state, given their scores; two of them where all scores have one sign."""
        if not values[0, 0] > 0 > values[1, 0]:
            return ("highest", "lowest")
        positive, negative = values[0].min() > 0, values[1].max() < 0
        return (self.titles[0] if positive else "highest", self.titles[1] if negative else "lowest", self.titles[2])

    @cached_property
    def _used(self) -> np.ndarray:
        return np.unique(self.ends[0].values)

    def label(self, position: SupportsIndex) -> str:
        """A training image as the figure calls it."""
        return f"training image {int(self.train.ids[position]) if self.train.names is None else self.train.names[position]}"

    def tell(self, state: State) -> str:
        """The two ends of the order, and what leaving images out did."""
        places, values = (part.at(state) for part in self.ends)
        if np.isnan(values).all():
            return f"{capital(self.query.options[state[self.query.name]])}: {self.missing}"
        form = score_form(values)
        highest, lowest = (f"{text(values[row, 0], form)} ({self.label(places[row, 0])})" for row in (0, 1))
        said = f"{capital(self.query.options[state[self.query.name]])}: highest score {highest}, lowest {lowest}."
        return " ".join(filter(None, [said, self._outcome(state)]))

    def _outcome(self, state: State) -> str:
        gone = state[self.removal.name] if self.removal else 0
        return self.removals[gone - 1].tell(state[self.query.name], self.form) if gone else ""

    def payload(self) -> dict[str, Any]:
        """The sheets of images, and positions and scores of the rows."""
        places, values = self.ends
        names = [control.name for control in places.controls]
        of_sheet = np.searchsorted(self._used, places.values)
        return {
            "query": self.query.name,
            "names": self.query.options,
            "train": sheet(self.train.images[self._used]),
            "labels": [self.label(position) for position in self._used],
            "hint": (self.hint if isinstance(self.hint, SwitchedText) else SwitchedText(self.hint)).payload(),
            "missing": self.missing,
            "rows": self.titles,
            "count": self.images,
            "total": len(self.train),
            "places": packed_codes(of_sheet, names),
            "scores": packed_numbers(values.values, 32) | {"by": names},
            **self._removals_payload(),
        }

    def _removals_payload(self) -> dict[str, Any]:
        flags = np.zeros((len(self.removals) + 1, len(self._shown), len(self._used)), dtype=np.uint8)
        for r, removal in enumerate(self.removals):
            for q, removed in enumerate(removal.removed):
                flags[r + 1, q] = np.isin(self._used, np.asarray(removed, dtype=np.int64))
        if self.removal is None:
            return {"removed": packed_codes(flags[0]), "outcomes": None}
        queries = range(len(self._shown))
        told = [["" for _ in queries], *([removal.tell(q, self.form) for q in queries] for removal in self.removals)]
        found: dict[str, Any] = {
            "control": self.removal.name,
            "told": SwitchedText(told, (self.removal, self.query)).payload(),
            "count": len(self.removals),
        }
        pictures_after = [removal.images for removal in self.removals if removal.images is not None]
        if pictures_after:
            found["sheet"] = sheet(torch.stack(pictures_after, 1).flatten(0, 1))
        return {"removed": packed_codes(flags, (self.removal.name, self.query.name)), "outcomes": found}

    def still(self, state: State) -> str:
        """The query above its rows."""
        places, values = (part.at(state) for part in self.ends)
        query = self._shown[state[self.query.name]]
        rows = [pictures(strip(self.queries.images[[query]], 72), self.query.options[state[self.query.name]], 72)]
        if np.isnan(values).all():
            return rows[0]
        titles, form = self.row_titles(values), score_form(values)
        for title, images, scores in zip(titles, places, values, strict=False):
            alternative = "; ".join(
                f"{self.label(n)}: {text(score, form)}" for n, score in zip(images, scores, strict=True)
            )
            written = " · ".join(text(score, form) for score in scores)
            row = pictures(strip(self.train.images[images], 40), f"{title}: {alternative}", 40)
            rows.append(f"<p><strong>{html.escape(title)}</strong><br>{row}<br><small>{written}</small></p>")
        return "".join(rows)
