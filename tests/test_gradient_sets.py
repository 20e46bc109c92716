"""A set of gradients: read as often as wanted, computed once where it is kept, refused where it cannot serve."""

import pytest
import torch
from annotations import unchecked
from cases import conv_denoiser, images, in_shards

import diffinf_lib as di
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientSet, check_blocks, gradients_of, sets, store

FEW = Expectation(DrawConfig(4))


@pytest.fixture(scope="module")
def case():
    model, data = conv_denoiser(), images(5, 4)
    return model, fit_curvature(model, data, CurvatureConfig(draws=DrawConfig(2))), data


@pytest.fixture
def computed(monkeypatch):
    """The ids of images whose gradients are computed."""
    ids, original = [], store.gradients_in_eigenbasis

    def watched(model, curvature, images, *arguments, **options):
        ids.extend(images.ids.tolist())
        return original(model, curvature, images, *arguments, **options)

    monkeypatch.setattr(store, "gradients_in_eigenbasis", watched)
    return ids


def test_nothing_is_computed_before_it_is_read_and_a_kept_set_once(case, tmp_path, computed):
    alone = gradients_of(*case, FEW, shard_size=2)
    kept = gradients_of(*case, FEW, shard_size=2, store=tmp_path)
    assert (kept.count, kept.projected, computed) == (5, False, [])
    first, again, other = kept.whole(), kept.whole(), alone.whole()
    assert computed == 2 * [0, 1, 2, 3, 4]
    alone.whole()
    assert len(computed) == 15
    for name, gradient in first.items():
        assert torch.equal(gradient, again[name]) and torch.equal(gradient, other[name])
        assert gradient.shape == (5, *kept.blocks[name])


def test_a_folder_of_its_own_is_named_by_all_that_gradients_depend_on(case, tmp_path):
    model, curvature, data = case
    made = [
        gradients_of(model, curvature, data, FEW, below=tmp_path),
        gradients_of(model, curvature, data, FEW, below=tmp_path, batch_size=3),
        gradients_of(model, curvature, data, Expectation(DrawConfig(4), seed=1), below=tmp_path),
        gradients_of(model, curvature, data, FEW, below=tmp_path, store_format=StoreFormat("int8")),
        gradients_of(model, curvature, data.subset([1, 0]), FEW, below=tmp_path),
        gradients_of(model, curvature, data, FEW, below=tmp_path, precision="tf32"),
    ]
    folders = [gradients.folder for gradients in made]
    assert folders[0] == folders[1] and len(set(folders)) == 5
    assert made[0].digest == made[1].digest != made[2].digest
    assert all(folder.parent == tmp_path and folder.name.startswith("train-gradients-") for folder in folders)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "projection"])
def test_shards_are_joined_as_they_are_kept(case, kind, monkeypatch):
    model, curvature, data = case
    form = StoreFormat(kind, dimension=8)
    gradients = gradients_of(model, curvature, data, FEW, shard_size=2, store_format=form)
    single = list(gradients.shards(1))
    assert [rows for rows, _ in single] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    ((rows, whole),) = gradients.shards()
    assert rows == slice(0, 5)
    for name, values in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for _, part in single]), values, rtol=1e-12, atol=1e-300)
    monkeypatch.setattr(sets, "SHARD_BYTES", 1)
    held = gradients.held()
    monkeypatch.setattr(store, "gradients_in_eigenbasis", lambda *_, **__: pytest.fail("held gradients computed again"))
    assert [rows for rows, _ in held.shards()] == [rows for rows, _ in single]
    assert all(torch.equal(held.whole()[name], values) for name, values in whole.items())


def test_gradients_in_memory_are_a_set_and_bad_ones_are_refused():
    good = {"a": torch.ones(3, 1, 2), "b": torch.ones(3, 2, 2)}
    gradients = GradientSet.of(good)
    assert gradients.count == 3 and gradients.blocks == {"a": (1, 2), "b": (2, 2)}
    assert gradients.whole() is good or gradients.whole() == good
    assert gradients.digest == in_shards(gradients, 3).digest != GradientSet.of({"a": good["a"]}).digest
    broken = good["b"].clone()
    broken[1, 0, 0] = float("nan")
    for given, message in [
        ({}, "gradients: there are none"),
        ({"a": torch.ones(0, 1, 2)}, "gradients: there are none"),
        ({"a": good["a"], "b": torch.ones(4, 2, 2)}, "gradients: blocks of 3 and of 4 rows"),
        ({"a": good["a"], "b": broken}, "layer b: the gradient of row 1 is not finite"),
        ({"projection": torch.ones(3, 8)}, r"layer projection: gradients of shape \(3, 8\)"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            GradientSet.of(given)


def test_other_blocks_and_projections_are_refused_in_one_line(case):
    model, curvature, data = case
    gradients = gradients_of(model, curvature, data, FEW)
    other = GradientSet.of({"down": torch.ones(2, 1, 1)})
    with pytest.raises(
        ConfigurationError, match=r"train: layer down: gradients of shape \(1, 1\), .* in the curvature"
    ):
        check_blocks(other, curvature, "train")
    with pytest.raises(ConfigurationError, match=r"queries: layer .*in the others"):
        check_blocks(gradients, other, "queries")
    projected = gradients_of(model, curvature, data, FEW, store_format=StoreFormat("projection", dimension=8))
    refused = [
        lambda: di.self_influence(projected, curvature),
        lambda: di.attribution.scores_by_layer(gradients, projected, curvature, damping=1e-3),
        lambda: di.attribution.scores_by_layer(projected, gradients, curvature, damping=1e-3),
        lambda: di.attribution.gradient_dot_scores(gradients, projected),
        lambda: di.attribution.gradient_cosine_scores(projected, gradients),
        lambda: di.attribution.trak_scores(projected, gradients, damping=1.0),
    ]
    for work in refused:
        with pytest.raises(ConfigurationError, match="a projection has forgotten its blocks") as refusal:
            work()
        assert "\n" not in str(refusal.value)
    with pytest.raises(ConfigurationError, match="query_format='projection'"):
        di.scores_from_gradients(projected, gradients, curvature, damping=1e-3)
    assert di.scores_from_gradients(gradients, projected, curvature, damping=[1e-3, 1.0]).shape == (2, 5, 5)
