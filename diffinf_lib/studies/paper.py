"""What tests the paper's claims: differences, each positive where the paper is right, read from bundles (chapter 16)."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diffinf_lib.artifacts import load_bundle
from diffinf_lib.evaluation import GroundTruth, constancy, removal_outcome, signs_of_subsets
from diffinf_lib.evaluation.claims import Difference
from diffinf_lib.shapes import AnyScores

Interval = Sequence[float] | np.ndarray

IMAGES = {
    "digits": "3s and 8s", "digits-pair": "4s and 9s", "digits-ten": "ten digits", "fashion": "sneakers and bags",
    "cifar2-tiny": "cars and horses",
}  # fmt: skip
"""The datasets with retrained models, by preset."""

SETS = ("held-out", "generated")
"""The sets of queries."""


def ahead_of(method: str) -> list[Difference]:
    """LDS of EK-FAC influence less that of another method, both at their defaults, on every dataset."""
    return [
        _less(IMAGES[name], queries, row["difference"], row["difference_interval"])
        for name in IMAGES for queries, row in _results(name, method)
    ]  # fmt: skip


def gained_by_tuning(method: str) -> list[Difference]:
    """LDS of a method with a chosen option less that at its default, on halves that had no part in the choice."""
    return [
        _difference(IMAGES[name], queries, row["gain"], row["gain_interval"])
        for name in IMAGES for queries, row in _results(name, method)
    ]  # fmt: skip


def gained_by_the_loss(measured: str, name: str = "digits") -> list[Difference]:
    """LDS for a measurement by EK-FAC's scores of the loss, less that by scores of the measurement itself."""
    return [
        _difference(IMAGES[name], queries, row["proxy_difference"], row["proxy_difference_interval"])
        for queries, row in _results(name, "ekfac", measured, measured)
    ]


def predicted_by_the_loss(measured: str, name: str = "digits") -> list[Difference]:
    """LDS for a measurement by EK-FAC's scores of the loss: whether it is predicted at all."""
    return [
        _difference(IMAGES[name], queries, row["lds"], row["interval"])
        for queries, row in _results(name, "ekfac", "loss", measured)
    ]


def removed_beyond_chance(name: str = "digits") -> list[Difference]:
    """How much more the loss rises without the top images than without as many random ones, as a share of the loss."""
    bundle = load_bundle(f"{name}-removal")
    arrays, found = bundle.arrays, []
    for place, share in enumerate(bundle.metrics["shares"]):
        for queries in SETS:
            of = np.flatnonzero(arrays["sets"] == queries)
            full = arrays["full"][of]
            conditions = {
                "top": arrays["measurements"][place, 0][of],
                "random": arrays["random"][place].transpose(1, 0, 2)[of],
            }
            more, whole = removal_outcome(conditions, full).differences["top − random"], full.mean()
            images = f"{IMAGES[name]}, top {100 * share:g} %"
            found.append(_difference(images, queries, more.mean / whole, np.divide(more.interval, whole)))
    return found


def lost_by_format(stored: str, *, allowed: float | None = None, name: str = "digits") -> list[Difference]:
    """LDS that a format of the stored training gradients loses; with `allowed`, how much less than that it loses."""
    metrics = load_bundle(f"{name}-compression").metrics
    found = []
    for queries in SETS:
        gain, low, high = metrics["means"][f"{queries}/difference"][metrics["formats"].index(stored)][0]
        found.append(
            _less(IMAGES[name], queries, gain, (low, high))
            if allowed is None
            else _difference(IMAGES[name], queries, allowed + gain, (allowed + low, allowed + high))
        )
    return found


def ahead_of_curvature(partition: str, sharing: str, names: Sequence[str]) -> list[Difference]:
    """LDS with GGN^model and expand less that with another choice, both with EK-FAC and one damping."""
    return [
        _less(IMAGES[name], row["queries"], row["difference"], row["difference_interval"])
        for name in names for row in load_bundle(f"{name}-curvatures").metrics["results"]
        if (row["partition"], row["sharing"], row["approximation"]) == (partition, sharing, "ekfac")
    ]  # fmt: skip


def ahead_from_the_next_range(name: str = "digits") -> list[Difference]:
    """LDS for the loss in a range of timesteps by scores of the next range up, less that by scores of its own."""
    arrays = load_bundle(f"{name}-timesteps").arrays
    edges = arrays["edges"]
    return [
        _difference(f"loss at t {low} to {high - 1}", queries, float(arrays[f"{queries}/advantage"][k + 1, k]),
                    arrays[f"{queries}/advantage_interval"][k + 1, k])
        for k, (low, high) in enumerate(zip(edges[:-2], edges[1:-1], strict=True)) for queries in SETS
    ]  # fmt: skip


def rises_beyond_predicted(images: str, queries: str, scores: AnyScores, truth: GroundTruth) -> Difference:
    """Share of halves that raise a query's loss, less the share for which that was predicted."""
    excess = signs_of_subsets(scores, truth).excess
    return _difference(images, queries, excess.value, excess.interval)


def lies_between_queries(images: str, queries: str, truth: GroundTruth, *, share: float) -> Difference:
    """Share of a measurement's variance that lies between queries, not between halves and seeds, less `share`."""
    found = constancy(truth.measurements).intraclass_correlation
    low, high = found.interval
    return _difference(images, queries, found.value - share, (low - share, high - share))


def _results(name: str, method: str, attributed: str = "loss", measured: str = "loss") -> Iterator[tuple[str, Any]]:
    """A method's result on a dataset for each set of queries."""
    for row in load_bundle(f"{name}-methods").metrics["results"]:
        if (row["method"], row["attributed"], row["measured"]) == (method, attributed, measured):
            yield row["queries"], row


def _difference(images: str, queries: str, value: float, interval: Interval) -> Difference:
    low, high = map(float, interval)
    return Difference(images, queries, float(value), (low, high))


def _less(images: str, queries: str, value: float, interval: Interval) -> Difference:
    """The same difference, taken the other way round."""
    low, high = interval
    return _difference(images, queries, -value, (-high, -low))
