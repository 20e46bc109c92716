"""The solves study on the smoke preset: what is kept after each step, and of which queries."""

import numpy as np
import pytest
import torch

import diffinf_lib as di
from diffinf_lib.attribution.iterative import solved_queries, solved_scores, training_ggn
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.runs import curvature_of_run, generated_queries, query_gradients, train_gradients
from diffinf_lib.studies.solves import SolveCell, SolvesStudy

ASKED = (("generated", 1), ("held-out", 3))
SOLVES = (SolveCell(2, 1.0, 12), SolveCell(1, 1e-2, 3))


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    study, root = SolvesStudy(run, solves=SOLVES, asked=ASKED), tmp_path_factory.mktemp("solves")
    assert list(study.shard()) == list(SOLVES)
    return study, di.load_bundle(study.bundle(root=root).name, root=root)


def test_the_bundle_holds_every_step(finished):
    arrays = finished[1].arrays
    assert arrays["scores"].shape == (2, 12, 2, 24) and np.isnan(arrays["scores"][1, 3:]).all()
    assert np.isfinite(arrays["scores"][0]).all() and np.isfinite(arrays["scores"][1, :3]).all()
    assert {name: arrays[name].tolist() for name in ("draws", "dampings", "steps")} == {
        "draws": [2, 1], "dampings": [1.0, 1e-2], "steps": [12, 3],
    }  # fmt: skip
    assert list(zip(arrays["sets"], arrays["positions"], strict=True)) == list(ASKED)


def test_the_first_step_only_shortens_ekfac(finished):
    study, made = finished
    images = {"generated": generated_queries(study.run), "held-out": study.run.data.queries}
    for cell, scores in zip(SOLVES, made.arrays["scores"], strict=True):
        for (name, position), first in zip(ASKED, scores[0], strict=True):
            ekfac = di.influence_scores(study.run, images[name], damping=[cell.damping])[0, position].numpy()
            factor = first @ ekfac / (ekfac @ ekfac)
            np.testing.assert_allclose(first, factor * ekfac, rtol=1e-3, atol=1e-4 * np.abs(first).max())


def test_the_last_step_solves_the_damped_system(finished):
    study, made = finished
    run = study.run
    assert (made.arrays["residuals"][0] < 1e-2).all() and (made.arrays["residuals"][1] > 1e-2).all()
    curvature, model = curvature_of_run(run), run.model.model
    ggn = training_ggn(model, run.data.train, di.DrawConfig(2), covers=curvature.covers)
    asked = query_gradients(run, run.data.queries)
    found, solution = solved_queries(model, curvature, ggn, asked, damping=1.0, max_iterations=40, tolerance=1e-5)
    expected = solved_scores([found], train_gradients(run))[0, 3]
    assert solution.converged
    torch.testing.assert_close(
        torch.from_numpy(made.arrays["scores"][0, -1, 1]).double(), expected, rtol=2e-2,
        atol=5e-3 * float(expected.abs().max()),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("solves", "asked", "message"),
    [
        ((), ASKED, "solves: give at least one"),
        (SOLVES, (), "asked: give at least one query"),
        (SOLVES, (("drawn", 0),), "asked='drawn': give one of held-out, generated"),
        (SOLVES, (("generated", 3),), "asked=3 of generated: give a position from 0 to 2"),
    ],
)
def test_wrong_input_is_refused(run, solves, asked, message):
    with pytest.raises(ConfigurationError, match=message):
        SolvesStudy(run, solves=solves, asked=asked)
