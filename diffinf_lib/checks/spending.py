"""Checks of spending: what a reader makes of a budget of passes, judged on retrained models not shown (chapter 13).

No answer is the right one here. Scores of many recipes are kept with their bills; the reader's function buys some and returns
scores of its own making. Images and queries stand in an order of this check's own: what was looked up elsewhere does not fit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffinf_lib.artifacts import load_bundle
from diffinf_lib.checks.answers import no_answer, raised
from diffinf_lib.checks.exercise import CheckFailed, Passed
from diffinf_lib.compression import from_int8_rows
from diffinf_lib.errors import first_few, require
from diffinf_lib.evaluation import GroundTruth, lds, load_ground_truth
from diffinf_lib.options import check_counts
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings

QUERIES = "held-out"
FITTED = 0.1
"""An LDS that is so much higher on the shown subsets than on hidden ones was fitted to them; chance makes less of a gap."""


@dataclass(eq=False)
class Shop:
    """Scores for sale.

    Attributes:
        budget: passes that may be spent.
        truth: the subsets one may look at, with the queries and images in the shop's order.
        bought: names of the recipes, in the order in which they were bought.
    """

    budget: int
    truth: GroundTruth
    _scores: Mapping[str, Tensor] = field(repr=False)
    _bills: Mapping[str, Mapping[str, int]] = field(repr=False)
    bought: list[str] = field(default_factory=list)

    @property
    def recipes(self) -> tuple[str, ...]:
        """Names of all there is."""
        return tuple(self._bills)

    @property
    def left(self) -> int:
        """Passes that are not spent yet."""
        return self.budget - self.price(*self.bought)

    def price(self, *names: str) -> int:
        """Passes for some recipes together; what several of them read is paid for once.

        Raises:
            CheckFailed: there is no such recipe.
        """
        parts: dict[str, int] = {}
        for name in names:
            require(
                name in self._bills, f"budget: recipe={name!r}: give one of {first_few(self.recipes, 24)}", CheckFailed
            )
            for part, passes in self._bills[name].items():
                parts[part] = max(passes, parts.get(part, 0))
        return sum(parts.values())

    def buy(self, name: str) -> Tensor:
        """The scores of a recipe `[Q, N]`, float64.

        Raises:
            CheckFailed: there is no such recipe, or it costs more than is left.
        """
        whole = self.price(*self.bought, name)
        require(whole <= self.budget, f"budget: {name!r} brings the bill to {whole:,} passes, and there are {self.budget:,}; "
                "buy less", CheckFailed)  # fmt: skip
        self.bought.append(name)
        return self._scores[name].clone()


@dataclass(frozen=True, repr=False)
class Spent(Passed):
    """What a budget was made into.

    Attributes:
        hidden, shown: LDS on the subsets that the function did not see, and on those that it did.
        interval: of the first.
        passes, budget: spent, and allowed.
    """

    hidden: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    shown: float = 0.0
    passes: int = 0
    budget: int = 0

    def __repr__(self) -> str:
        low, high = self.interval
        return (
            f"LDS on hidden subsets: {100 * self.hidden:.1f} % [{100 * low:.1f}, {100 * high:.1f}]; on those shown "
            f"{100 * self.shown:.1f} %. {self.passes:,} of {self.budget:,} passes went into: {'; '.join(self.tried)}."
        )


@own_settings
def open_shop(passes: int = 100_000) -> Shop:
    """The shop that `budget` gives to a function, to look around in."""
    check_counts(passes=passes)
    return _opened(passes)[0]


def _opened(passes: int) -> tuple[Shop, GroundTruth]:
    """The shop, and the hidden subsets in its order."""
    bundle, truth = load_bundle("digits-offers"), load_ground_truth("digits-ground-truth", QUERIES)
    generator = keyed_generator("checks", "shop")
    queries, images, subsets = (
        torch.randperm(count, generator=generator)
        for count in (len(truth.query_ids), len(truth.train_ids), len(truth.masks))
    )
    packed = {
        key: torch.from_numpy(bundle.arrays[f"{QUERIES}/{name}"])
        for key, name in (("values", "scores"), ("scale", "scales"))
    }
    scores = from_int8_rows(packed).double()[:, queries][:, :, images]
    offers = bundle.metrics["offers"][QUERIES]
    shown, hidden = (_reordered(truth, part.sort().values, queries, images) for part in subsets.chunk(2))
    names = [offer["name"] for offer in offers]
    bills = {offer["name"]: offer["passes"] for offer in offers}
    return Shop(passes, shown, dict(zip(names, scores, strict=True)), bills), hidden


def _reordered(truth: GroundTruth, subsets: Tensor, queries: Tensor, images: Tensor) -> GroundTruth:
    """Some subsets, with images and queries in another order and under other ids."""
    count = len(images)
    return GroundTruth(
        truth.masks[subsets][:, images], truth.measurements[subsets][:, :, queries], torch.arange(count),
        count + torch.arange(len(queries)),
    )  # fmt: skip


@own_settings
def budget(function: Callable[[Shop], Tensor], *, passes: int = 100_000) -> Spent:
    """`budget(shop)` → scores `[Q, N]`: the best you can make of what `shop` sells for its budget of passes.

    `shop.recipes` are the names of what there is; `shop.price(*names)` is what some cost together, `shop.buy(name)` buys
    one and returns its scores, `shop.left` says how many passes are left. `shop.truth` is a ground truth of half of the
    retrained models, for `di.lds`; the scores are judged on the other half.

    Args:
        passes: the budget.

    Raises:
        CheckFailed: more was spent, or the scores are worth less than those of the worst recipe as they are.
    """
    check_counts(passes=passes)
    require(callable(function), f"budget: {type(function).__name__} given; give the function itself, not what it returns",
            CheckFailed)  # fmt: skip
    shop, hidden = _opened(passes)
    scores = _returned(function, shop)
    seen, judged = (lds(scores, truth, bootstrap=count) for truth, count in ((shop.truth, 2), (hidden, 500)))
    fault = _fault(shop, hidden, seen.mean, judged.mean)
    require(fault is None, f"budget: {fault}", CheckFailed)
    return Spent(
        "budget", tuple(shop.bought), judged.mean, judged.interval, seen.mean, shop.price(*shop.bought), shop.budget
    )


def _returned(function: Callable[[Shop], Any], shop: Shop) -> Tensor:
    """The scores, if they are some."""
    try:
        found = function(shop)
    except CheckFailed:
        raise
    except Exception as error:
        raise CheckFailed(f"budget: the function raised {raised(error, function)}") from error
    wanted = (len(shop.truth.query_ids), len(shop.truth.train_ids))
    fault = no_answer(found)
    require(fault is None, f"budget: {fault}", CheckFailed)
    shape = tuple(getattr(found, "shape", ()))
    aside = ": it is transposed" if shape == wanted[::-1] else ""
    require(shape == wanted, f"budget: the scores have shape {list(shape)}, not {list(wanted)}{aside}", CheckFailed)
    require(bool(torch.isfinite(found).all()), "budget: some of the scores are NaN or infinite", CheckFailed)
    return found.detach().double()


def _fault(shop: Shop, hidden: GroundTruth, seen: float, judged: float) -> str | None:
    """What is wrong with scores of such an LDS."""
    if not shop.bought:
        return "nothing was bought; make the scores of what shop.buy(name) returns"
    said = f"LDS {100 * judged:.1f} % on hidden subsets"
    if judged < -FITTED:
        return f"{said}: the sign is the other way round"
    if seen - judged > FITTED:
        return f"{said} and {100 * seen:.1f} % on those shown: the scores were fitted to the subsets that you saw"
    worst = min(lds(scores, hidden, bootstrap=2).mean for scores in shop._scores.values())
    if judged < worst:
        return (
            f"{said}, and every recipe of the shop has {100 * worst:.1f} % or more as it is; keep its order of queries and "
            "images, and bring no scores from elsewhere"
        )
    return None
