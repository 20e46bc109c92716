"""Ladder study on the smoke preset."""

from typing import get_args

import numpy as np
import pytest
import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.attribution.checkpoints import average_scores
from diffinf_lib.evaluation.rectification import rectified
from diffinf_lib.experiments import KINDS
from diffinf_lib.studies.ladder import KFAC, LADDERS, LadderStudy, Rung


def test_the_ladder_climbs_from_checkpoints_of_two_models(run, tmp_path):
    truths = {name: random_truth(run, images, 3) for name, images in di.runs.measured_queries(run).items()}
    uniform = di.DrawConfig(4, timestep_rule="uniform", noise_rule="independent")
    rungs = [
        Rung("first", "uniform", draws=uniform, query_draws=uniform),
        Rung("second", "half-way", "first", draws=di.DrawConfig(4), checkpoints=(0.5,), inverse="kfac"),
        Rung("third", "both", "second", draws=di.DrawConfig(4), checkpoints=(0.5, 1.0), inverse="cg", split=False),
    ]
    study = LadderStudy(run, truths, rungs=rungs)
    assert len(list(study.shard())) == 2 * 2 * 4
    folder = study.bundle(root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    assert made.arrays["held-out/lds"].shape == (3, 2, 6)
    rows = {(row["rung"], row["queries"], row["model_seed"]): row for row in made.metrics["results"]}
    assert "difference" not in rows["first", "held-out", 0] and "difference" in rows["third", "generated", 1]
    assert rows["third", "held-out", 0]["draws"] > rows["second", "held-out", 0]["draws"] > 0
    first, second = (study.scores(rungs[0], "held-out", seed)[0] for seed in (0, 1))
    assert not torch.allclose(first, second)
    half = study.scores(rungs[1], "held-out")[0]
    model = di.load_model(run.path("model", "ema", "step-000010"))
    curvature = di.fit_curvature(model, run.data.train, run.preset.curvature)
    expected = di.influence(
        model, curvature, run.data.train, run.data.queries, measurement=run.preset.measurement, draws=di.DrawConfig(4),
        approximation="kfac", damping=run.preset.damping,
    )  # fmt: skip
    torch.testing.assert_close(half, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_rungs_that_flatten_share_the_scores_and_a_second_training_is_charged(run):
    truths = {name: random_truth(run, images, 3) for name, images in di.runs.measured_queries(run).items()}
    four = {"draws": di.DrawConfig(4), "query_draws": di.DrawConfig(2), "checkpoints": (0.5,)}
    rungs = [
        Rung("sampled", "", inverse="sampled", probes=3, curvature=KFAC, **four),
        Rung(
            "flat", "slope 0.3", "sampled", inverse="sampled", probes=3, curvature=KFAC, rectifier="slope 0.3", **four
        ),
        Rung("two", "two trainings", "sampled", inverse="sampled", probes=3, curvature=KFAC, trainings=2, **four),
    ]
    study = LadderStudy(run, truths, rungs=rungs)
    assert len(study.cells()) == 2 * 2
    plain, cost = study.scores(rungs[0], "held-out")
    images, queries = len(run.data.train), len(run.data.queries)
    assert cost.draws == images * (KFAC.drawn_for_factors.count + 4 + 3) + queries * 2
    flat, flat_cost = study.scores(rungs[1], "held-out")
    np.testing.assert_allclose(flat, rectified(plain, "slope 0.3"))
    assert flat_cost == cost
    both, both_cost = study.scores(rungs[2], "held-out")
    torch.testing.assert_close(both, average_scores([plain, study.scores(rungs[0], "held-out", 1)[0]]))
    assert both_cost.draws == 2 * cost.draws + 10 * run.preset.training.batch_size
    list(study.shard())
    _, metrics = study.contents()
    rows = {(row["rung"], row["queries"], row["model_seed"]): row for row in metrics["results"]}
    assert rows["two", "held-out", 0]["lds"] == pytest.approx(rows["two", "held-out", 1]["lds"])
    assert set(metrics["most"]) == {"held-out", "generated"}


def test_rungs_that_cannot_be_are_refused(run):
    with pytest.raises(di.errors.ConfigurationError, match="hockey"):
        Rung("flat", "", rectifier="hockey")
    with pytest.raises(di.errors.ConfigurationError, match="trainings=3"):
        LadderStudy(run, {}, rungs=[Rung("three", "", trainings=3)])


def test_every_rung_of_a_ladder_follows_one_that_stands_before_it():
    assert set(LADDERS) == set(get_args(KINDS["rungs"]))
    for rungs in LADDERS.values():
        names = [rung.name for rung in rungs]
        assert len(set(names)) == len(names)
        assert all(not rung.after or rung.after in names[:place] for place, rung in enumerate(rungs))
