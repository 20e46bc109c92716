"""Curvature study on the smoke preset."""

from dataclasses import replace

import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.attribution.methods import DAMPINGS
from diffinf_lib.studies.curvatures import CHOICES


def test_the_curvature_study_reads_both_approximations_from_each_fit(run, tmp_path):
    truths = {name: random_truth(run, images, 4) for name, images in di.runs.measured_queries(run).items()}
    choices = CHOICES[1:4:2]
    study = di.studies.CurvatureStudy(run, truths, choices=choices)
    assert len(list(study.shard())) == 4
    made = di.load_bundle(study.bundle(root=tmp_path).name, root=tmp_path)
    assert made.arrays["generated/lds"].shape == (2, 2, len(DAMPINGS), 3)
    rows = {(row["queries"], row["partition"], row["approximation"]): row for row in made.metrics["results"]}
    assert len(rows) == 8 and "difference" not in rows["held-out", "model", "ekfac"]
    reduce = replace(run.preset.curvature, sharing="reduce")
    curvature = di.fit_curvature(di.runs.full_model(run).model, run.data.train, reduce)
    expected = di.influence(
        di.runs.full_model(run).model, curvature, run.data.train, run.data.queries, measurement=run.preset.measurement,
        draws=run.preset.gradient_draws, approximation="kfac", damping=1e-4,
    )  # fmt: skip
    found = study.scores(choices[0], "held-out")[1, DAMPINGS.index(1e-4)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))


def test_a_damping_that_is_not_in_the_grid_is_scored_too(run):
    preset = replace(run.preset, damping=3e-7)
    study = di.studies.CurvatureStudy(replace(run, preset=preset), {}, choices=CHOICES[:1])
    assert study.dampings == sorted([*DAMPINGS, 3e-7])
