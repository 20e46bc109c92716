"""Shown: which part of a report has room on its page, and what a click tells about a training image."""

import math
from functools import cached_property
from typing import Any

from jaxtyping import Int
from torch import Tensor

from diffinf_lib.report.result import Report
from diffinf_lib.report.text import readable

QUERIES = 48
"""Queries on the page; all of them are in the files beside it."""
ROW = 8
"""Training images in a row of the most supporting, or the most opposing."""
NEAREST = 4
"""Training images that are nearest by pixels."""
GROUPS, MEMBERS, UNUSUAL, DOUBTS = 24, 12, 12, 24
"""Groups of copies and images of each, unusual images, and doubtful labels on the page."""
TOLD, TOLD_SHARE = 12, 0.1
"""Queries that a click on a training image lists: so many, in whose order it is among the first or last share."""


class Shown:
    """The queries and training images that the page shows, by position."""

    def __init__(self, report: Report):
        self.report = report
        self.queries = list(range(min(QUERIES, len(report.queries))))

    def supporting(self, query: int) -> list[int]:
        """The training images that make a query most likely, the strongest first."""
        return self._signed(query, 1)

    def opposing(self, query: int) -> list[int]:
        """The training images that make a query least likely, the strongest first."""
        return self._signed(query, -1)

    def _signed(self, query: int, sign: int) -> list[int]:
        order = self.report.order(query)
        order = order if sign > 0 else order.flip(0)
        return [n for n in order[:ROW].tolist() if sign * float(self.report.support[query, n]) > 0]

    def nearest(self, query: int) -> list[int]:
        """The training images nearest by pixels."""
        return self.report.pixel_distances[query].argsort(stable=True)[:NEAREST].tolist()

    @cached_property
    def images(self) -> list[int]:
        """Every training image that appears anywhere."""
        found = self.report.findings
        places = {n for q in self.queries for row in (self.supporting, self.opposing, self.nearest) for n in row(q)}
        places |= {n for group in found.copies[:GROUPS] for n in group.members[:MEMBERS]}
        places |= {unusual.image for unusual in found.unusual[:UNUSUAL]}
        return sorted(places | {doubt.image for doubt in found.label_doubts[:DOUBTS]})

    @cached_property
    def ranks(self) -> Int[Tensor, "Q N"]:
        """Place of every training image in a query's order, from 1 for the most supporting, `[Q, N]`."""
        return (-self.report.support).argsort(dim=1, stable=True).argsort(dim=1) + 1

    def data(self) -> dict[str, Any]:
        """What the script needs: for each training image shown its name, class and the queries that it counts for."""
        report = self.report
        return {
            "count": len(report.train),
            "size": report.train.images.shape[:0:-1],
            "querySize": report.queries.images.shape[:0:-1],
            "queries": {q: readable(report.queries.names[q]) for q in self.queries},
            "images": {n: self._of_image(n) for n in self.images},
        }

    def _of_image(self, n: int) -> dict[str, Any]:
        report, count = self.report, len(self.report.train)
        self_rank = int((report.self_influence > report.self_influence[n]).sum()) + 1
        ranks = self.ranks[self.queries, n].tolist()
        weight = [min(rank, count + 1 - rank) for rank in ranks]  # the ends of an order are what counts
        first = max(ROW, math.ceil(TOLD_SHARE * count))
        told = sorted((q for q in self.queries if weight[q] <= first), key=lambda q: weight[q])[:TOLD]
        return {
            "name": readable(report.train.names[n]),
            "class": None if report.train.class_of(n) is None else readable(str(report.train.class_of(n))),
            "selfRank": self_rank,
            "queries": [[q, ranks[q], float(report.scores[0, q, n])] for q in told],
            "alike": [
                [readable(report.train.names[m]), round(float(cosine), 3)]
                for m, cosine in zip(
                    report.likeness.nearest[n, :3].tolist(), report.likeness.cosines[n, :3], strict=True
                )
            ],
        }
