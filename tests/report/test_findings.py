"""Findings against truth planted by construction, in float64."""

import pytest
import torch
from cases import assert_equal_but_for_rounding

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.report.findings import (
    COPY_COSINE,
    Likeness,
    compare,
    find_copies,
    find_label_doubts,
    find_unusual,
)  # fmt: skip
from diffinf_lib.report.result import pixel_distances


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pictures(count, side=16, seed=1):
    return random(count, 1, side, side, seed=seed).float().clamp(-1, 1)


def test_nearest_by_influence_is_brute_force_whatever_the_blocks():
    vectors, images = random(23, 7), pictures(23)
    centred = vectors - vectors.mean(0)
    lengths = centred.norm(dim=1)
    cosines = centred @ centred.T / torch.outer(lengths, lengths) - 2 * torch.eye(23)
    whole, blocks = compare(vectors, images, neighbours=5), compare(vectors, images, neighbours=5, entries=60)
    torch.testing.assert_close(whole.cosines, cosines.topk(5, dim=1).values)
    assert torch.equal(whole.nearest, cosines.topk(5, dim=1).indices)
    assert torch.equal(whole.nearest, blocks.nearest) and torch.equal(whole.shapes, blocks.shapes)
    torch.testing.assert_close(whole.correlations, blocks.correlations)


def test_copies_are_grouped_and_told_from_edited_ones():
    """A copy, a shifted and a brightened one, a copy by gradient alone; the others stay apart."""
    images, vectors = pictures(12), random(12, 50)
    images[3] = images[1]
    images[5, :, :, 1:] = images[4, :, :, :-1]  # by one pixel to the right
    images[7] = 0.5 * images[6] + 0.2
    vectors[3], vectors[9] = vectors[1], vectors[8] * 1.01
    groups = find_copies(images, compare(vectors, images))
    assert [group.members for group in groups][::3] == [(1, 3), (8, 9)]
    assert {group.members for group in groups[1:3]} == {(4, 5), (6, 7)}
    assert [group.by for group in groups] == ["pixels", "shape", "shape", "gradients"]
    assert groups[0].value == 1 and all(group.value >= 0.995 for group in groups[1:])


@pytest.mark.parametrize("moved", [(0, 1), (1, 0), (-1, 1), (1, -1)])
def test_real_images_moved_by_pixels_of_their_own_are_found(moved):
    """A pixel of 28 is a part of one of 16; sneakers and bags are alike, so the others must stay apart."""
    images = di.load_dataset(di.get_preset("fashion").dataset).train.images[:60].clone()
    images[5] = (0.9 * images[20].roll(moved, (-2, -1)) + 0.08).clamp(-1, 1)
    (group,) = find_copies(images, compare(random(60, 50), images))
    assert group.members == (5, 20) and group.by == "shape"


def test_copies_of_copies_are_one_group():
    images, vectors = pictures(8), random(8, 50)
    images[2], images[5] = images[0], images[0]
    images[7] = 0.8 * images[5]
    (group,) = find_copies(images, compare(vectors, images))
    assert group.members == (0, 2, 5, 7) and group.by == "shape"


def test_more_copies_than_neighbours_are_kept():
    images, vectors = pictures(60), random(60, 20)
    images[:40] = images[0]
    (group,) = find_copies(images, compare(vectors, images))
    assert group.members == tuple(range(40)) and group.by == "pixels"


def test_blank_images_are_copies_of_one_another_only():
    images, vectors = pictures(6), random(6, 20)
    images[0], images[1], images[2] = 1.0, 1.0, -1.0
    groups = find_copies(images, compare(vectors, images))
    assert [group.members for group in groups] == [(0, 1)]


def test_images_larger_than_the_side_of_comparison():
    images, vectors = pictures(5, side=40), random(5, 20)
    images[1] = 0.7 * images[0] - 0.1
    assert [group.members for group in find_copies(images, compare(vectors, images))] == [(0, 1)]


def test_unusual_images_come_first_and_ordinary_ones_are_not_flagged():
    ordinary = random(500).exp()
    found = find_unusual(ordinary)
    assert sum(unusual.flagged for unusual in found) <= 2 and len(found) == 24
    ordinary[[7, 30]] = torch.tensor([900.0, 400.0], dtype=torch.float64)
    found = find_unusual(ordinary)
    assert [unusual.image for unusual in found[:2]] == [7, 30] and found[0].flagged and found[1].flagged
    assert found[0].ratio == pytest.approx(900 / float(ordinary.median()))


def test_a_constant_self_influence_flags_nothing():
    assert not any(unusual.flagged for unusual in find_unusual(torch.ones(9, dtype=torch.float64)))


def three_classes(count=60):
    """Gradients around three directions, and the class of each."""
    labels = torch.arange(count) % 3
    directions = 9 * torch.linalg.qr(random(40, 3)).Q.T
    return directions[labels] + random(count, 40, seed=2), labels


def test_wrong_labels_are_found_and_right_ones_are_not():
    vectors, labels = three_classes()
    assert find_label_doubts(compare(vectors, pictures(60)), labels) == ()
    given = labels.clone()
    given[[4, 11]] = (labels[[4, 11]] + 1) % 3
    doubts = find_label_doubts(compare(vectors, pictures(60)), given)
    assert {doubt.image for doubt in doubts} == {4, 11}
    assert all(doubt.suggested == labels[doubt.image] and doubt.lead >= 0.6 for doubt in doubts)


def test_a_copy_in_the_same_wrong_class_does_not_vouch_for_it():
    vectors, labels = three_classes()
    images = pictures(60)
    vectors[[7, 10]], images[[7, 10]] = vectors[4].clone(), images[4].clone()  # three copies …
    given = labels.clone()
    given[[4, 7, 10]] = 0  # … all of them in a class that is not theirs
    alike = compare(vectors, images)
    assert (alike.cosines[4, :2] >= COPY_COSINE).all()
    assert {4, 7, 10} <= {doubt.image for doubt in find_label_doubts(alike, given)}


def test_images_without_a_class_neither_vote_nor_are_doubted():
    vectors, labels = three_classes()
    assert find_label_doubts(compare(vectors, pictures(60)), torch.full((60,), -1)) == ()
    given = torch.where(torch.arange(60) < 30, labels, -1)
    assert find_label_doubts(compare(vectors, pictures(60)), given) == ()


def test_one_image_cannot_be_compared():
    with pytest.raises(ConfigurationError, match="needs two or more"):
        compare(random(1, 3), pictures(1))


def test_a_projection_finds_the_same_copies():
    """A sketch keeps the cosine of copies at 1, and that of others away from it."""
    from diffinf_lib.compression import projected

    vectors, images = random(40, 3000), pictures(40)
    vectors[9] = vectors[2]
    sketch = projected({"all": vectors.unsqueeze(1)}, 512)
    alike: Likeness = compare(sketch, images)
    assert [group.members for group in find_copies(images, alike)] == [(2, 9)]
    assert float(alike.cosines[2, 0]) == pytest.approx(1) and float(alike.cosines[2, 1]) < 0.3


@pytest.mark.parametrize("side", [8, 40])
def test_images_are_compared_a_few_at_a_time_with_the_same_result(side, monkeypatch):
    """Fewer at a time than there are, and not a whole number of parts."""
    generator = torch.Generator().manual_seed(0)
    train, queries = (torch.rand(count, 3, side, side, generator=generator) for count in (11, 5))
    vectors = torch.randn(11, 4, generator=generator, dtype=torch.float64)
    whole, apart = compare(vectors, train), pixel_distances(queries, train)
    monkeypatch.setattr("diffinf_lib.report.findings.SCALED_AT_ONCE", 4)
    monkeypatch.setattr("diffinf_lib.report.result.COMPARED_AT_ONCE", 4)
    assert_equal_but_for_rounding(compare(vectors, train).correlations, whole.correlations)
    assert torch.equal(compare(vectors, train).shapes, whole.shapes)
    assert_equal_but_for_rounding(pixel_distances(queries, train), apart)
