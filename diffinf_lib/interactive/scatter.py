"""Scatter: what scores predict for subsets of the training images, against what retraining on them measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from scipy.stats import norm, rankdata, t

from diffinf_lib.errors import require
from diffinf_lib.evaluation import GroundTruth, predicted_changes, spearman
from diffinf_lib.evaluation.lds import MINIMUM_SUBSETS, TUNABLE_SUBSETS
from diffinf_lib.evaluation.resampling import Estimate, Resamples, resample_spearman
from diffinf_lib.figures.style import BLUE, subplots
from diffinf_lib.interactive.controls import Choice, Control, Slider, State, Switched, switched
from diffinf_lib.interactive.figure import Figure
from diffinf_lib.interactive.numbers import capital, text
from diffinf_lib.interactive.packing import packed_codes, packed_numbers, sheet
from diffinf_lib.interactive.stills import chart

QUERIES = 12
"""Queries that are shown unless others are asked for."""
RESAMPLES = 400
"""Resamples of subsets for an interval; the script draws the same."""

Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
TRANSFORMS: dict[str, tuple[str, Rule]] = {
    "as they are": ("plain", lambda scores, order: scores),
    "plus a constant": ("constant", lambda scores, order: scores + np.abs(scores).max(-1, keepdims=True)),
    "negative ones set to 0": ("clamp", lambda scores, order: scores.clip(min=0)),
    "absolute values": ("absolute", lambda scores, order: np.abs(scores)),
    "shuffled": ("shuffle", lambda scores, order: scores[..., order]),
}
"""What is done to the scores `[Q, N]` of each query before they are added up: its name in the script, and the rule."""


def resampled_subsets(subsets: int, repeats: int = RESAMPLES) -> np.ndarray:
    """How often each subset is drawn in each resample, `[repeats, subsets]`: the finaliser of MurmurHash3 on a counter."""
    bits = np.arange(1, repeats * subsets + 1, dtype=np.uint64)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor) & np.uint64(0xFFFFFFFF)
    bits ^= bits >> np.uint64(16)
    drawn = (bits / 2**32 * subsets).astype(np.int64).reshape(repeats, subsets)
    return np.stack([np.bincount(row, minlength=subsets) for row in drawn]).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Scatter(Figure):
    """A point for each subset: the change that the scores predict, and the measurement after retraining.

    The reader chooses the query, by its picture where the ground truth has one, how many subsets and seeds count, and what is
    done to the scores; Spearman's correlation and its interval, from the same definitions as `di.lds`, follow.

    Attributes:
        scores: `[Q, N]`, or with leading axes for controls.
        truth: subsets and their measurements.
        shown: which queries, by position; default the first twelve.
        x_label, y_label: of the axes.
    """

    scores: Any
    truth: GroundTruth
    shown: Sequence[int] | None = None
    x_label: str = "predicted: sum of scores left out"
    y_label: str = "measured after retraining"

    kind: ClassVar[str] = "scatter"

    def __post_init__(self) -> None:
        shape = (len(self.truth.query_ids), len(self.truth.train_ids))
        require(
            self._scores.shape == shape,
            f"scores of shape {self._scores.shape}: this ground truth needs [Q, N] = {shape}",
        )
        subsets = len(self.truth.masks)
        require(
            subsets >= MINIMUM_SUBSETS,
            f"{subsets} subsets: too few for a rank correlation; give at least {MINIMUM_SUBSETS}",
        )
        inside = all(0 <= query < shape[0] for query in self._shown)
        require(len(self._shown) > 0 and inside, f"shown={list(self._shown)}: give positions from 0 to {shape[0] - 1}")

    @cached_property
    def _scores(self) -> Switched:
        return switched(self.scores)

    @cached_property
    def _shown(self) -> tuple[int, ...]:
        return tuple(range(min(QUERIES, len(self.truth.query_ids))) if self.shown is None else self.shown)

    @cached_property
    def query(self) -> Choice:
        """Which query."""
        return Choice("Query", tuple(f"query {query}" for query in self._shown))

    @cached_property
    def transform(self) -> Choice:
        """What is done to the scores."""
        return Choice("Scores", tuple(TRANSFORMS))

    @cached_property
    def subsets(self) -> Slider:
        """How many subsets count, the first ones."""
        most = len(self.truth.masks)
        return Slider("Subsets", range(min(TUNABLE_SUBSETS, most), most + 1))

    @cached_property
    def seeds(self) -> Slider:
        """How many seeds are averaged, the first ones."""
        return Slider("Seeds", range(1, self.truth.measurements.shape[1] + 1))

    @cached_property
    def axes(self) -> Choice:
        """Values, or the ranks that Spearman's correlation is about."""
        return Choice("Axes", ("values", "ranks"))

    @property
    def own_controls(self) -> tuple[Control, ...]:
        """Query, what the scores depend on, transform, subsets, seeds, axes."""
        return (self.query, *self._scores.controls, self.transform, self.subsets, self.seeds, self.axes)

    @property
    def own_alternative(self) -> str:
        """Alternative text."""
        return self.alternative or f"Scatter plot, a point for each subset: {self.x_label} against {self.y_label}"

    def option_pictures(self, control: Control) -> dict[str, Any]:
        """Queries are chosen by their pictures, where the ground truth has them."""
        if control.name != self.query.name or self.truth.query_images is None:
            return {}
        return {"look": "radio", "sheet": sheet(self.truth.query_images[list(self._shown)])}

    @property
    def opening(self) -> State:
        """All subsets and all seeds."""
        return {control.name: len(control.options) - 1 for control in (self.subsets, self.seeds)}

    @cached_property
    def _order(self) -> np.ndarray:
        return np.random.default_rng(0).permutation(len(self.truth.train_ids))

    def points(self, state: State) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and measured of every query shown, `[Q, M]` each."""
        count, seeds = int(self.subsets.values[state[self.subsets.name]]), state[self.seeds.name] + 1
        truth = replace(self.truth.first_subsets(count), measurements=self.truth.measurements[:count, :seeds])
        rule = list(TRANSFORMS.values())[state[self.transform.name]][1]
        predicted = predicted_changes(rule(self._scores.at(state), self._order), truth)
        measured = self._measured[:count, :seeds].mean(1).T
        return predicted[list(self._shown)], measured

    @cached_property
    def _measured(self) -> np.ndarray:
        measured: np.ndarray = (
            self.truth.measurements[:, :, list(self._shown)].numpy().astype(np.float32).astype(np.float64)
        )
        return measured

    def estimate(self, state: State) -> Estimate:
        """Spearman's correlation of the query in a state, and its interval over subsets."""
        predicted, measured = (values[[state[self.query.name]]] for values in self.points(state))
        resamples = Resamples(resampled_subsets(measured.shape[1]), np.ones((RESAMPLES, 1)))
        return resample_spearman(predicted[None], measured, resamples)[0].estimate()

    def tell(self, state: State) -> str:
        """Spearman's correlation of the query with its interval, and the mean over the queries shown."""
        value, ends = self.estimate(state)
        low, high = (text(end, ".2f") for end in ends)
        predicted, measured = self.points(state)
        queries, seeds = len(predicted), state[self.seeds.name] + 1
        return (
            f"{capital(self.query.options[state[self.query.name]])}: Spearman {text(value, '.3f')} [{low}, {high}] "
            f"over {predicted.shape[1]} subsets and {seeds} {'seed' if seeds == 1 else 'seeds'}. Mean over {queries} "
            f"{'query' if queries == 1 else 'queries'}: {text(spearman(predicted, measured).mean(), '.3f')}."
        )

    def payload(self) -> dict[str, Any]:
        """Scores, subsets and measurements of the queries shown; the rest is computed on the page."""
        scores = self._scores.values[..., list(self._shown), :]
        fewest, most = int(self.subsets.values[0]), int(self.subsets.values[-1])
        student = [float(t.isf(0.025, count - 1) / norm.isf(0.025)) for count in range(fewest, most + 1)]
        names = {key: getattr(self, key).name for key in ("query", "transform", "subsets", "seeds", "axes")}
        return names | {
            "names": self.query.options,
            "images": scores.shape[-1],
            "fewest": fewest,
            "student": student,
            "rules": [rule for rule, _ in TRANSFORMS.values()],
            "scores": packed_numbers(scores, 32) | {"by": [control.name for control in self._scores.controls]},
            "masks": packed_codes(np.packbits(self.truth.masks.numpy(), axis=1)),
            "measured": packed_numbers(self._measured, 32) | {"by": []},
            "shuffled": packed_codes(self._order),
            "xLabel": self.x_label,
            "yLabel": self.y_label,
        }

    def still(self, state: State) -> str:
        """The points of one state."""
        predicted, measured = (values[state[self.query.name]] for values in self.points(state))
        if state[self.axes.name]:
            predicted, measured = rankdata(predicted), rankdata(measured)
        figure, axes = subplots(figsize=(4.6, 3.2))
        axes.scatter(predicted, measured, color=BLUE, s=16)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        return chart(figure, f"{self.own_alternative}. {self.tell(state)}")
