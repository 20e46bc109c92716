"""The measuring study on the smoke preset: its noise is that of real draws, its LDS that of the library, models are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.attribution.scoring import KeptQueries
from diffinf_lib.configuration import MEASUREMENT_PURPOSE, Expectation
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation.resampling import Resamples
from diffinf_lib.gradients import gradients_of
from diffinf_lib.runs import curvature_of_run, retrained_model, subset_masks, train_gradients
from diffinf_lib.studies.measuring import MeasuringStudy, Point, covariances, seed_covariances, share_of

PRESET = replace(di.get_preset("smoke"), further_measurements=())
OPTIONS = {"counts": (2, 8), "rules": ("uniform", "stratified, antithetic"), "reference": 16, "query_count": 4}
SUBSETS, SEEDS = 8, 2


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study run to its end in two shards over the models of a ground truth, and its bundle."""
    root = tmp_path_factory.mktemp("finished")
    run = di.open_run(PRESET, root / "run", progress=False)
    study = MeasuringStudy(run, subsets=SUBSETS, seeds=SEEDS, **OPTIONS)
    list(di.runs.ground_truth_shard(run, subsets=SUBSETS, seeds=SEEDS))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.Trainer, "advance", lambda *_: pytest.fail("a model was trained again"))
        done = [list(study.shard(shard, 2)) for shard in range(2)]
    assert sorted(done[0] + done[1]) == sorted(study.cells())
    return study, di.load_bundle(study.bundle(root=root).name, root=root)


def row_of(made, rule, count):
    (row,) = [row for row in made.metrics["results"] if (row["rule"], row["count"]) == (rule, count)]
    return row


def made_up(noise, *, subsets=400, seeds=3, queries=5):
    """Measurements whose variances are known: of subsets 1, of retraining 0.25, and of noise that single models or all seeds of
    a subset have of their own; and the halves of a reference, with noise of their own."""
    draw = np.random.default_rng(0).standard_normal
    truth = draw((subsets, 1, queries)) + 0.5 * draw((subsets, seeds, queries))
    halves = truth + 0.3 * draw((2, subsets, seeds, queries))
    own, common = noise
    noisy = truth + own * draw((subsets, seeds, queries)) + common * draw((subsets, 1, queries))
    return noisy + draw(queries), halves + 7 * draw((2, 1, 1, queries))  # what draws do to all models alike


@pytest.mark.parametrize(("own", "common"), [(0.4, 0.0), (0.0, 0.4)])
def test_variances_are_those_that_made_the_measurements(own, common):
    measured, halves = made_up((own, common))
    first, second = measured - halves
    one, mean = (covariances(first, second, averaged=averaged).mean() for averaged in (False, True))
    assert one == pytest.approx(own**2 + common**2, rel=0.15)
    assert mean == pytest.approx(own**2 / 3 + common**2, rel=0.15)
    assert seed_covariances(*halves).mean() == pytest.approx(0.25, rel=0.1)
    assert covariances(*halves, averaged=True).mean() == pytest.approx(1 + 0.25 / 3, rel=0.1)


def test_covariances_are_numpy_s():
    first, second = np.random.default_rng(0).standard_normal((2, 6, 1, 3))
    found = covariances(first, second, averaged=True).mean(1)
    expected = [np.cov(first[:, 0, q], second[:, 0, q])[0, 1] for q in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_share_s_interval_holds_it_as_often_as_it_says():
    held = 0
    for seed in range(60):
        values = np.random.default_rng(seed).standard_normal((2, 30, 40)) ** 2  # of 1 each, so their share is 1
        low, high = share_of(*values, Resamples.draw(30, 40, 200, seed)).interval
        held += low < 1 < high
    assert 52 <= held < 60


def test_a_point_is_what_the_library_measures(finished):
    study, made = finished
    model = retrained_model(study.run, 3, 1)
    images = study.run.data.queries.subset(torch.arange(4))
    uniform = di.DrawConfig(8, timestep_rule="uniform", noise_rule="independent")
    expected = di.measure(model, images, di.MeasurementConfig(draws=uniform), seed=3)
    np.testing.assert_allclose(made.arrays["measured"][0, 1, 3, 1], expected, rtol=1e-6)
    halves = [di.measure(model, images, di.MeasurementConfig(draws=di.DrawConfig(16)), seed=seed) for seed in (1, 2)]
    np.testing.assert_allclose(made.arrays["reference"][:, 3, 1], torch.stack(halves), rtol=1e-6)


def test_noise_is_the_variance_over_draws_of_differences_of_models(finished):
    """By brute force: two models on many seeds of the draws, against half the variance of their difference."""
    study, _ = finished
    models = [retrained_model(study.run, subset, 0) for subset in range(SUBSETS)]
    config = di.MeasurementConfig(draws=di.DrawConfig(2, timestep_rule="uniform", noise_rule="independent"))

    def over(seeds, draws):
        chosen = replace(config, draws=draws)
        each = [[di.measure(m, study.images, chosen, seed=seed) for m in models] for seed in seeds]
        return torch.stack([torch.stack(row) for row in each]).numpy()  # [seeds, M, Q]

    measured = over(range(100, 124), config.draws)
    brute = measured - measured.mean(1, keepdims=True)
    expected = brute.var(0, ddof=1).sum(0).mean() / (SUBSETS - 1)
    halves = over((1, 2), di.DrawConfig(16))[:, :, None]
    found = [covariances(*(one[:, None] - halves), averaged=False).mean() for one in measured]
    assert np.mean(found) == pytest.approx(expected, rel=0.15)


def test_the_lds_is_that_of_the_library(finished):
    study, made = finished
    run, arrays = study.run, made.arrays
    scores = di.influence_scores(run, run.data.queries)[0, :4]
    np.testing.assert_allclose(arrays["scores"], scores, rtol=1e-6)
    masks, ids = subset_masks(run, SUBSETS), run.data.train.ids

    def truth(measured):
        return di.evaluation.GroundTruth(masks, torch.from_numpy(measured).double(), ids, study.images.ids)

    reference = truth(arrays["reference"].mean(0))
    assert made.metrics["lds"] == pytest.approx(di.lds(scores, reference).mean)
    assert made.metrics["ceiling"] == pytest.approx(di.ceiling(reference))
    row = row_of(made, "stratified, antithetic", 2)
    assert row["lds"] == pytest.approx(di.lds(scores, truth(arrays["measured"][1, 0])).mean)
    assert row["lost"] == pytest.approx(row["lds"] - made.metrics["lds"])
    assert row["lost_interval"][0] <= row["lost"] <= row["lost_interval"][1]
    place = 1 + study.points.index(Point("stratified, antithetic", 2))
    own, curvature = study.scores()[place], curvature_of_run(run)
    over = Expectation(di.DrawConfig(2), MEASUREMENT_PURPOSE, 3)
    gradients = gradients_of(run.model.model, curvature, study.images, over)
    kept = KeptQueries(gradients, train_gradients(run), curvature, Inverses([PRESET.damping]))
    expected = torch.cat([kept.scores(shard)[0] for _, shard in train_gradients(run).shards()], 1) / 24
    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert row["own_lds"] == pytest.approx(di.lds(own, truth(arrays["measured"][1, 0])).mean)
    assert row["gradients_lost"] == pytest.approx(di.lds(own, reference).mean - made.metrics["lds"])


def test_another_measurement_is_studied_as_the_loss_is(finished, tmp_path):
    run = replace(finished[0].run, preset=di.get_preset("smoke"))
    rules = ("elbo", "elbo, antithetic")
    study = MeasuringStudy(run, subsets=2, seeds=1, measurement="elbo", **OPTIONS | {"rules": rules})
    list(study.shard())
    elbo, model = run.preset.further_measurements[0], retrained_model(run, 1, 0)
    uneven = di.DrawConfig(8, timestep_rule="elbo", noise_rule="independent")
    expected = di.measure(model, study.images, replace(elbo, draws=uneven), seed=3)
    np.testing.assert_allclose(study.measurements("measured")[1, 1, 0], expected, rtol=1e-12)
    assert study.reference_draws == replace(elbo.draws, count=16) != finished[0].reference_draws
    task = di.runs.task_of_run(run, run.data.queries, elbo)
    own = di.get_method("ekfac")(task, [run.preset.damping])[0, :4]
    assert_equal_but_for_rounding(study.scores()[0], own, within=1e-4)
    assert study.bundle(root=tmp_path).name == "smoke-elbo-measuring"


def test_what_is_measured_is_kept_for_itself(finished):
    elbo = di.get_preset("smoke").further_measurements[0]
    preset = replace(di.get_preset("smoke"), measurement=di.MeasurementConfig(draws=elbo.draws))
    run = replace(finished[0].run, preset=preset)
    first, second = (MeasuringStudy(run, subsets=2, seeds=1, measurement=name, **OPTIONS) for name in ("loss", "elbo"))
    assert first.reference_draws == second.reference_draws
    assert first.kept(first.cells()[0]).folder != second.kept(first.cells()[0]).folder


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"measurement": "likes"}, "measurement='likes': the preset has loss, elbo, log_likelihood"),
        ({"measurement": "log_likelihood"}, "measurement='log_likelihood': the study is of means over draws"),
        ({"rules": ("even",)}, "rule='even': give one of uniform, "),
        ({"query_count": 7}, "queries=7: there are 6 held-out ones"),
        ({"subsets": 1}, "subsets=1: give two or more"),
        ({"counts": (3,)}, "draws=3: antithetic draws come in pairs"),
        ({"reference": 0}, "reference=0"),
        ({"reference": 5}, "draws=5: antithetic draws come in pairs"),
    ],
)
def test_wrong_input_is_refused(run, options, message):
    with pytest.raises(ConfigurationError, match=message):
        MeasuringStudy(run, **{"query_count": 4, "subsets": 2} | options)
