from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.artifacts import read_json, stage
from diffinf_lib.configuration import SamplingConfig
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.options import with_options
from diffinf_lib.runs import (
    QUERY_SETS,
    ground_truth,
    known as known_module,
    retrained_measurements,
    shard_of,
    subset_mask,
    subset_masks,
)
from diffinf_lib.training.stacked import StackedTrainer

PRESET = di.get_preset("smoke")


def test_a_subset_keeps_its_share_and_depends_on_its_index_only():
    masks = torch.stack([subset_mask(300, 0.5, index) for index in range(20)])
    assert masks.sum(1).tolist() == [150] * 20
    assert len({tuple(mask.tolist()) for mask in masks}) == 20
    # each image is kept in about half of many subsets: binomial, standard deviation 5%
    kept = torch.stack([subset_mask(300, 0.5, index) for index in range(100)]).double().mean(0)
    assert (kept - 0.5).abs().max() < 0.25


def test_shards_part_the_work():
    parts = [shard_of(5, 3, shard, 4) for shard in range(4)]
    assert sorted(pair for part in parts for pair in part) == [(k, r) for k in range(5) for r in range(3)]
    with pytest.raises(ConfigurationError, match="shard=4 of 4"):
        shard_of(5, 3, 4, 4)


def test_a_ground_truth_from_models_to_bundle(tmp_path):
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    assert list(di.runs.ground_truth_shard(run, shard=1, shards=2)) == shard_of(4, 2, 1, 2)
    with pytest.raises(ArtifactError, match="4 of 8 retrained models are missing"):
        di.runs.ground_truth_bundle(run, root=tmp_path)
    list(di.runs.ground_truth_shard(run, shard=0, shards=2))
    bundle = di.load_bundle(di.runs.ground_truth_bundle(run, "g", root=tmp_path).name, root=tmp_path)
    assert bundle.arrays["masks"].shape == (4, 24)
    for name, count in zip(QUERY_SETS, (6, 3), strict=True):
        for measurement in ("loss", "elbo", "log_likelihood"):
            measured = bundle.arrays[f"{name}/measured/{measurement}"]
            assert measured.shape == (4, 2, count) and np.isfinite(measured).all()
            truth = di.load_ground_truth("g", name, measurement, root=tmp_path)
            assert truth.measurements.dtype == torch.float64 and len(truth.full_measurements) == count
    values = retrained_measurements(run, 2, 1)
    np.testing.assert_array_equal(bundle.arrays["generated/measured/elbo"][2, 1], values["generated/elbo"].float())
    with pytest.raises(
        ConfigurationError, match="measurement='likes': bundle g has elbo, log_likelihood, loss for held-out"
    ):
        di.load_ground_truth("g", measurement="likes", root=tmp_path)


def test_measuring_something_else_retrains_nothing(tmp_path, monkeypatch):
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    before = retrained_measurements(run, 0, 0)
    other = replace(PRESET, further_measurements=(di.MeasurementConfig("square_norm", draws=di.DrawConfig(8)),))
    monkeypatch.setattr(training.Trainer, "advance", lambda *_: pytest.fail("retrained"))
    after = retrained_measurements(replace(run, preset=other), 0, 0)
    assert after.keys() == {f"{name}/{label}" for name in QUERY_SETS for label in ("loss", "square_norm")}
    assert_equal_but_for_rounding(after["held-out/loss"], before["held-out/loss"])


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_retrained_model_saw_its_subset_only(share, tmp_path):
    """The same model trained by hand on the kept images measures the same."""
    run = di.open_run(with_options(PRESET, {"subsets.fraction": share}), tmp_path / "run", progress=False)
    measured = retrained_measurements(run, 1, 1)["held-out/loss"]
    assert subset_masks(run, 3).sum(1).tolist() == [24 * share] * 3
    kept = run.data.train.subset(subset_mask(24, share, 1))
    config = replace(PRESET.training, steps=PRESET.subsets.steps)
    model = di.train(di.build_model(PRESET.unet, seed=1), kept, config, seed=1, progress=False).model
    assert_equal_but_for_rounding(di.measure(model, run.data.queries, PRESET.measurement), measured)


def test_models_retrained_together_measure_what_they_do_alone(tmp_path, monkeypatch):
    """Killed in the middle and asked for again; models that are done are not made again, and their time is their share."""
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    advance = StackedTrainer.advance

    def killed(stack):
        if any(place and place.step == 6 for place in stack.taken):
            raise KeyboardInterrupt
        advance(stack)

    with monkeypatch.context() as patched:
        patched.setattr(StackedTrainer, "advance", killed)
        with pytest.raises(KeyboardInterrupt):
            list(di.runs.ground_truth_shard(run, subsets=3, seeds=1, together=2))
    assert list(di.runs.ground_truth_shard(run, subsets=3, seeds=1, together=2)) == shard_of(3, 1, 0, 1)
    monkeypatch.setattr(StackedTrainer, "advance", lambda *_: pytest.fail("retrained"))
    assert list(di.runs.ground_truth_shard(run, subsets=3, seeds=1, together=2)) == shard_of(3, 1, 0, 1)
    kept = run.data.train.subset(subset_mask(24, 0.5, 1))
    alone = di.train(di.build_model(PRESET.unet), kept, PRESET.retraining(), progress=False).model
    expected = di.measure(alone, run.data.queries, PRESET.measurement)
    assert_equal_but_for_rounding(retrained_measurements(run, 1, 0)["held-out/loss"], expected, within=1e-4)
    folder = next(run.path("retrained").glob("k001-r0-*"))
    assert read_json(folder / "manifest.json")["how"] == {"together": 2}
    bundle = di.load_bundle(
        di.runs.ground_truth_bundle(run, "g", subsets=3, seeds=1, root=tmp_path).name, root=tmp_path
    )
    walls = [read_json(path)["measured"]["wall_seconds"] for path in run.path("retrained").glob("*/manifest.json")]
    assert bundle.metrics["training_seconds"] == pytest.approx(sum(walls) / 2, abs=0.1)


def test_how_many_models_at_a_time_is_chosen_once(tmp_path, monkeypatch):
    run = di.open_run(PRESET, tmp_path, progress=False)
    monkeypatch.setattr(ground_truth, "step_seconds", lambda *_: {1: 1.0, 4: 0.95, 8: 0.5})
    assert ground_truth.fastest_together(run) == 8
    monkeypatch.setattr(ground_truth, "step_seconds", lambda *_: pytest.fail("timed again"))
    assert ground_truth.fastest_together(run) == 8
    assert training.fastest({1: 1.0, 4: 0.95}) == training.fastest({1: 1.0}) == 1
    model, images = di.build_model(PRESET.unet), run.data.train
    before = [parameter.clone() for parameter in model.parameters()]
    found = training.step_seconds(model, images, PRESET.retraining(), steps=1, widths=(1, 2))
    assert found.keys() == {1, 2} and min(found.values()) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ConfigurationError, match="together=0"):
        next(di.runs.ground_truth_shard(run, together=0))


def test_a_run_folder_belongs_to_its_preset_from_its_first_stage_on(tmp_path):
    other = replace(PRESET, damping=0.2)
    run = di.open_run(other, tmp_path)
    run.path("logs").mkdir()
    run.path("logs", "e01_model.ipynb").write_text("{}")
    run.path("model").mkdir()  # of a stage that was refused
    run.path(".model.lock").touch()
    assert di.open_run(PRESET, tmp_path).preset == PRESET
    assert read_json(tmp_path / "config.json")["preset"]["damping"] == PRESET.damping
    with pytest.raises(KeyboardInterrupt), stage(run.path("model"), {}, name="model"):
        raise KeyboardInterrupt  # a stage that was begun counts
    with pytest.raises(ArtifactError, match="damping is 1e-08 there, 0.1 asked"):
        di.open_run(replace(PRESET, damping=0.1), tmp_path)
    more = replace(PRESET, subsets=replace(PRESET.subsets, count=9))
    assert di.open_run(more, tmp_path).preset.subsets.count == 9
    assert di.open_run(other, tmp_path, force=True).preset == other


def test_a_refused_network_is_not_written(tmp_path):
    """Images of 8×8 halve three times, and no more."""
    four = replace(
        PRESET.unet,
        block_out_channels=(8,) * 4,
        down_block_types=("DownBlock2D",) * 4,
        up_block_types=("UpBlock2D",) * 4,
    )
    five = replace(
        PRESET.unet,
        block_out_channels=(8,) * 5,
        down_block_types=("DownBlock2D",) * 5,
        up_block_types=("UpBlock2D",) * 5,
    )
    with pytest.raises(ConfigurationError, match="8×8 pixels, 5 blocks take multiples of 16"):
        di.open_run(replace(PRESET, unet=five), tmp_path)
    assert not (tmp_path / "config.json").exists()
    run = di.open_run(replace(PRESET, unet=four), tmp_path)
    image, network = run.data.train.images[:1], di.build_model(four)
    assert network(image, torch.zeros(1, dtype=torch.int64)).shape == image.shape
    with pytest.raises(ConfigurationError, match=r"images of \(1, 8, 8\): UNet2DModel does not take them"):
        di.build_model(five)(image, torch.zeros(1, dtype=torch.int64))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A folder with the bundle of a ground truth of three subsets and one seed; its run folder is of no more use."""
    root = tmp_path_factory.mktemp("bundles")
    run = di.open_run(PRESET, root / "run", progress=False)
    list(di.runs.ground_truth_shard(run, subsets=3, seeds=1))
    di.runs.ground_truth_bundle(run, "begun-ground-truth", subsets=3, seeds=1, root=root)
    return root


def test_a_ground_truth_goes_on_from_its_bundle(bundles, tmp_path, monkeypatch):
    """With another full model, as rounding makes it on another machine: queries and what they measured are the bundle's."""
    run, begun = (
        di.open_run(PRESET, tmp_path / "second", progress=False),
        di.load_bundle("begun-ground-truth", root=bundles),
    )
    with torch.no_grad():
        next(run.model.model.network.parameters()).mul_(1.01)
    known = di.runs.known_measurements(run, "begun-ground-truth", bundles)
    trained, advance = [], training.Trainer.advance
    monkeypatch.setattr(training.Trainer, "advance", lambda self: (trained.append(self.step), advance(self))[1])
    with pytest.raises(ArtifactError, match="5 of 8 retrained models are missing"):
        di.runs.ground_truth_bundle(run, "whole", root=tmp_path, known=known)
    assert not trained
    assert len(list(di.runs.ground_truth_shard(run, known=known))) == 8
    assert trained.count(0) == 5
    whole = di.load_bundle(di.runs.ground_truth_bundle(run, "whole", root=tmp_path, known=known).name, root=tmp_path)
    for name in QUERY_SETS:
        for same in (f"{name}/images", f"{name}/ids", f"{name}/full/loss"):
            np.testing.assert_array_equal(whole.arrays[same], begun.arrays[same])
        measured = whole.arrays[f"{name}/measured/loss"]
        np.testing.assert_array_equal(measured[:3, :1], begun.arrays[f"{name}/measured/loss"])
        assert measured.shape[:2] == (4, 2)
        by_hand = di.measure(di.runs.retrained_model(run, 3, 1), known.queries[name], PRESET.measurement)
        assert_equal_but_for_rounding(torch.from_numpy(measured[3, 1]), by_hand)
    configuration = whole.manifest["configuration"]
    assert (configuration["subsets"], configuration["seeds"]) == (4, [0, 1])
    assert configuration["model"] == begun.manifest["configuration"]["model"] != run.model_identity
    assert (
        whole.metrics["retrained_models"] == 8 and whole.metrics["training_seconds"] > begun.metrics["training_seconds"]
    )


@pytest.mark.parametrize(
    ("options", "seed", "message"),
    [
        ({"subsets.steps": "9"}, 0, "preset.subsets.steps is 8 there, 9 asked"),
        ({"training.learning_rate": "0.002"}, 0, "preset.training.learning_rate is 0.001 there, 0.002 asked"),
        ({"dataset.seed": "1"}, 0, "dataset_digest is"),
        ({}, 1, "seed is 0 there, 1 asked"),
    ],
)
def test_a_bundle_of_another_ground_truth_is_refused(bundles, tmp_path, options, seed, message):
    run = di.open_run(with_options(PRESET, options), tmp_path / "other", seed=seed, progress=False)
    with pytest.raises(ArtifactError, match=message):
        di.runs.known_measurements(run, "begun-ground-truth", bundles)


def test_a_bundle_that_does_not_say_enough_is_refused(tmp_path):
    """The shipped one of an early form records no process."""
    run = di.open_run(di.get_preset("digits-pair"), tmp_path / "run", progress=False)
    with pytest.raises(
        ArtifactError, match=r"digits-pair-ground-truth: made by another configuration: .*preset\.process"
    ):
        di.runs.known_measurements(run, "digits-pair-ground-truth")


def test_a_bundle_goes_on_whatever_else_the_preset_says(bundles, tmp_path):
    options = {"damping": "0.5", "curvature.draws.count": "2", "subsets.count": "9"}
    run = di.open_run(with_options(PRESET, options), tmp_path / "other", progress=False)
    known = di.runs.known_measurements(run, "begun-ground-truth", bundles)
    assert known.holds(2, 0) and not known.holds(3, 0) and not known.holds(2, 1)


def test_a_bundle_of_other_subsets_is_refused(bundles, tmp_path, monkeypatch):
    run = di.open_run(PRESET, tmp_path / "other", progress=False)
    masks = subset_masks(run, 3).flip(0)
    monkeypatch.setattr(known_module, "subset_masks", lambda *_: masks)
    with pytest.raises(ArtifactError, match="its subsets are not those drawn here"):
        di.runs.known_measurements(run, "begun-ground-truth", bundles)


def test_measurements_along_trajectories_cannot_go_on(bundles, tmp_path):
    sampling = SamplingConfig(count=3, steps=PRESET.process.num_train_timesteps)
    along = replace(PRESET, sampling=sampling, further_measurements=(di.MeasurementConfig("trajectory_log_prob"),))
    run = di.open_run(along, tmp_path / "along", progress=False)
    with pytest.raises(ArtifactError, match="along trajectories, which a bundle does not keep; leave known out"):
        di.runs.known_measurements(run, "begun-ground-truth", bundles)
