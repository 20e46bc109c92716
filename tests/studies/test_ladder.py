"""Ladder study on the smoke preset."""

import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.studies.ladder import LadderStudy, Rung


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
