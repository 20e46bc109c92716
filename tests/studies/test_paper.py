"""Every difference that tests the paper says what it is named after, and is positive where the paper is right."""

import numpy as np
import pytest
import torch

from diffinf_lib.artifacts import load_bundle
from diffinf_lib.evaluation import constancy, load_ground_truth, signs_of_subsets
from diffinf_lib.studies import paper


def lds(name, method, queries, attributed="loss", measured="loss"):
    kind = method, queries, attributed, measured
    (row,) = (row for row in load_bundle(f"{name}-methods").metrics["results"]
              if (row["method"], row["queries"], row["attributed"], row["measured"]) == kind)  # fmt: skip
    return row["lds"]


def values(differences):
    """By images and queries; each inside its interval."""
    found = {(one.images, one.queries): one.value for one in differences}
    assert len(found) == len(differences) > 0
    assert all(one.interval[0] <= one.value <= one.interval[1] for one in differences)
    assert all(one.interval[0] < one.interval[1] for one in differences)
    return found


@pytest.mark.parametrize("method", ["trak", "d-trak", "kfac"])
def test_influence_less_another_method(method):
    expected = {(label, queries): lds(name, "ekfac", queries) - lds(name, method, queries)
                for name, label in paper.IMAGES.items() for queries in paper.SETS}  # fmt: skip
    assert values(paper.ahead_of(method)) == pytest.approx(expected)


def test_tuning_and_measurements():
    tuned = values(paper.gained_by_tuning("trak"))
    for row in load_bundle("fashion-methods").metrics["results"]:
        if row["method"] == "trak":
            assert tuned["sneakers and bags", row["queries"]] == pytest.approx(row["tuned"] - row["half_default"])
    proxies, whole = values(paper.gained_by_the_loss("elbo")), values(paper.predicted_by_the_loss("log_likelihood"))
    for queries in paper.SETS:
        of = "3s and 8s", queries
        assert proxies[of] == pytest.approx(
            lds("digits", "ekfac", queries, "loss", "elbo") - lds("digits", "ekfac", queries, "elbo", "elbo")
        )
        assert whole[of] == lds("digits", "ekfac", queries, "loss", "log_likelihood")


def test_removal_less_random_removal():
    arrays = load_bundle("digits-removal").arrays
    found = values(paper.removed_beyond_chance())
    for place, share in enumerate(("2 %", "10 %")):
        for queries in paper.SETS:
            of = arrays["sets"] == queries
            more = arrays["measurements"][place, 0][of].mean() - arrays["random"][place][:, of].mean()
            assert found[f"3s and 8s, top {share}", queries] == pytest.approx(more / arrays["full"][of].mean())


def test_formats_of_the_gradients():
    bundle = load_bundle("digits-compression").metrics
    lost, left = values(paper.lost_by_format("int8")), values(paper.lost_by_format("int8", allowed=0.01))
    for queries in paper.SETS:
        gain = bundle["means"][f"{queries}/difference"][bundle["formats"].index("int8")][0][0]
        assert lost["3s and 8s", queries] == pytest.approx(-gain)
        assert left["3s and 8s", queries] == pytest.approx(0.01 - lost["3s and 8s", queries])


def test_curvatures():
    found = values(paper.ahead_of_curvature("loss_per_draw", "expand", ["digits", "fashion"]))
    rows = {(row["partition"], row["sharing"], row["approximation"], row["queries"]): row["lds"]
            for row in load_bundle("fashion-curvatures").metrics["results"]}  # fmt: skip
    assert len(found) == 4
    for queries in paper.SETS:
        less = rows["model", "expand", "ekfac", queries] - rows["loss_per_draw", "expand", "ekfac", queries]
        assert found["sneakers and bags", queries] == pytest.approx(less)


def test_ranges_of_timesteps():
    arrays = load_bundle("digits-timesteps").arrays
    found = values(paper.ahead_from_the_next_range())
    assert len(found) == 2 * 9
    for queries in paper.SETS:
        table = arrays[f"{queries}/lds"].mean(-1)
        assert found["loss at t 0 to 99", queries] == pytest.approx(table[1, 0] - table[0, 0], abs=1e-6)
        assert found["loss at t 800 to 899", queries] == pytest.approx(table[9, 8] - table[8, 8], abs=1e-6)


def test_signs_and_variance_are_those_of_the_observations():
    truth = load_ground_truth("digits-ground-truth", "held-out")
    scores = torch.randn(truth.measurements.shape[2], truth.masks.shape[1], generator=torch.Generator().manual_seed(0))
    study, one = signs_of_subsets(scores, truth), paper.rises_beyond_predicted("some", "held-out", scores, truth)
    assert 0.3 < one.value == study.excess.value and one.interval == study.excess.interval
    truth = load_ground_truth("digits-ground-truth", "generated", "log_likelihood")
    (low, high), share = constancy(truth.measurements).intraclass_correlation.interval, 0.9
    one = paper.lies_between_queries("3s and 8s", "generated", truth, share=share)
    np.testing.assert_allclose(one.interval, (low - share, high - share))
