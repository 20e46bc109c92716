"""Tuning: the LDS of a method whose damping is chosen on other subsets than it is judged on.

A damping chosen on the ground truth that then judges it flatters the method. Here the subsets are halved: the option with the
highest LDS on one half is judged on the other, both ways, averaged over random halvings. The default option is judged on the
same halves, so the two compare. A half holds half the subsets, so both lie a little below the LDS of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from diffinf_lib.errors import require
from diffinf_lib.evaluation.ground_truth import GroundTruth
from diffinf_lib.evaluation.lds import TUNABLE_SUBSETS, mean_measurements, predicted_changes
from diffinf_lib.evaluation.resampling import Estimate, Resampled, Resamples, resample_spearman, resampled_spearman
from diffinf_lib.options import check_counts
from diffinf_lib.shapes import ScoresOfOptions


@dataclass(frozen=True, eq=False)
class TunedLDS:
    """LDS with the option chosen on other subsets, beside that of the default option on the same halves.

    Attributes:
        tuned, default: LDS on held-out halves, with intervals.
        difference: tuned − default, paired.
        options: the values chosen from, D of them.
        default_option: the default's value.
        chosen: how often each option was chosen, as shares of all halves, `[D]`.
        per_option: LDS of each option on all subsets, mean over queries, `[D]`: the curve, not to be maximised over.
        sampled: the resampled `tuned` and `default` values, for paired differences between methods.
    """

    tuned: Estimate
    default: Estimate
    difference: Estimate
    options: tuple[float, ...]
    default_option: float
    chosen: Float[np.ndarray, "D"]
    per_option: Float[np.ndarray, "D"]
    sampled: dict[str, Resampled] = field(repr=False)

    @property
    def favourite(self) -> float:
        """The option chosen most often."""
        return self.options[int(np.argmax(self.chosen))]

    def __str__(self) -> str:
        return f"tuned {self.tuned} (mostly {self.favourite:g}), default {self.default} ({self.default_option:g})"


def tuned_lds(
    scores: ScoresOfOptions,
    truth: GroundTruth,
    *,
    options: Sequence[float],
    default: float,
    splits: int = 8,
    bootstrap: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> TunedLDS:
    """The LDS of the best of several options, chosen on one half of the subsets and judged on the other.

    Intervals come from resamples of subsets and queries in which everything is redone, the choice too. A resample is halved so
    that copies of one subset fall into the same half. Of equally good options the first is chosen.

    Args:
        scores: `[D, Q, N]`, one matrix for each option.
        options: the D values, such as dampings.
        default: the value that is used without tuning, one of `options`.
        splits: random halvings, S; each serves both ways.
        bootstrap: number of resamples for the intervals.
        confidence: of the intervals.
        seed: of halvings and resamples; the same for two methods, their values are paired.

    Raises:
        ConfigurationError: scores of the wrong shape, a default that is not among the options, no splits, or too few subsets.
        DataError: scores that are NaN or infinite.
    """
    values = _checked_options(scores, options, default, splits)
    measured = mean_measurements(truth)
    queries, count = measured.shape
    require(count >= TUNABLE_SUBSETS, f"{count} subsets: too few to halve; give at least {TUNABLE_SUBSETS}")
    predicted = np.stack([predicted_changes(matrix, truth) for matrix in scores])
    resamples = Resamples.draw(queries, count, bootstrap, seed)
    whole = resample_spearman(predicted, measured, resamples)
    halving = _Halving(predicted, measured, splits, np.random.default_rng(seed))
    kept, chosen = halving.judge(np.ones((1, count)), np.full((1, queries), 1 / queries))
    drawn, _ = halving.judge(resamples.subsets, resamples.queries)
    means, usual = np.einsum("drq,rq->dr", drawn, resamples.queries), values.index(float(default))
    share = np.bincount(chosen.ravel(), minlength=len(values)) / chosen.size
    tuned, untuned = (
        Resampled(kept[row, 0], means[row], whole[like].pseudo_values, reference=whole[like].resamples)
        for row, like in ((-1, int(share.argmax())), (usual, usual))
    )
    return TunedLDS(
        tuned=tuned.estimate(confidence),
        default=untuned.estimate(confidence),
        difference=(tuned - untuned).estimate(confidence),
        options=values,
        default_option=float(default),
        chosen=share,
        per_option=np.array([option.mean for option in whole]),
        sampled={"tuned": tuned, "default": untuned},
    )


def _checked_options(
    scores: ScoresOfOptions, options: Sequence[float], default: float, splits: int
) -> tuple[float, ...]:
    values, names = tuple(float(option) for option in options), ", ".join(f"{option:g}" for option in options)
    require(len(scores) == len(values) > 0, f"scores of {len(scores)} options and {len(values)} options: give as many")
    require(float(default) in values, f"default={default}: give one of the options, {names}")
    check_counts(splits=splits)
    return values


def tuned_difference(first: TunedLDS, second: TunedLDS, *, confidence: float = 0.95) -> Estimate:
    """Tuned LDS of one method minus that of another, paired.

    Both must come from `tuned_lds` on the same ground truth with the same `splits`, `bootstrap` and `seed`.

    Raises:
        ConfigurationError: they differ in the number of queries, subsets or resamples.
    """
    a, b = first.sampled["tuned"], second.sampled["tuned"]
    shapes = [(*part.pseudo_values.shape, len(part.resamples)) for part in (a, b)]
    require(shapes[0] == shapes[1], f"queries, subsets, resamples {shapes[0]} and {shapes[1]}: tune both on one ground truth "
            "with one `bootstrap`")  # fmt: skip
    return (a - b).estimate(confidence)


@dataclass(frozen=True, eq=False)
class _Halving:
    """Choosing on one half and judging on the other, for any resamples of the subsets."""

    predicted: Float[np.ndarray, "D Q M"]
    measured: Float[np.ndarray, "Q M"]
    splits: int
    generator: np.random.Generator

    def judge(
        self, counts: Float[np.ndarray, "R M"], shares: Float[np.ndarray, "R Q"], rows: int = 512
    ) -> tuple[Float[np.ndarray, "D1 R Q"], Int[np.ndarray, "R S 2"]]:
        """LDS on the held-out halves of each resample, of every option and of the chosen ones, and which were chosen."""
        chunk, parts = max(1, rows // self.splits), []
        for start in range(0, len(counts), chunk):
            part = counts[start : start + chunk]
            keys = self.generator.random((len(part), self.splits, part.shape[1]))
            parts.append(self._judge(halves(part, keys), shares[start : start + chunk]))
        return np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts])

    def _judge(
        self, split: Float[np.ndarray, "R S 2 M"], shares: Float[np.ndarray, "R Q"]
    ) -> tuple[Float[np.ndarray, "D1 R Q"], Int[np.ndarray, "R S 2"]]:
        found = resampled_spearman(self.predicted, self.measured, split.reshape(-1, split.shape[-1]))
        found = found.reshape(len(found), *split.shape[:3], -1)
        chosen = np.einsum("drshq,rq->drsh", found, shares).argmax(0)
        held_out = found[:, :, :, ::-1]
        tuned = np.take_along_axis(held_out, chosen[None, ..., None], axis=0)
        return np.concatenate([held_out, tuned]).mean((2, 3)), chosen


def halves(counts: Float[np.ndarray, "R M"], keys: Float[np.ndarray, "R S M"]) -> Float[np.ndarray, "R S 2 M"]:
    """Each resample's counts split in two at random; all copies of a subset go to the same side.

    Args:
        keys: random numbers in [0, 1); of the subsets present, the half with the lower ones goes to the first side.
    """
    present = counts[:, None] > 0
    position = np.where(present, keys, 2.0).argsort(-1).argsort(-1)
    first = position < present.sum(-1, keepdims=True) // 2
    return np.stack([counts[:, None] * first, counts[:, None] * ~first], axis=2)
