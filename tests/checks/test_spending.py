"""The budget: a shop that keeps its books, and a judge who has seen other subsets."""

import numpy as np
import pytest
import torch
from annotations import unchecked

import diffinf_lib as di
from diffinf_lib.checks import CheckFailed
from diffinf_lib.evaluation import image_effects, rectified

CHEAP, GOOD = "final, 8 draws, EK-FAC", "half-way, 8 draws, conjugate gradients, 4"


def refused(function, **options):
    with unchecked(), pytest.raises(CheckFailed) as failure:
        di.checks.budget(function, **options)
    message = str(failure.value)
    assert message.startswith("budget: ") and "\n" not in message
    return message


def test_good_scores_within_the_budget_pass_and_are_judged_on_hidden_subsets():
    spent = di.checks.budget(lambda shop: torch.from_numpy(rectified(shop.buy(GOOD), "clamp")))
    assert spent.passes <= spent.budget == 100_000 and spent.tried == (GOOD,)
    assert spent.hidden > di.checks.budget(lambda shop: shop.buy(CHEAP)).hidden
    assert spent.interval[0] < spent.hidden < spent.interval[1]
    assert repr(spent).startswith("LDS on hidden subsets: ") and f"{spent.passes:,} of 100,000 passes" in repr(spent)


def test_what_two_recipes_share_is_paid_for_once():
    shop = di.checks.open_shop()
    one, two = GOOD.replace("4", "1"), GOOD.replace("4", "3")
    assert shop.price(one, two) == shop.price(two) > shop.price(one)
    queries, images = len(shop.truth.query_ids), len(shop.truth.train_ids)
    assert shop.price(two) - shop.price(one) == 2 * queries * images
    kfac = CHEAP.replace("EK-FAC", "K-FAC")
    shop.buy(CHEAP)
    assert shop.left == shop.budget - shop.price(CHEAP) and shop.price(CHEAP, kfac) == shop.price(CHEAP)
    elsewhere = CHEAP.replace("final", "half-way")
    assert shop.price(CHEAP, elsewhere) == shop.price(CHEAP) + shop.price(elsewhere)


def test_the_lds_is_that_of_the_scores_in_the_runs_order():
    """Shuffling and eight bits change nothing that counts."""
    shop = di.checks.open_shop()
    offers = di.load_bundle("digits-offers").metrics["offers"]["held-out"]
    stored = {offer["name"]: offer["lds"] for offer in offers}
    assert list(stored) == list(shop.recipes)
    whole = di.load_ground_truth("digits-ground-truth", "held-out")
    halves = [di.lds(di.checks.open_shop(10**6).buy(CHEAP), shop.truth, bootstrap=2).mean, stored[CHEAP]]
    assert abs(halves[0] - halves[1]) < 0.06 and len(shop.truth.masks) == len(whole.masks) // 2


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda shop: shop.buy(GOOD.replace("8", "64")), "brings the bill to 114,192 passes, and there are 100,000"),
        (lambda shop: sum(shop.buy(name) for name in shop.recipes), "brings the bill to"),
        (lambda shop: shop.buy("the best"), "recipe='the best': give one of "),
        (lambda shop: -shop.buy(CHEAP), "the sign is the other way round"),
        (lambda shop: shop.buy(CHEAP).T, "shape [300, 57], not [57, 300]: it is transposed"),
        (lambda shop: shop.buy(CHEAP)[:-1], "shape [56, 300], not [57, 300]"),
        (lambda shop: shop.buy(CHEAP).mean(), "shape [], not [57, 300]"),
        (lambda shop: shop.buy(CHEAP).log(), "some of the scores are NaN or infinite"),
        (lambda shop: shop.buy(CHEAP).numpy(), "numpy array; give a torch tensor"),
        (lambda shop: None, "returns None"),
        (lambda shop: shop.sell(CHEAP), "the function raised AttributeError"),
        (lambda shop: torch.from_numpy(image_effects(shop.truth)), "nothing was bought"),
        (
            lambda shop: shop.buy(CHEAP) * 0 + torch.from_numpy(image_effects(shop.truth)),
            "on those shown: the scores were fitted to the subsets that you saw",
        ),
        (lambda shop: shop.buy(CHEAP).abs(), "as it is; keep its order"),
        (lambda shop: 1.0, "shape [], not [57, 300]"),
    ],
)  # fmt: skip
def test_typical_wrong_answers_are_refused(function, said):
    assert said in refused(function)


def test_scores_that_know_the_hidden_subsets_stand_in_another_order():
    """Effects of all subsets, those that judge among them, are the best scores there could be, in the run's order."""
    whole = di.load_ground_truth("digits-ground-truth", "held-out")
    effects = torch.from_numpy(image_effects(whole))
    assert di.lds(effects, whole, bootstrap=2).mean > 0.9
    message = refused(lambda shop: shop.buy(CHEAP) * 0 + effects)
    assert "keep its order of queries and images" in message


def test_another_budget():
    assert "and there are 30,000" in refused(lambda shop: shop.buy(GOOD), passes=30_000)
    assert di.checks.budget(lambda shop: shop.buy(CHEAP), passes=30_000).passes <= 30_000
    assert "given; give the function itself" in refused(np.zeros(3))
