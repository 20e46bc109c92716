import pytest
import torch
from annotations import unchecked
from sklearn.datasets import load_digits

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError


def test_the_split_of_threes_and_eights():
    data = di.load_dataset(di.get_preset("digits").dataset)
    assert (len(data.train), len(data.queries)) == (300, 57) and data.class_names == ("3", "8")
    assert not set(data.train.ids.tolist()) & set(data.queries.ids.tolist())
    source = load_digits()
    for part in (data.train, data.queries):
        for image, label, i in zip(part.images, part.labels, part.ids, strict=True):
            assert source.target[i] == (3, 8)[label]
            torch.testing.assert_close((image[0] + 1) * 8, torch.from_numpy(source.images[i]).float())


def test_the_split_depends_on_its_seed_only():
    load = lambda seed: di.load_dataset(di.DatasetConfig("digits", seed=seed))  # noqa: E731
    assert load(0).digest == load(0).digest != load(1).digest


def test_all_ten_digits_by_name():
    data = di.load_dataset("digits")
    assert len(data.train) + len(data.queries) == 1797 and len(data.class_names) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [({"classes": (3, 11)}, "11"), ({"train_size": 2000}, "train_size=2000"), ({"train_size": 1797}, "query_size=0")],
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(DataError, match=message):
        di.load_dataset(di.DatasetConfig("digits", **options))


def test_unknown_datasets_are_refused():
    for name in ("mnist", "digits:3", "folder"):
        with pytest.raises(ConfigurationError, match=f"dataset='{name}': no such dataset; give one of digits"):
            di.load_dataset(name)


def test_image_sets_are_checked():
    images, labels, ids = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64), torch.arange(2)
    for arguments, message in [
        ((images[0], labels, ids), r"images of shape \(1, 2, 2\): give \[N, C, H, W\]"),
        ((images, labels, torch.arange(3)), r"\(2, 2, 3\) images, labels and ids"),
        ((images, labels, labels), "ids: each image needs an id of its own"),
        ((images, labels.float(), ids), r"labels of type float32, shape \(2,\): give whole numbers \[N\]"),
        ((images, labels, ids.double()), "ids of type float64"),
        ((images, labels.bool(), ids), "labels of type bool"),
        ((images, labels[:, None], ids), r"labels of type int64, shape \(2, 1\)"),
    ]:
        with unchecked(), pytest.raises(DataError, match=message):
            di.ImageSet(*arguments)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.ones(2, 1, 2, 2, dtype=torch.int64)]
)
def test_whole_numbers_are_no_pixels(images):
    with (
        unchecked(),
        pytest.raises(DataError, match=r"images of type u?int\d+: scale them to \[−1, 1\], 0…255 by .*to_unit_range"),
    ):
        di.ImageSet(images, torch.arange(2), torch.arange(2))


def test_pixels_that_were_not_scaled_are_refused():
    images = torch.rand(2, 3, 8, 8) * 255
    with pytest.raises(DataError, match=r"images: pixels from .* to 25\d\S*; scale them to"):
        di.ImageSet(images, torch.arange(2), torch.arange(2))
    assert len(di.ImageSet(di.data.to_unit_range(images), torch.arange(2), torch.arange(2))) == 2


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_latents_and_samples_may_lie_outside(kind):
    images = torch.tensor([-70.0, 80.0, 1.02, 0.0]).to(kind).view(1, 1, 2, 2)
    assert len(di.ImageSet(images, torch.arange(1), torch.arange(1))) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_not_finite_are_refused_with_their_image(value):
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 1, 0] = value
    for names, who in ((None, "the image with id 17"), (("a.png", "b.png", "c.png"), r"b\.png")):
        with pytest.raises(DataError, match=f"images: {who} has pixels that are not finite"):
            di.ImageSet(images, torch.arange(3), torch.tensor([4, 17, 2]), names=names)


def test_names_are_as_many_as_images():
    with pytest.raises(DataError, match="1 names of 2 images"):
        di.ImageSet(torch.zeros(2, 1, 2, 2), torch.arange(2), torch.arange(2), names=("a",))
