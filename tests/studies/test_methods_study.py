"""Methods study on the smoke preset: every method gives scores of its own and says its price; cells are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.attribution import methods as methods_module
from diffinf_lib.attribution.methods import METHODS, get_method
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.runs.tasks import checkpoint_steps
from diffinf_lib.studies.methods import MethodCell, MethodsStudy


@pytest.fixture(scope="module")
def study(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods_module, "DAS_PROBES", 2)
        patch.setattr(methods_module, "CG_CHECKPOINTS", 2)
        sets = di.runs.measured_queries(run)
        truths = {f"{name}/{label}": random_truth(run, images, seed)
                  for seed, (name, images) in enumerate(sets.items()) for label in ("loss", "elbo")}  # fmt: skip
        yield MethodsStudy(run, truths, methods=[method.name for method in METHODS])


def test_every_method_scores_and_says_what_it_cost(study, monkeypatch):
    count = {"held-out": 6, "generated": 3}
    seen, passes = {}, {}
    for cell in study.cells():
        held = study.scores(cell)
        scores, cost = held.scores, held.cost
        method = get_method(cell.method)
        assert scores.shape == (len(method.grid), count[cell.queries], 24), cell
        assert torch.isfinite(scores).all(), cell
        assert (cost.draws > 0) == (cell.method not in ("pixel", "random")), cell
        assert cost.seconds > 0
        assert sum(item.draws for item in held.bill.values()) == cost.draws and held.bill["scoring"].draws == 0
        passes[cell.method] = cost.draws
        seen[cell] = scores[method.grid.index(method.default)]
    training = study.run.preset.training
    assert passes["ekfac-ensemble"] == 4 * passes["ekfac"] + 3 * training.steps * training.batch_size
    generated = {cell.method for cell in seen if cell.queries == "generated"}
    assert "journey-trak" in generated and MethodCell("journey-trak", "held-out") not in seen
    # every row is a method of its own: no two give the same scores
    flat = {c.method: s.flatten() for c, s in seen.items() if c.queries == "generated"}
    names = list(flat)
    for i, first in enumerate(names):
        for second in names[:i]:
            assert not torch.allclose(flat[first], flat[second], rtol=1e-6, atol=0), (first, second)


def test_influence_of_the_table_is_influence(study, run):
    cell = MethodCell("ekfac", "held-out")
    grid = get_method("ekfac").grid
    expected = di.influence(
        di.runs.full_model(run).model, study.task(cell).final.curvature, run.data.train, study.queries["held-out"],
        measurement=run.preset.measurement, draws=run.preset.gradient_draws, damping=grid,
    )  # fmt: skip
    torch.testing.assert_close(study.scores(cell).scores, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_cells_are_kept_and_bundled(study, tmp_path, monkeypatch):
    study = MethodsStudy(study.run, study.truths, methods=["ekfac", "pixel", "random"], attributed=["loss", "elbo"])
    cells = list(study.shard())
    assert len(cells) == 2 * 3 + 2  # baselines once, influence for each measurement
    folder = study.bundle("smoke-methods", root=tmp_path)
    monkeypatch.setattr(methods_module.Method, "__call__", lambda *_: pytest.fail("a kept cell was computed again"))
    study.bundle("again", root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    rows = {(r["method"], r["queries"], r["attributed"], r["measured"]): r for r in made.metrics["results"]}
    assert len(rows) == 2 * len(cells)
    own, proxy = rows["ekfac", "held-out", "elbo", "elbo"], rows["ekfac", "held-out", "loss", "elbo"]
    assert own["proxy"] == "loss" and own["proxy_difference"] == pytest.approx(proxy["lds"] - own["lds"], abs=1e-9)
    assert own["proxy_difference_interval"][0] <= own["proxy_difference"] <= own["proxy_difference_interval"][1]
    direct = rows["ekfac", "held-out", "loss", "loss"]
    assert "proxy" not in direct
    assert "difference" not in direct  # the reference itself
    assert {"tuned", "gain_interval", "lds", "interval", "draws", "seconds"} <= direct.keys()
    assert rows["pixel", "generated", "loss", "loss"]["difference"] is not None
    arrays = made.arrays["held-out/loss/lds"]
    np.testing.assert_allclose(np.nanmean(arrays[0, 1]), direct["lds"], atol=1e-6)
    # scores of the loss stand for the ELBO with the other sign
    scores = study.scores(MethodCell("ekfac", "held-out")).scores[1]
    expected = di.lds(-scores, study.truths["held-out/elbo"]).mean
    assert rows["ekfac", "held-out", "loss", "elbo"]["lds"] == pytest.approx(expected)


def test_a_bundle_names_the_ground_truths_that_it_was_held_against(study, tmp_path):
    recorded = []
    for scale in (1, 2):
        truths = {name: replace(truth, measurements=scale * truth.measurements) for name, truth in study.truths.items()}
        each = MethodsStudy(study.run, truths, methods=["random"])
        assert len(list(each.shard())) == 2
        made = di.load_bundle(each.bundle(root=tmp_path).name, root=tmp_path)
        recorded.append(made.manifest["configuration"]["truths"])
        assert recorded[-1] == {name: truth.digest for name, truth in truths.items()}
        assert made.manifest["configuration"]["model"]["weights"] and made.metrics["commits"]
    assert recorded[0] != recorded[1]


def test_what_methods_take_besides_belongs_to_their_cells(study, monkeypatch):
    cell = MethodCell("cg", "held-out")
    before = study.kept(cell).folder
    monkeypatch.setattr(methods_module, "GGN_DAMPING", 1e-3)
    assert study.kept(cell).folder != before


def test_foreign_ground_truths_are_refused(study):
    truth = study.truths["generated/loss"]
    for foreign, message in [
        (
            replace(truth, train_ids=truth.train_ids + 1),
            "generated/loss: its training images are not those of this run",
        ),
        (replace(truth, query_ids=truth.query_ids + 1), "generated/loss: its queries are not those of this run"),
        (replace(truth, query_images=truth.query_images.flip(-1)), "generated/loss: its queries are not those"),
    ]:
        with pytest.raises(DataError, match=message):
            _ = MethodsStudy(study.run, {"generated/loss": foreign}).queries


def test_unknown_names_are_refused(study):
    with pytest.raises(ConfigurationError, match="method='best': no such method; give one of ekfac"):
        MethodsStudy(study.run, study.truths, methods=["best"])
    with pytest.raises(ConfigurationError, match="measurement='likes': the preset has loss"):
        MethodsStudy(study.run, study.truths, attributed=["likes"])
    with pytest.raises(ConfigurationError, match="checkpoints=7: the run keeps 6"):
        checkpoint_steps(study.run, 7)
    with pytest.raises(ConfigurationError, match=r"options=\[1\.0\]: pixel has no option; leave it out"):
        get_method("pixel")(study.task(MethodCell("pixel", "held-out")), [1.0])


def test_too_few_subsets_to_tune_are_refused_before_scoring(study):
    few = {name: truth.first_subsets(7) for name, truth in study.truths.items()}
    for kind in (di.studies.MethodsStudy, di.studies.CurvatureStudy):
        with pytest.raises(ConfigurationError, match="subsets=7 of held-out/loss: too few to halve; .* subsets=8"):
            kind(study.run, few)
