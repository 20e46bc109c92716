"""The removal experiment on the smoke preset: what is removed, what is measured, and that a killed study goes on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.data.selection import evenly_spaced
from diffinf_lib.errors import ArtifactError, ConfigurationError, DataError
from diffinf_lib.pictures import to_bytes
from diffinf_lib.studies import removal_pictures
from diffinf_lib.studies.removal import (
    RemovalCell,
    RemovalConfig,
    RemovalStudy,
    extreme_positions,
    random_positions,
)

STEPS = 8
PRESET = di.with_options(
    di.get_preset("smoke"),
    {"training.steps": STEPS, "training.checkpoint_every": 4, "training.keep_ema_at": (STEPS,)},
)
SMALL = RemovalConfig(queries=1, shares=(0.09, 0.25), seeds=2, random_sets=2)


def study_in(folder, config=SMALL):
    return RemovalStudy(di.open_run(PRESET, folder, progress=False), config=config)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study run to its end in two shards, and its bundle."""
    root = tmp_path_factory.mktemp("finished")
    study = study_in(root / "run")
    done = [list(study.shard(shard, 2)) for shard in range(2)]
    assert sorted(done[0] + done[1]) == sorted(study.cells())
    return study, di.load_bundle(study.bundle(root=root).name, root=root)


@pytest.mark.parametrize(("count", "total"), [(1, 1), (1, 6), (6, 57), (6, 64), (7, 7), (20, 57)])
def test_chosen_queries_are_evenly_spaced(count, total):
    chosen = np.array(evenly_spaced(count, total))
    steps = np.diff(chosen)
    assert len(chosen) == count and (chosen >= 0).all() and (chosen < total).all() and (steps >= 1).all()
    assert count < 2 or steps.max() - steps.min() <= 1
    assert abs(chosen[0] - (total - 1 - chosen[-1])) <= 1


def test_the_ends_are_the_highest_and_the_lowest_scores():
    scores = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top, bottom = extreme_positions(scores, 7)
    by_value = sorted(range(40), key=lambda n: scores[n].item())
    assert list(top) == sorted(by_value[-7:]) and list(bottom) == sorted(by_value[:7])
    with pytest.raises(DataError, match="scores: some are not finite"):
        extreme_positions(scores.index_fill(0, torch.tensor([3]), torch.nan), 7)


def test_random_sets_are_nested_distinct_and_uniform():
    sets = [set(random_positions(30, 6, index)) for index in range(400)]
    assert all(len(chosen) == 6 for chosen in sets) and len(set(map(frozenset, sets))) > 390
    assert set(random_positions(30, 2, 5)) < sets[5]
    assert random_positions(30, 6, 5, seed=1) != random_positions(30, 6, 5)
    counts = np.bincount([n for chosen in sets for n in chosen], minlength=30)
    assert np.abs(counts - 80).max() < 4.5 * 8  # binomial of 400 and 1/5: standard deviation 8


def test_what_is_removed_is_what_the_scores_say(finished):
    study, made = finished
    run, arrays = study.run, made.arrays
    held_out, generated = run.data.queries.subset([3]), di.runs.generated_queries(run).subset([1])
    scores = torch.cat([di.influence_scores(run, images)[0] for images in (held_out, generated)])
    assert arrays["sets"].tolist() == ["held-out", "generated"] and arrays["positions"].tolist() == [3, 1]
    np.testing.assert_array_equal(arrays["ids"], torch.cat([held_out.ids, generated.ids]))
    np.testing.assert_array_equal(arrays["images"], torch.cat([held_out.images, generated.images]))
    np.testing.assert_allclose(arrays["scores"], scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))
    for share, count in enumerate((2, 6)):
        for query, row in enumerate(arrays["scores"]):
            top, bottom = arrays["removed"][share, :, query, :count]
            assert row[top].min() > np.delete(row, top).max() and row[bottom].max() < np.delete(row, bottom).min()
        assert (arrays["removed"][share, ..., count:] == -1).all()
        assert (arrays["random_removed"][share, :, count:] == -1).all()
        for index in range(2):
            assert tuple(arrays["random_removed"][share, index, :count]) == random_positions(24, count, index)


def test_the_bundle_holds_every_model(finished):
    study, made = finished
    arrays, sets = made.arrays, zip(made.arrays["sets"], made.arrays["positions"], strict=True)
    assert {name: arrays[name].shape for name in ("measurements", "random", "full")} == {
        "measurements": (2, 2, 2, 2), "random": (2, 2, 2, 2), "full": (2, 2),
    }  # fmt: skip
    for query, (name, position) in enumerate(sets):
        for seed in range(2):
            assert arrays["full"][query, seed] == study.measurements(RemovalCell((), seed))[name][position]
            for share, count in enumerate((2, 6)):
                for row in range(2):
                    for values, removed in [
                        (arrays["measurements"][share, row, query, seed], arrays["removed"][share, row, query, :count]),
                        (arrays["random"][share, row, query, seed], arrays["random_removed"][share, row, :count]),
                    ]:
                        cell = RemovalCell(tuple(removed.tolist()), seed)
                        assert values == study.measurements(cell)[name][position]
    top = (arrays["measurements"][1, 0] - arrays["full"]).mean()
    assert made.metrics["mean_change"]["0.25"]["top"] == pytest.approx(top)
    assert made.metrics["retrained_models"] == len(study.cells()) <= 2 * (1 + 2 * 2 + 2 * 2 * 2)
    kept = [file.name for file in study.run.path("removal").rglob("*") if file.is_file() and file.name[0] != "."]
    assert sorted(kept) == ["manifest.json"] * len(study.cells()) + ["removal.npz"] * len(study.cells())


def test_a_model_is_the_full_training_without_the_removed_images(finished):
    study, _ = finished
    removed = study.removed[1][0][1]
    assert len(removed) == 6
    kept = study.run.data.train.subset([n for n in range(24) if n not in removed])
    config = replace(PRESET.training, keep_ema_at=())
    model = di.train(di.build_model(PRESET.unet, seed=1), kept, config, seed=1, progress=False).model
    values = study.measurements(RemovalCell(removed, 1))
    for name, images in (("held-out", study.run.data.queries), ("generated", di.runs.generated_queries(study.run))):
        expected = di.measure(model, images, PRESET.measurement)
        assert_equal_but_for_rounding(values[name], expected)


def test_pictures_are_drawn_from_the_querys_own_seed(finished):
    study, made = finished
    run, arrays = study.run, made.arrays
    shape = run.data.train.shape
    assert study.drawn == [1] and arrays["pictures"].dtype == np.uint8
    assert {name: arrays[name].shape[: -len(shape)] for name in ("pictures", "random_pictures", "full_pictures")} == {
        "pictures": (2, 2, 1, 2), "random_pictures": (2, 2, 1, 2), "full_pictures": (1, 2),
    }  # fmt: skip
    query = to_bytes(di.runs.generated_queries(run).images[1]).numpy().astype(int)
    assert (
        np.abs(arrays["full_pictures"][0, 0] - query).max() <= 1
    )  # the full training with the run's own seed is the run's
    assert np.abs(arrays["full_pictures"][0, 1] - query).max() > 1
    removed = study.removed[1][0][1]
    kept = run.data.train.subset([n for n in range(24) if n not in removed])
    config = replace(PRESET.training, keep_ema_at=())
    model = di.train(di.build_model(PRESET.unet, seed=1), kept, config, seed=1, progress=False).model
    sampling = PRESET.sampling
    again = di.sample(model, 3, shape, method=sampling.method, steps=sampling.steps)[1]
    assert np.abs(arrays["pictures"][1, 0, 0, 1] - to_bytes(again).numpy().astype(int)).max() <= 1


def test_distances_are_between_models_of_one_training_seed(finished):
    study, made = finished
    arrays = made.arrays
    images = study.run.data.train.images.flatten(1).double()
    typical = np.mean([(a - b).norm() for place, a in enumerate(images) for b in images[:place]])
    for name, full in (("", arrays["full_pictures"]), ("random_", arrays["full_pictures"])):
        pictures = arrays[f"{name}pictures"]
        for share, row, seed in np.ndindex(2, 2, 2):
            apart = (pictures[share, row, 0, seed].astype(float) - full[0, seed]) / 127.5
            found = arrays[f"{name}pixel_distances"][share, row, 0, seed]
            np.testing.assert_allclose(found, np.sqrt((apart**2).sum()) / typical, rtol=1e-5)
            assert (arrays[f"{name}feature_distances"][share, row, 0, seed] > 0) == (found > 0)
    assert arrays["full_pixel_distances"][0, 0] < 0.01 < arrays["full_pixel_distances"][0, 1]
    told = made.metrics["pictures"]
    mean, low, high = told["0.25"]["pixel"]["top"]
    assert mean == pytest.approx(arrays["pixel_distances"][1, 0].mean()) and low <= mean <= high
    change = (arrays["random"][0, :, 1] - arrays["full"][1]).mean()
    assert told["0.09"]["loss"]["random"][0] == pytest.approx(change)
    assert told["again"]["feature"][0] == pytest.approx(arrays["full_feature_distances"][:, 1:].mean())


def test_other_queries_have_other_pictures(finished):
    more = study_in(finished[0].run.folder, replace(SMALL, queries=2))
    assert more.drawn == [0, 2] and RemovalCell((), 0) in more.missing() == more.cells()


def test_a_part_of_the_queries_and_further_full_trainings(finished):
    study, made = finished
    config = replace(SMALL, part=(1,), seeds=1, full_seeds=2)
    part = study_in(study.run.folder, config)
    assert part.missing() == [] and len(part.cells()) <= 2 + 4 + 4 and part.cells()[-1] == RemovalCell((), 1)
    arrays, metrics = part.contents()
    np.testing.assert_array_equal(arrays["measurements"], made.arrays["measurements"][:, :, 1:, :1])
    np.testing.assert_array_equal(arrays["full"], made.arrays["full"][1:, :1])
    np.testing.assert_array_equal(arrays["pictures"], made.arrays["pictures"][..., :1, :, :, :])
    np.testing.assert_array_equal(arrays["full_pictures"], made.arrays["full_pictures"])
    np.testing.assert_allclose(arrays["pixel_distances"], made.arrays["pixel_distances"][..., :1])
    assert metrics["pictures"]["again"] == made.metrics["pictures"]["again"]
    arrays, metrics = study_in(study.run.folder, replace(SMALL, part=(0,), full_seeds=1)).contents()
    np.testing.assert_array_equal(arrays["measurements"], made.arrays["measurements"][:, :, :1])
    assert "pictures" not in metrics and not any("pictures" in name or "distances" in name for name in arrays)


def test_equal_removals_are_trained_once(finished):
    study = study_in(finished[0].run.folder, replace(SMALL, shares=(0.08, 0.09)))
    assert study.counts == [2, 2]
    removed = [set(ends) for share in study.removed for ends in [share[0] + share[1]]]
    assert len(study.cells()) == 2 * (1 + 2 + len(removed[0])) == 2 * (1 + 2 + len(removed[0] | removed[1]))
    assert study.missing() == []
    arrays = study.contents()[0]
    np.testing.assert_array_equal(arrays["measurements"][0], arrays["measurements"][1])


def test_seeds_are_outermost(finished):
    study, _ = finished
    fewer = study_in(study.run.folder, replace(SMALL, seeds=1, full_seeds=1))
    assert fewer.cells() == study.cells()[: len(fewer.cells())]
    np.testing.assert_array_equal(fewer.contents()[0]["measurements"], study.contents()[0]["measurements"][..., :1])


def test_a_killed_study_goes_on_and_ends_with_the_same_arrays(finished, tmp_path, monkeypatch):
    config = replace(SMALL, seeds=1, full_seeds=1)
    study, steps, advance = study_in(tmp_path / "run", config), [], training.Trainer.advance
    total = len(study.cells())

    def counted(trainer, killed_at=None):
        if len(steps) == killed_at:
            raise KeyboardInterrupt
        steps.append(trainer.step)
        advance(trainer)

    with monkeypatch.context() as patched:  # in the third model, two steps after its checkpoint at step 4
        patched.setattr(training.Trainer, "advance", lambda trainer: counted(trainer, killed_at=2 * STEPS + 6))
        with pytest.raises(KeyboardInterrupt):
            list(study.shard())
    assert len(study.missing()) == total - 2
    with pytest.raises(ArtifactError, match=f"{total - 2} of {total} cells"):
        study.bundle(root=tmp_path)
    assert not (tmp_path / "smoke-removal").exists()

    again = study_in(tmp_path / "run", config)
    with monkeypatch.context() as patched:  # trained and measured, but nothing drawn
        patched.setattr(removal_pictures, "sample", interrupted)
        patched.setattr(training.Trainer, "advance", counted)
        with pytest.raises(KeyboardInterrupt):
            list(again.shard())
    assert steps[2 * STEPS + 6 :] == list(range(4, STEPS)), "the third model began anew"

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "advance", counted)
        for shard in (1, 0):
            list(again.shard(shard, 2))
    assert len(steps) == 3 * STEPS + 2 + (total - 3) * STEPS, "a finished model was trained again"
    arrays, expected = (one.contents()[0] for one in (again, study_in(finished[0].run.folder, config)))
    assert arrays.keys() == expected.keys()
    for name in arrays:
        np.testing.assert_array_equal(arrays[name], expected[name], err_msg=name)


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries=0: give a positive whole number"),
        ({"queries": 4, "shares": (0.1,)}, "queries=4: give 1 to 3"),
        ({"seeds": 1.5}, "seeds=1.5: give a positive whole number"),
        ({"random_sets": -1}, "random_sets=-1: give a positive whole number"),
        ({"shares": []}, "shares=\\[\\]: give a list of shares"),
        ({"shares": 0.1}, "shares=0.1: give a list of shares"),
        ({"shares": (0.1, 0.6)}, r"shares=\(0.1, 0.6\): give a list of shares above 0 and at most 0.5"),
        ({"shares": (float("nan"),)}, r"shares=\(nan,\): give a list of shares"),
        ({"queries": 1, "shares": (0.1,), "part": (1, 2)}, r"part=\[1, 2\]: give places from 0 to 1"),
        ({"part": (1, 0)}, r"part=\(1, 0\): give a list of places from 0 on, ascending"),
        ({"full_seeds": 0}, "full_seeds=0: give a positive whole number"),
        ({"shares": (0.01,)}, "share=0.01: no image of 24; give 0.042 or more"),
    ],
)
def test_wrong_input_is_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(ConfigurationError, match=message):
        study_in(tmp_path / "run", RemovalConfig(**options))
    assert not (tmp_path / "run" / "model").exists()


def test_a_wrong_shard_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigurationError, match="shard=2 of 2: give 0 <= shard < shards"):
        next(study_in(tmp_path / "run").shard(2, 2))
    assert not (tmp_path / "run" / "model").exists()
