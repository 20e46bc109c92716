"""The decomposition on a study of seconds, and its bundle in the book."""

import numpy as np
import pytest
import torch
from cases import draw_batch, images, same_draws_for_both_passes

import diffinf_lib as di
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Process
from diffinf_lib.curvature import fit_to_draws
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import spearman
from diffinf_lib.studies.answers import CURVATURES, STEPS, TRUTH, Answers
from diffinf_lib.studies.decomposition import Perceptron, contents
from diffinf_lib.studies.fixed_sum import FullBatchAdam

PLACES = {step.name: place for place, step in enumerate(STEPS)}
SMALL = di.studies.DecompositionConfig(
    images=8, queries=3, hidden=4, draws=8, query_draws=4, few_draws=2, training=FullBatchAdam(60, 3e-2),
    further=FullBatchAdam(5, 1e-3), damping=0.5, dampings=(0.5, 2.0), seeds=2,
)  # fmt: skip


def test_each_rung_builds_on_one_before_it():
    seen = {TRUTH}
    for step in STEPS:
        assert step.after in seen, step
        seen.add(step.name)


def test_a_small_study_becomes_a_bundle_and_is_computed_once(tmp_path, monkeypatch):
    study = di.studies.Decomposition("smoke", SMALL, tmp_path / "run")
    folder = study.bundle(root=tmp_path)
    made = di.load_bundle(folder.name, root=tmp_path)
    assert folder.name == "smoke-decomposition" and made.arrays["answers"].shape == (len(STEPS), 2, 3, 8)
    assert [row["rung"] for row in made.metrics["results"]] == [step.name for step in STEPS]
    for name, values in made.arrays.items():
        assert np.isfinite(values).all(), name
    cell = study.cell(0)
    for place, name in enumerate(CURVATURES):  # the first damping is that of the rungs
        np.testing.assert_allclose(cell["by_damping"][place, 0], cell["answers"][PLACES[name]])
    monkeypatch.setattr(Answers, "arrays", lambda self: pytest.fail("computed again"))
    assert di.load_bundle(study.bundle(root=tmp_path / "again").name, root=tmp_path / "again").metrics == made.metrics


def test_agreement_is_with_the_rung_before_the_other_seeds_and_the_own_one():
    generator = np.random.default_rng(0)
    cells = [
        {"answers": generator.normal(size=(len(STEPS), 4, 9)), "by_damping": generator.normal(size=(4, 1, 4, 9))}
        for _ in range(3)
    ]
    arrays, metrics = contents(cells, [0.1])
    step, seed = STEPS[4], 1
    answer, before = (cells[seed]["answers"][PLACES[name]] for name in (step.name, step.after))
    others = (cells[0]["answers"][0] + cells[2]["answers"][0]) / 2
    for name, held in (("before", before), ("truth", others), ("own", cells[seed]["answers"][0])):
        np.testing.assert_allclose(arrays[name][4, seed], spearman(answer, held), rtol=1e-6)
    error = np.linalg.norm(answer - before, axis=1) / np.linalg.norm(before, axis=1)
    np.testing.assert_allclose(arrays["error"][4, seed], error, rtol=1e-6)
    row = metrics["results"][4]
    changed = arrays["truth"][4] - arrays["truth"][PLACES[step.after]]
    assert row["truth_change"][0] == pytest.approx(changed.mean(), abs=1e-6)
    assert row["truth_change"][1][0] < changed.mean() < row["truth_change"][1][1]


def test_a_fit_to_given_draws_is_a_fit_that_draws_these(monkeypatch):
    torch.manual_seed(0)
    model, data, draws = Denoiser(Perceptron(4, 3, 1000), Process()).double(), images(5, 2), DrawConfig(8)
    config = CurvatureConfig(
        draws=draws, factor_draws=draws, exact_labels=True, input_positions=None, correction="per_draw"
    )
    given = fit_to_draws(model, draw_batch(data, draws, purpose="x"), config)
    same_draws_for_both_passes(monkeypatch)
    drawn = di.fit_curvature(model, data, config)
    for name, layer in drawn.layers.items():
        for kind in ("ekfac", "kfac"):
            torch.testing.assert_close(given.layers[name].block(kind), layer.block(kind))
    with pytest.raises(ConfigurationError, match="draws=30: the batch has"):
        fit_to_draws(model, draw_batch(data, draws, purpose="x"), CurvatureConfig())


def test_what_cannot_be_decomposed_is_refused():
    with pytest.raises(ConfigurationError, match="seeds=1: each is held against the others"):
        di.studies.DecompositionConfig(seeds=1)
    with pytest.raises(ConfigurationError, match="few_draws=32: give an even number, at most draws=16"):
        di.studies.DecompositionConfig(few_draws=32)


def test_the_bundle_s_numbers_are_those_of_its_answers():
    made = di.load_bundle("digits-decomposition")
    answers = made.arrays["answers"].astype(np.float64)
    others = (answers[0].sum(0) - answers[0]) / (len(answers[0]) - 1)
    for place, row in enumerate(made.metrics["results"]):
        found = spearman(answers[place], others).mean()
        assert row["rung"] == STEPS[place].name and row["truth"][0] == pytest.approx(found, abs=2e-3)
