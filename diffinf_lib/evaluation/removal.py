"""Removal: whether leaving out the images that influence names changes a query's measurement, and more than others do.

For one query the top-k, the bottom-k or k random training images are left out, the model is retrained, and the measurement is
compared with that of models retrained on everything (Mlodozeniec et al. 2025, Fig. 3). Random removal is the control: less data
alone changes the measurement too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float, Real

from diffinf_lib.errors import DataError, require
from diffinf_lib.evaluation.statistics import bootstrap_indices, percentile_interval

OfRemovals = Real[np.ndarray, "Q _K"] | Real[np.ndarray, "Q _sets _K"]

CONDITIONS = ("top", "random", "bottom")
"""The usual conditions, in the order in which their differences are taken: first minus second."""


@dataclass(frozen=True)
class Change:
    """A mean change of the measurement, in its own units.

    Attributes:
        mean: over queries, sets and seeds.
        interval: bootstrap interval of the mean.
        per_query: `[Q]`.
        positive: share of the queries whose change is above 0.
    """

    mean: float
    interval: tuple[float, float]
    per_query: Float[np.ndarray, "Q"]
    positive: float

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.mean:+.3g} [{low:+.3g}, {high:+.3g}], above 0 for {100 * self.positive:.0f} % of queries"


@dataclass(frozen=True)
class RemovalOutcome:
    """What removal did.

    Attributes:
        changes: for each condition, the measurement after retraining less that of models retrained on everything.
        differences: for each pair of conditions, named `top − random`, the paired difference of their changes.
        relative: mean change of each condition, as a fraction of the size of the full models' mean measurement; none where
            the changes themselves were given.
    """

    changes: dict[str, Change]
    differences: dict[str, Change]
    relative: dict[str, float]

    def __str__(self) -> str:
        rows = {**self.changes, **self.differences}
        return "\n".join(f"{name:16} {change}" for name, change in rows.items())


def removal_outcome(
    conditions: Mapping[str, OfRemovals],
    full: Real[np.ndarray, "Q K"] | None,
    *,
    bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> RemovalOutcome:
    """Changes of the measurement after removal, with intervals over queries, removed sets and seeds together.

    Every axis is resampled by position: the r-th seed of all conditions and of the full models is drawn together, so seeds that
    share initial weights and order of batches stay paired, and so do removed sets that are shared by all queries. From
    n values n − 1 are drawn, which makes the spread of the mean unbiased (Rao and Wu 1988); an axis of one value is taken as
    given. What belongs to one query and one seed is drawn on both axes, so intervals are cautious; with two seeds, what
    all queries share in a seed is known from one difference only.

    Args:
        conditions: measurements after retraining, by name, such as `top`, `random`, `bottom`: each `[Q, K]`, or `[Q, sets, K]`
            where several sets were removed in turn. The order fixes which differences are taken: first minus later.
        full: measurements of models retrained on everything, `[Q, K]`; K may differ from the conditions'. None where the
            conditions are changes already, such as distances between pictures.
        bootstrap: number of resamples.

    Raises:
        ConfigurationError: no conditions, or arrays of the wrong shape.
        DataError: measurements that are NaN or infinite.
    """
    require(len(conditions) > 0, "conditions: there are none; give measurements by name, such as top and random")
    whole = _checked("full", np.zeros((len(next(iter(conditions.values()))), 1)) if full is None else full, None)
    values = {name: _checked(name, given, len(whole)) for name, given in conditions.items()}
    baseline = whole.mean((1, 2))
    changes = {name: array.mean((1, 2)) - baseline for name, array in values.items()}
    drawn = _resampled({**values, "": whole}, bootstrap, seed)
    shifts = {name: drawn[name] - drawn[""] for name in values}
    return RemovalOutcome(
        changes={name: _change(changes[name], shifts[name], confidence) for name in values},
        differences={
            f"{a} − {b}": _change(changes[a] - changes[b], shifts[a] - shifts[b], confidence)
            for a, b in combinations(values, 2)
        },
        relative={}
        if full is None
        else {name: float(change.mean() / abs(baseline.mean())) for name, change in changes.items()},
    )


def _checked(name: str, given: OfRemovals, queries: int | None) -> Float[np.ndarray, "Q sets K"]:
    values = np.asarray(given, dtype=np.float64)
    shapes = "[Q, K]" if queries is None else "[Q, K] or [Q, sets, K]"
    ranks = (2,) if queries is None else (2, 3)
    require(values.ndim in ranks and values.size > 0, f"{name}: measurements of shape {values.shape}; give {shapes}")
    require(
        queries in (None, len(values)),
        f"{name}: {len(values)} queries, but the full models have {queries}; give as many",
    )
    require(bool(np.isfinite(values).all()), f"{name}: some measurements are NaN or infinite; measure again", DataError)
    return values[:, None] if values.ndim == 2 else values


def _resampled(
    arrays: Mapping[str, Float[np.ndarray, "Q _sets _K"]], repeats: int, seed: int
) -> dict[str, Float[np.ndarray, "{repeats}"]]:  # noqa: F821
    """The mean of each array in every resample; axes of equal length share their draws, kind by kind."""
    generator = np.random.default_rng(seed)
    draws: dict[tuple[str, int], np.ndarray] = {}

    def shares(kind: str, count: int) -> Float[np.ndarray, "R {count}"]:
        """How much of each resample every one of `count` values makes up, `[R, count]`."""
        if (kind, count) not in draws:
            drawn = bootstrap_indices(count, repeats, generator)[:, : max(1, count - 1)]
            draws[kind, count] = np.stack([(drawn == value).mean(1) for value in range(count)], axis=1)
        return draws[kind, count]

    return {
        name: np.einsum(
            "qrk,bq,br,bk->b",
            values,
            *(shares(kind, size) for kind, size in zip(("query", "set", "seed"), values.shape, strict=True)),
            optimize=True,
        )
        for name, values in arrays.items()
    }


def _change(per_query: Float[np.ndarray, "Q"], resampled: Float[np.ndarray, "R"], confidence: float) -> Change:
    interval = percentile_interval(resampled, confidence)
    return Change(float(per_query.mean()), interval, per_query, float((per_query > 0).mean()))
