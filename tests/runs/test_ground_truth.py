from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.artifacts import read_json, stage
from diffinf_lib.errors import ArtifactError, ConfigurationError
from diffinf_lib.runs import QUERY_SETS, retrained_measurements, shard_of, subset_mask

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
    monkeypatch.setattr(training._Trainer, "advance", lambda *_: pytest.fail("retrained"))
    after = retrained_measurements(replace(run, preset=other), 0, 0)
    assert after.keys() == {f"{name}/{label}" for name in QUERY_SETS for label in ("loss", "square_norm")}
    assert_equal_but_for_rounding(after["held-out/loss"], before["held-out/loss"])


def test_a_retrained_model_saw_its_subset_only(tmp_path):
    """The same model trained by hand on the kept images measures the same."""
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    measured = retrained_measurements(run, 1, 1)["held-out/loss"]
    kept = run.data.train.subset(subset_mask(24, 0.5, 1))
    config = replace(PRESET.training, steps=PRESET.subsets.steps)
    model = di.train(di.build_model(PRESET.unet, seed=1), kept, config, seed=1, progress=False).model
    assert_equal_but_for_rounding(di.measure(model, run.data.queries, PRESET.measurement), measured)


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
