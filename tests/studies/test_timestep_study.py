"""The timestep study on the smoke preset: ranges add up to the loss and its scores, models are kept, the bundle holds all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import conv_denoiser, images
from scipy.stats import spearmanr

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.measurements import measure
from diffinf_lib.runs import retrained_measurements, retrained_model
from diffinf_lib.studies import timesteps
from diffinf_lib.studies.timesteps import TimestepStudy, losses_by_timestep, timestep_shares

PRESET = replace(di.get_preset("smoke"), further_measurements=())
BINS, SUBSETS = 4, 8
RULES = [
    di.DrawConfig(40),
    di.DrawConfig(60, timestep_rule="uniform", noise_rule="independent"),
    di.DrawConfig(80, timestep_rule="signal", shared=True),
]


def study_in(folder, **options):
    return TimestepStudy(di.open_run(PRESET, folder, progress=False), bins=BINS, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study run to its end in two shards over the models of a ground truth, and its bundle."""
    root = tmp_path_factory.mktemp("finished")
    study = study_in(root / "run", subsets=SUBSETS)
    list(di.runs.ground_truth_shard(study.run, subsets=SUBSETS))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training.Trainer, "advance", lambda *_: pytest.fail("a model was trained again"))
        done = [list(study.shard(shard, 2)) for shard in range(2)]
    assert sorted(done[0] + done[1]) == sorted(study.cells())
    return study, di.load_bundle(study.bundle(root=root).name, root=root)


@pytest.mark.parametrize("draws", RULES, ids=lambda draws: draws.timestep_rule)
def test_a_range_s_loss_is_the_mean_over_its_draws(draws):
    model, queries = conv_denoiser(), images(3, 4)
    losses = losses_by_timestep(model, queries, draws, bins=BINS, seed=2, batch_size=7)
    for query in range(3):
        image = queries.images[query].double().expand(draws.count, -1, -1, -1)
        drawn = di.diffusion.example_draws(
            int(queries.ids[query]), queries.shape, draws, seed=2, purpose="measurement", process=model.process
        )
        values = di.per_draw_loss(model, image, drawn.timesteps, drawn.noise.double()).detach()
        for place in range(BINS):
            inside = (drawn.timesteps >= 250 * place) & (drawn.timesteps < 250 * (place + 1))
            weights = drawn.draw_weights[inside].double()
            expected = (weights * values[inside]).sum() / weights.sum()
            torch.testing.assert_close(losses[place, query], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("draws", RULES, ids=lambda draws: draws.timestep_rule)
def test_the_ranges_add_up_to_the_loss(draws):
    model, queries = conv_denoiser(), images(5, 4)
    shares = timestep_shares(queries, draws, bins=BINS, seed=1, process=model.process)
    total = (shares * losses_by_timestep(model, queries, draws, bins=BINS, seed=1)).sum(0)
    torch.testing.assert_close(total, measure(model, queries, di.MeasurementConfig(draws=draws), seed=1))
    if draws.timestep_rule == "stratified":  # five slices a range: a weighted loss is then the range's own
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / BINS))
        weighted = di.MeasurementConfig("weighted_loss", draws, loss_weights=(0.0, 4.0, 0.0, 0.0))
        second = losses_by_timestep(model, queries, draws, bins=BINS, seed=1)[1]
        torch.testing.assert_close(second, measure(model, queries, weighted, seed=1), rtol=1e-12, atol=0)


def test_the_whole_loss_is_what_the_ground_truth_measured(finished):
    study, _ = finished
    for name, count in (("held-out", 6), ("generated", 3)):
        truths = study.truths_of(name)
        assert len(truths) == BINS + 1 and truths[0].measurements.shape == (SUBSETS, 2, count)
        for subset, seed in study.cells():
            expected = retrained_measurements(study.run, subset, seed)[f"{name}/loss"]
            torch.testing.assert_close(truths[-1].measurements[subset, seed], expected)
    model = retrained_model(study.run, 3, 1)
    losses = losses_by_timestep(model, study.run.data.queries, PRESET.measurement.draws, bins=BINS)
    torch.testing.assert_close(study.measurements("held-out")[3, 1], losses.T)


def test_scores_of_a_range_are_those_of_its_weighted_loss(finished):
    study, _ = finished
    run, scores = study.run, study.scores("held-out")
    for place in range(BINS):  # two slices of the draws a range
        weights = tuple(float(BINS * (slot == place)) for slot in range(BINS))
        expected = di.influence(
            di.runs.full_model(run).model, di.runs.curvature_of_run(run), run.data.train, run.data.queries,
            measurement=di.MeasurementConfig("weighted_loss", PRESET.measurement.draws, loss_weights=weights),
            draws=PRESET.gradient_draws, damping=PRESET.damping,
        )  # fmt: skip
        torch.testing.assert_close(scores[place], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    whole = di.influence_scores(run, run.data.queries)[0]
    found = study.with_whole(scores, "held-out")[-1]
    torch.testing.assert_close(found, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_the_bundle_holds_the_lds_of_every_pair(finished):
    study, made = finished
    lds = made.arrays["held-out/lds"]
    assert lds.shape == (BINS + 1, BINS + 1, 6) and made.arrays["generated/lds"].shape == (BINS + 1, BINS + 1, 3)
    removed = ~di.runs.subset_masks(study.run, SUBSETS)
    scores, truths = study.with_whole(study.scores("held-out"), "held-out"), study.truths_of("held-out")
    for row, matrix in enumerate(scores):
        for column, truth in enumerate(truths):
            for query in range(6):
                predicted = [float(matrix[query, mask].sum()) for mask in removed]
                expected = spearmanr(predicted, truth.measurements[:, :, query].mean(1)).statistic
                assert lds[row, column, query] == pytest.approx(expected, abs=1e-6)
    summary = made.metrics["sets"]["held-out"]
    np.testing.assert_allclose(summary["lds"], lds.mean(-1), atol=1e-6)
    assert summary["ceiling"][2] == pytest.approx(di.ceiling(truths[2]))
    np.testing.assert_allclose(summary["mean_loss"], study.measurements("held-out").mean((0, 1, 2)))
    np.testing.assert_array_equal(made.arrays["edges"], [0, 250, 500, 750, 1000])
    assert made.metrics["retrained_models"] == 2 * SUBSETS


def test_the_advantage_over_a_range_s_own_scores_is_paired(finished):
    study, made = finished
    scores, truths = study.with_whole(study.scores("held-out"), "held-out"), study.truths_of("held-out")
    lds, advantage = (made.arrays[f"held-out/{name}"] for name in ("lds", "advantage"))
    for row, column in ((3, 0), (0, 2), (BINS, 1)):
        found = di.paired_difference(scores[row], scores[column], truths[column], bootstrap=200)
        assert advantage[row, column] == pytest.approx(found.value, abs=1e-6)
        assert advantage[row, column] == pytest.approx((lds[row, column] - lds[column, column]).mean(), abs=1e-6)
        np.testing.assert_allclose(made.arrays["held-out/advantage_interval"][row, column], found.interval, atol=1e-6)
    summary = made.metrics["sets"]["held-out"]
    assert summary["best"] == lds.mean(-1)[:, :BINS].argmax(0).tolist()
    assert len(summary["held_out_gain"]) == len(summary["held_out_favourite"]) == BINS


def test_a_killed_study_goes_on(finished, tmp_path, monkeypatch):
    run = replace(finished[0].run, folder=tmp_path / "run")
    study, measured = TimestepStudy(run, bins=BINS, seeds=1), []

    def counted(self, model, original=TimestepStudy._measured_by):
        if len(measured) == 2:
            measured.append("killed")
            raise KeyboardInterrupt
        measured.append("done")
        return original(self, model)

    monkeypatch.setattr(timesteps.TimestepStudy, "_measured_by", counted)
    with pytest.raises(KeyboardInterrupt):
        list(study.shard())
    assert study.missing() == [(2, 0), (3, 0)]
    with pytest.raises(ArtifactError, match="2 of 4 cells of study 'timesteps' are missing, first \\['k002-r0'\\]"):
        study.bundle(root=tmp_path)
    list(study.shard())
    assert measured == ["done", "done", "killed", "done", "done"] and study.missing() == []
    torch.testing.assert_close(study.measurements("generated"), finished[0].measurements("generated")[:4, :1])
    made = di.load_bundle(study.bundle(root=tmp_path).name, root=tmp_path)
    assert not {"held-out/advantage", "generated/advantage"} & made.arrays.keys()  # too few subsets to halve


@pytest.mark.parametrize(
    ("bins", "options", "message"),
    [
        (3, {}, "bins=3: give a divisor of the 1000 timesteps"),
        (0, {}, "bins=0: give a divisor"),
        (10, {}, "bins=10 with 16 draws: range \\[.\\] holds no draw of some query; give fewer bins or more draws"),
        (4, {"measurement.name": "square_norm"}, "measurement='square_norm': the study is of the loss"),
    ],
)
def test_wrong_input_is_refused_before_any_work(tmp_path, bins, options, message):
    run = di.open_run(di.with_options(PRESET, options), tmp_path / "run", progress=False)
    with pytest.raises(ConfigurationError, match=message):
        TimestepStudy(run, bins=bins)
    assert not (tmp_path / "run" / "model").exists()
