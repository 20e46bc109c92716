"""Training gradients that a run does not keep: the same scores from one reading, which a kill does not lose."""

from dataclasses import replace

import pytest
import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.artifacts import read_json
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import sets, store

PRESET = di.with_options(
    di.get_preset("smoke"), {"training.steps": 2, "subsets.steps": 2, "training.keep_ema_at": (2,)}
)
FORGETS = replace(PRESET, store_budget=0.0)


@pytest.fixture
def computed(monkeypatch):
    """How many gradients of training images are computed, by a fresh list."""
    seen, original = [], store.gradients_in_eigenbasis

    def watched(model, curvature, images, expectation, **options):
        if expectation.purpose == "train-gradients":
            seen.extend(images.ids.tolist())
        return original(model, curvature, images, expectation, **options)

    monkeypatch.setattr(store, "gradients_in_eigenbasis", watched)
    return seen


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that keeps its gradients, and one that does not; of one model and one curvature."""
    kept = di.open_run(PRESET, tmp_path_factory.mktemp("kept"), progress=False)
    di.runs.curvature_of_run(kept)
    return kept, replace(kept, preset=FORGETS, folder=kept.folder)


def test_scores_are_those_of_a_store_and_nothing_is_kept_but_them(runs, computed):
    kept, forgets = runs
    truth = random_truth(kept, kept.data.queries, seed=0)
    found = di.runs.lds_of_run(forgets, truth, damping=[1e-6, 1e-3])
    assert (
        sorted(computed) == kept.data.train.ids.tolist()
    )  # one reading for K-FAC, EK-FAC, two dampings and the products
    assert not list(forgets.path("gradients").glob("train-*")) and not list(forgets.path("scores").glob("pieces-*"))
    expected = di.runs.lds_of_run(kept, truth, damping=[1e-6, 1e-3])
    assert found.keys() == expected.keys()
    for name in ("ekfac", "kfac"):
        scores = [
            di.influence_scores(run, truth.queries, damping=[1e-6, 1e-3], approximation=name) for run in (kept, forgets)
        ]
        torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5 * float(scores[0].abs().max()))
    products = [di.runs.baseline_scores(run, truth.queries)["gradient dot product"] for run in (kept, forgets)]
    by_hand = di.attribution.gradient_dot_scores(
        di.runs.query_gradients(kept, truth.queries), di.runs.train_gradients(kept)
    )
    for each in products:
        torch.testing.assert_close(each, by_hand, rtol=1e-4, atol=1e-5 * float(by_hand.abs().max()))


def test_two_sets_of_queries_and_a_kill_cost_one_reading(runs, computed, monkeypatch):
    _, forgets = runs
    monkeypatch.setattr(sets, "SHARD_BYTES", 5 * di.runs.train_gradients(forgets).bytes_each)
    asked = list(di.runs.query_sets(forgets).values())
    options = {"damping": [1e-5], "approximations": ["ekfac"]}
    watched, calls = store.gradients_in_eigenbasis, []

    def killed(model, curvature, images, expectation, **more):
        calls.append(expectation.purpose)
        if calls.count("train-gradients") == 4:
            raise KeyboardInterrupt
        return watched(model, curvature, images, expectation, **more)

    monkeypatch.setattr(store, "gradients_in_eigenbasis", killed)
    with pytest.raises(KeyboardInterrupt):
        di.runs.scores_of_sets(forgets, asked, **options)
    assert len(list(forgets.path("scores").glob("pieces-*/piece-*"))) == 3
    monkeypatch.setattr(store, "gradients_in_eigenbasis", watched)
    found = di.runs.scores_of_sets(forgets, asked, **options)
    assert sorted(computed) == forgets.data.train.ids.tolist()
    assert not list(forgets.path("scores").glob("pieces-*"))
    forgets.discard("scores")
    undisturbed = di.runs.scores_of_sets(forgets, asked, **options)
    assert [part["ekfac"].shape for part in found] == [(1, 6, 24), (1, 3, 24)]
    assert all(torch.equal(a["ekfac"], b["ekfac"]) for a, b in zip(found, undisturbed, strict=True))


def test_methods_read_them_as_they_are_computed(runs, computed):
    _, forgets = runs
    task, stores = di.runs.task_of_run(forgets, forgets.data.queries), set(forgets.path("gradients").glob("train-*"))
    scores = di.attribution.get_method("ekfac")(task, [1e-6])
    assert len(computed) == 24 and set(forgets.path("gradients").glob("train-*")) == stores
    with pytest.raises(ConfigurationError, match=r"trak: .*they are not kept here; take trak-projected"):
        di.attribution.get_method("trak")(task)
    expected = di.influence_scores(forgets, forgets.data.queries, damping=[1e-6])
    torch.testing.assert_close(scores, expected, rtol=1e-6, atol=1e-9 * float(expected.abs().max()))


def test_a_study_of_all_methods_leaves_out_those_that_need_a_store(runs):
    """Unless they are asked for by name: then they say what they need."""
    kept, forgets = runs
    truths = {"held-out/loss": random_truth(kept, kept.data.queries, seed=0)}
    again = {method.name for method in di.METHODS if method.reads_again} - {"journey-trak"}
    assert again >= {"trak", "d-trak"}
    cells = [{cell.method for cell in di.studies.MethodsStudy(run, truths).cells()} for run in (kept, forgets)]
    assert cells[0] - cells[1] == again and "trak-projected" in cells[1]
    named = di.studies.MethodsStudy(forgets, truths, methods=["trak"])
    with pytest.raises(ConfigurationError, match="trak: .*they are not kept here"):
        list(named.shard())


def test_the_budget_decides_and_the_paper_s_store_is_offered():
    for name in ("cifar2", "cifar2deq", "cifar10", "artbench10"):
        for flavour in ("as-written", "as-run"):
            preset = di.get_preset(name, flavour)
            assert not preset.keeps(5_000 * 38e6) and preset.query_format == di.StoreFormat("int8")
            assert di.with_options(preset, {"store_budget": "1e13"}).keeps(50_000 * 38e6)
    assert all(di.get_preset(name).keeps(1e9) for name in ("digits", "fashion", "cifar2-small"))


def test_a_run_of_before_the_budget_goes_on(tmp_path):
    """Its configuration says nothing of one, and stands for the default; another is named."""
    di.open_run(PRESET, tmp_path / "a", progress=False)
    assert "store_budget" not in read_json(tmp_path / "a" / "config.json")["preset"]
    di.open_run(FORGETS, tmp_path / "b", progress=False)
    assert read_json(tmp_path / "b" / "config.json")["preset"]["store_budget"] == 0.0
