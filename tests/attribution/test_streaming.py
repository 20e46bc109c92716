"""Scores of a part of the queries and a part of the images at a time: the plain matrix product, whatever the parts.

The gradients are made up, in the blocks of a small network and the eigenbasis of a curvature fitted to it.
"""

from dataclasses import replace

import pytest
import torch
from cases import conv_denoiser, images, in_shards

from diffinf_lib.artifacts import file_digest
from diffinf_lib.attribution import gradient_dot_scores, scores_by_layer, scoring
from diffinf_lib.compression import Compression
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.gradients import GradientSet, gradients_of, pieces, sets, store

QUERIES, IMAGES, DAMPINGS, APPROXIMATIONS = 7, 11, [1e-6, 1e-3], ["ekfac", "kfac", "identity"]
DRAWS = Expectation(DrawConfig(2))


@pytest.fixture(scope="module")
def curvature():
    return fit_curvature(conv_denoiser(), images(3, 4), CurvatureConfig(draws=DrawConfig(2)))


def made_up(curvature, count, seed):
    generator = torch.Generator().manual_seed(seed)
    like = {name: torch.empty(count, *layer.shape, dtype=torch.float64) for name, layer in curvature.layers.items()}
    return GradientSet.of({name: value.normal_(generator=generator) for name, value in like.items()})


def dense(gradients, curvature):
    """One row a gradient."""
    return torch.cat([gradients.whole()[name].flatten(1) for name in curvature.layers], dim=1)


def by_one_product(queries, train, curvature, inverses):
    """G_q diag(1 / (Λ + λ)) G_nᵀ / N of each inverse."""
    factors = zip(*(inverses.factors(curvature, name) for name in curvature.layers), strict=True)
    rows, columns = dense(queries, curvature), dense(train, curvature)
    return torch.stack([(rows * torch.cat([f.flatten() for f in each])) @ columns.T for each in factors]) / train.count


@pytest.fixture(params=[1, 3, 100], ids="{} together".format)
def streamed(request, monkeypatch, curvature):
    """Nothing stays on the device: training gradients meet some queries at a time, both so many rows."""
    each = made_up(curvature, 1, 0).bytes_each
    monkeypatch.setattr(sets, "HELD_BYTES", 0)
    monkeypatch.setattr(sets, "SHARD_BYTES", 2 * each)
    monkeypatch.setattr(scoring, "STREAMED_BYTES", 4 * request.param * each)


@pytest.mark.parametrize("packed_as", ["float32", "bfloat16", "int8", "int4", "int8_tensor", "svd"])
@pytest.mark.parametrize("shard", [1, 2, 11])
def test_blocks_of_queries_and_shards_of_images_are_the_plain_product(streamed, curvature, packed_as, shard):
    inverses = Inverses(DAMPINGS, APPROXIMATIONS, products=True)
    form = StoreFormat(packed_as, rank=2)
    queries = made_up(curvature, QUERIES, 1).packed_as(curvature, form)
    train = in_shards(made_up(curvature, IMAGES, 2), shard)
    found = scoring.damped_scores(queries, train, curvature, inverses)
    expected = by_one_product(queries, train, curvature, inverses)
    assert found.shape == (len(inverses), QUERIES, IMAGES) and len(inverses) == 7
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    torch.testing.assert_close(
        gradient_dot_scores(queries, train),
        IMAGES * expected[-1],
        rtol=1e-10,
        atol=1e-9 * float(expected[-1].abs().max()),
    )


def test_several_sets_come_from_one_reading(streamed, curvature):
    readings, train = [], made_up(curvature, IMAGES, 2)

    def counted(first):
        readings.append(first)
        return train.packed(first)

    inverses, asked = Inverses(DAMPINGS, ["kfac"]), [made_up(curvature, count, count) for count in (5, 2)]
    found = scoring.scores_of_sets(asked, replace(train, packed=counted), curvature, inverses)
    assert readings == [0]
    for queries, scores in zip(asked, found, strict=True):
        expected = by_one_product(queries, train, curvature, inverses)
        torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_layers_add_up_in_blocks_too(streamed, curvature):
    queries, train = made_up(curvature, QUERIES, 1), in_shards(made_up(curvature, IMAGES, 2), 2)
    parts = scores_by_layer(queries, train, curvature, damping=DAMPINGS)
    expected = by_one_product(queries, train, curvature, Inverses(DAMPINGS))
    torch.testing.assert_close(sum(parts.values()), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def case():
    model, train, queries = conv_denoiser().float(), images(7, 4), images(4, 4, seed=1)
    return model, fit_curvature(model, train, CurvatureConfig(draws=DrawConfig(2))), train, queries


def test_shards_follow_from_the_bytes_of_a_gradient(case, tmp_path, monkeypatch):
    """A store that is there keeps its shards, and is not made again when others would be chosen."""
    model, curvature, train, _ = case
    each = gradients_of(*case[:3], DRAWS).bytes_each
    assert each == 4 * sum(layer.shape[0] * layer.shape[1] for layer in curvature.layers.values())
    assert [sets.images_of_shard(size) for size in (1, sets.SHARD_BYTES / 3, 1e12)] == [sets.SHARD_IMAGES, 3, 1]
    monkeypatch.setattr(sets, "SHARD_BYTES", 3 * each)
    whole = gradients_of(model, curvature, train, DRAWS, below=tmp_path).whole()
    monkeypatch.setattr(sets, "SHARD_BYTES", 2 * each)
    assert [rows.stop for rows, _ in gradients_of(model, curvature, train, DRAWS).shards(1)] == [2, 4, 6, 7]
    monkeypatch.setattr(
        store, "gradients_in_eigenbasis", lambda *_, **__: pytest.fail("a kept gradient computed again")
    )
    again = gradients_of(model, curvature, train, DRAWS, below=tmp_path)
    assert [rows.stop for rows, _ in again.shards(1)] == [3, 6, 7]
    assert all(torch.equal(value, whole[name]) for name, value in again.whole().items())


def test_large_sets_are_read_from_their_folder_and_small_ones_held(case, tmp_path, monkeypatch):
    model, curvature, _, queries = case
    kept = gradients_of(model, curvature, queries, DRAWS, store=tmp_path)
    alone = gradients_of(model, curvature, queries, DRAWS)
    expected = kept.whole()
    assert kept.at_hand() is not kept and kept.fits_device
    monkeypatch.setattr(sets, "HELD_BYTES", 4 * kept.bytes_each - 1)
    assert kept.at_hand() is kept and not kept.fits_device
    packed = kept.packed_as(curvature, StoreFormat("int8"))
    assert packed.fits_device  # what counts is how they are packed
    held = alone.at_hand()
    monkeypatch.setattr(store, "gradients_in_eigenbasis", lambda *_, **__: pytest.fail("computed again"))
    for _ in range(2):
        assert all(torch.equal(value, expected[name]) for name, value in held.whole().items())


def scored(case, folder, **options):
    model, curvature, train, queries = case
    asked, given = (gradients_of(model, curvature, data, DRAWS, shard_size=2) for data in (queries, train))
    inverses = Inverses(DAMPINGS, ["ekfac", "kfac"], products=True)
    return scoring.scores_of_sets([asked], given, curvature, inverses, folder=folder, **{"identity": 1} | options)[0]


class Killed(BaseException):
    """Stands for a signal."""


def test_a_killed_reading_goes_on_with_the_same_bits(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SHARD_BYTES", 1)
    computed, original = [], store.gradients_in_eigenbasis

    def watched(model, curvature, images, *arguments, **options):
        if len(computed) == 2 + 2:  # both shards of the queries, two of the training images
            computed.append("killed")
            raise Killed
        computed.append(images.ids.tolist())
        return original(model, curvature, images, *arguments, **options)

    expected = scored(case, tmp_path / "whole")
    monkeypatch.setattr(store, "gradients_in_eigenbasis", watched)
    with pytest.raises(Killed):
        scored(case, tmp_path / "part")
    found = scored(case, tmp_path / "part")
    assert computed[4:] == ["killed", [10, 11], [12, 13], [4, 5], [6]]  # the queries, and what is left
    assert torch.equal(found, expected) and torch.equal(scored(case, None), expected)
    left = sorted((tmp_path / "part").glob("piece-*"))
    assert [path.name for path in left] == [f"piece-{row:07d}.safetensors" for row in (0, 2, 4, 6)]
    assert [file_digest(path) for path in left] == [file_digest(tmp_path / "whole" / path.name) for path in left]


def test_pieces_of_something_else_are_made_again(case, tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "SHARD_BYTES", 1)
    expected = scored(case, tmp_path)
    second, other = (tmp_path / f"piece-000000{row}.safetensors" for row in (2, 6))
    second.write_bytes(other.read_bytes())
    with pytest.warns(UserWarning, match=r"piece-0000002\.safetensors: damaged or of something else"):
        assert torch.equal(scored(case, tmp_path), expected)
    with pytest.warns(UserWarning, match=r"piece-0000000\.safetensors: damaged or of something else"):
        assert torch.equal(scored(case, tmp_path, identity=2), expected)


def test_pieces_hold_whatever_is_read(curvature, tmp_path):
    train = in_shards(made_up(curvature, 5, 3), 2)
    form = Compression(curvature, StoreFormat("int8"))
    found = list(pieces(train, form.encode, up_to=1, folder=tmp_path))
    assert [rows for rows, _ in found] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    again = list(pieces(train, lambda _: pytest.fail("read again"), up_to=1, folder=tmp_path))
    assert all(torch.equal(a[name], b[name]) for (_, a), (_, b) in zip(found, again, strict=True) for name in a)
