"""Methods and ladder studies on the smoke preset: every method gives scores of its own and says its price; cells are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import diffinf_lib as di
from diffinf_lib.attribution import methods as methods_module
from diffinf_lib.attribution.methods import DAMPINGS, METHODS, get_method
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.stages.curvature_study import CHOICES
from diffinf_lib.stages.ladder import LadderStudy, Rung
from diffinf_lib.stages.methods_study import MethodCell, MethodsStudy
from diffinf_lib.stages.tasks import checkpoint_steps

PRESET = di.get_preset("smoke")


def random_truth(run, queries, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([torch.randperm(24, generator=generator) < 12 for _ in range(8)])
    measurements = torch.rand(8, 2, len(queries), generator=generator, dtype=torch.float64)
    return di.GroundTruth(masks, measurements, run.data.train.ids, queries.ids, queries.images)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    schedule = di.NoiseSchedule(timesteps=20, beta_end=0.3)
    sampling = di.SamplingConfig(count=3, steps=20)
    preset = replace(PRESET, schedule=schedule, sampling=sampling)
    return di.open_run(preset, tmp_path_factory.mktemp("run"), progress=False)


@pytest.fixture(scope="module")
def study(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods_module, "DAS_PROBES", 2)
        patch.setattr(methods_module, "CG_CHECKPOINTS", 2)
        sets = di.measured_queries(run)
        truths = {f"{name}/{label}": random_truth(run, images, seed)
                  for seed, (name, images) in enumerate(sets.items()) for label in ("loss", "elbo")}  # fmt: skip
        yield MethodsStudy(run, truths)


def test_every_method_scores_and_says_what_it_cost(study, monkeypatch):
    count = {"held-out": 6, "generated": 3}
    seen = {}
    for cell in study.cells([method.name for method in METHODS]):
        scores, cost = study.scores(cell)
        method = get_method(cell.method)
        assert scores.shape == (len(method.grid), count[cell.queries], 24), cell
        assert torch.isfinite(scores).all(), cell
        assert (cost.draws > 0) == (cell.method not in ("pixel", "random")), cell
        assert cost.seconds > 0
        seen[cell] = scores[method.grid.index(method.default)]
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
        di.full_model(run).model, study.task(cell).final.curvature, run.data.train, study.queries["held-out"],
        measurement=run.preset.measurement, draws=run.preset.gradient_draws, damping=grid, schedule=run.preset.schedule,
    )  # fmt: skip
    torch.testing.assert_close(study.scores(cell).scores, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_cells_are_kept_and_bundled(study, tmp_path, monkeypatch):
    cells = study.cells(["ekfac", "pixel", "random"], ["loss", "elbo"])
    assert len(cells) == 2 * 3 + 2  # baselines once, influence for each measurement
    folder = study.bundle("smoke-methods", cells, root=tmp_path)
    monkeypatch.setattr(methods_module.Method, "__call__", lambda *_: pytest.fail("a kept cell was computed again"))
    study.bundle("again", cells, root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    rows = {(r["method"], r["queries"], r["attributed"], r["measured"]): r for r in made.metrics["results"]}
    assert len(rows) == 2 * len(cells)
    direct = rows["ekfac", "held-out", "loss", "loss"]
    assert "difference" not in direct  # the reference itself
    assert {"tuned", "gain_interval", "lds", "interval", "draws", "seconds"} <= direct.keys()
    assert rows["pixel", "generated", "loss", "loss"]["difference"] is not None
    arrays = made.arrays["held-out/loss/lds"]
    np.testing.assert_allclose(np.nanmean(arrays[0, 1]), direct["lds"], atol=1e-6)
    # scores of the loss stand for the ELBO with the other sign
    scores = study.scores(MethodCell("ekfac", "held-out")).scores[1]
    expected = di.lds(-scores, study.truths["held-out/elbo"]).mean
    assert rows["ekfac", "held-out", "loss", "elbo"]["lds"] == pytest.approx(expected)


def test_unknown_names_are_refused(study):
    with pytest.raises(ConfigurationError, match="method='best': no such method; give one of ekfac"):
        study.cells(["best"])
    with pytest.raises(ConfigurationError, match="measurement='likes': the preset has loss"):
        study.measurement("likes")
    with pytest.raises(ConfigurationError, match="checkpoints=7: the run keeps 6"):
        checkpoint_steps(study.run, 7)


def test_the_curvature_study_reads_both_approximations_from_each_fit(run, tmp_path):
    truths = {name: random_truth(run, images, 4) for name, images in di.measured_queries(run).items()}
    study, choices = di.CurvatureStudy(run, truths), CHOICES[1:4:2]
    made = di.load_bundle(study.bundle("smoke-curvatures", choices, root=tmp_path).name, root=tmp_path)
    assert made.arrays["generated/lds"].shape == (2, 2, len(DAMPINGS), 3)
    rows = {(row["queries"], row["partition"], row["approximation"]): row for row in made.metrics["results"]}
    assert len(rows) == 8 and "difference" not in rows["held-out", "model", "ekfac"]
    reduce = replace(run.preset.curvature, sharing="reduce")
    curvature = di.fit_curvature(di.full_model(run).model, run.data.train, reduce, schedule=run.preset.schedule)
    expected = di.influence(
        di.full_model(run).model, curvature, run.data.train, run.data.queries, measurement=run.preset.measurement,
        draws=run.preset.gradient_draws, approximation="kfac", damping=1e-4, schedule=run.preset.schedule,
    )  # fmt: skip
    found = study.scores(choices[0], "held-out")[1, DAMPINGS.index(1e-4)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_the_ladder_climbs_from_checkpoints_of_two_models(run, tmp_path):
    truths = {name: random_truth(run, images, 3) for name, images in di.measured_queries(run).items()}
    study = LadderStudy(run, truths)
    uniform = di.DrawConfig(4, timesteps="uniform", noise="independent")
    rungs = [
        Rung("first", "uniform", draws=uniform, query_draws=uniform),
        Rung("second", "half-way", "first", draws=di.DrawConfig(4), checkpoints=(0.5,), inverse="kfac"),
        Rung("third", "both", "second", draws=di.DrawConfig(4), checkpoints=(0.5, 1.0), inverse="cg", split=False),
    ]
    folder = study.bundle("smoke-ladder", rungs, (0, 1), root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    assert made.arrays["held-out/lds"].shape == (3, 2, 6)
    rows = {(row["rung"], row["queries"], row["model_seed"]): row for row in made.metrics["results"]}
    assert "difference" not in rows["first", "held-out", 0] and "difference" in rows["third", "generated", 1]
    assert rows["third", "held-out", 0]["draws"] > rows["second", "held-out", 0]["draws"] > 0
    first, second = (study.scores(rungs[0], "held-out", seed)[0] for seed in (0, 1))
    assert not torch.allclose(first, second)
    half = study.scores(rungs[1], "held-out")[0]
    model = di.load_unet(run.path("model", "ema", "step-000010"))
    curvature = di.fit_curvature(model, run.data.train, run.preset.curvature, schedule=run.preset.schedule)
    expected = di.influence(
        model, curvature, run.data.train, run.data.queries, measurement=run.preset.measurement, draws=di.DrawConfig(4),
        approximation="kfac", damping=run.preset.damping, schedule=run.preset.schedule,
    )  # fmt: skip
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
