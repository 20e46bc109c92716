"""Rectify study on the smoke preset."""

from dataclasses import replace

import numpy as np
import pytest
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.evaluation.rectification import RECTIFIERS, rectified, slopes_of_signs
from diffinf_lib.studies.rectify import CONTROLS, EDGES


def test_the_study_holds_each_method_against_what_it_attributes(run, tmp_path):
    truths = {
        f"{name}/{label}": random_truth(run, images, seed)
        for label, seed in (("loss", 3), ("elbo", 4))
        for name, images in di.runs.measured_queries(run).items()
    }
    study = di.studies.RectifyStudy(
        run, truths, methods=["ekfac", "pixel"], attributed=["loss", "elbo"], further=["ekfac"]
    )
    cells = list(study.shard())
    assert [(cell.method, cell.queries, cell.attributed) for cell in cells] == [
        ("ekfac", "held-out", "loss"), ("pixel", "held-out", "loss"), ("ekfac", "generated", "loss"),
        ("pixel", "generated", "loss"), ("ekfac", "held-out", "elbo"), ("ekfac", "generated", "elbo"),
    ]  # fmt: skip
    folder = study.bundle(root=tmp_path)
    made = di.load_bundle(folder.name, root=folder.parent)
    assert folder.name == "smoke-rectify" and len(made.metrics["results"]) == 6
    row, held = made.metrics["results"][0], study.scored.scores(cells[0])
    method = di.get_method("ekfac")
    scores, truth = held.scores[method.grid.index(method.default)].numpy(), truths["held-out/loss"]
    names = list(RECTIFIERS)
    assert made.arrays["held-out/loss/lds"].shape == (2, len(names), 6)
    assert made.arrays["held-out/loss/effects"].shape == (2, len(EDGES) + 1, 5)
    assert made.arrays["held-out/elbo/lds-by-option"].shape == (1, len(method.grid), len(names))
    assert np.isnan(made.arrays["held-out/loss/lds-by-option"][1, 1:]).all()
    for place, name in enumerate(names):
        expected = di.lds(rectified(scores, name), truth, bootstrap=2).per_query
        np.testing.assert_allclose(made.arrays["held-out/loss/lds"][0, place], expected, rtol=1e-5, atol=1e-7)
    gain, (low, high) = di.paired_difference(rectified(scores, "clamp"), scores, truth)
    value, interval = row["gains"]["clamp"]
    assert [value, *interval] == pytest.approx([gain, low, high])
    assert row["lds"] == pytest.approx(di.lds(scores, truth, bootstrap=2).mean)
    assert row["slope_ratio"][0] == pytest.approx(slopes_of_signs(scores, truth).ratio.value)
    assert set(row["controls"]) == set(CONTROLS) and row["favourite"] in names
    assert row["both_gain"][0] == pytest.approx(row["both_chosen"][0] - row["option_chosen"][0])
    assert "both_gain" not in made.metrics["results"][1]
    turned = replace(truths["held-out/elbo"], measurements=-truths["held-out/elbo"].measurements)
    helps = -study.scored.scores(cells[4]).scores[method.grid.index(method.default)].numpy()
    expected = di.paired_difference(rectified(helps, "clamp"), helps, turned)
    assert made.metrics["results"][4]["gains"]["clamp"][0] == pytest.approx(expected[0])
    assert made.metrics["results"][4]["slope_ratio"][0] == pytest.approx(slopes_of_signs(helps, turned).ratio.value)
