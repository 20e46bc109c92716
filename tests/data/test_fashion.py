import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

import diffinf_lib as di
from diffinf_lib.artifacts import read_arrays
from diffinf_lib.data import fashion
from diffinf_lib.errors import DataError, DownloadError

SHIPPED = fashion.SHIPPED_CONFIG
PACKED = [f"{name}.gz" for name in fashion.CONTENTS]


def idx(values):
    """An array in the files' format: a magic number with type and dimensions, the sizes, the bytes."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes() + values.astype(np.uint8).tobytes()


@pytest.fixture
def originals(tmp_path, monkeypatch):
    """Small files in the original format below a data folder of their own: 40 training and 20 test images."""
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    arrays = {}
    for name in fashion.CONTENTS:
        count = 40 if name.startswith("train") else 20
        images = "images" in name
        arrays[name] = generator.integers(256, size=(count, 28, 28)) if images else np.arange(count) % 10
        content = idx(arrays[name])
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        monkeypatch.setitem(fashion.CONTENTS, name, hashlib.md5(content).hexdigest())
    return arrays


def test_files_in_the_original_format_are_read(originals):
    data = di.load_dataset("fashion")
    assert (len(data.train), len(data.queries), data.train.shape) == (40, 20, (1, 28, 28))
    assert data.train.ids.tolist() == list(range(40)) and data.queries.ids.tolist() == list(range(40, 60))
    assert data.class_names[8] == "Bag" and data.train.labels.tolist() == [i % 10 for i in range(40)]
    pixels = torch.from_numpy(originals["t10k-images-idx3-ubyte"])
    torch.testing.assert_close((data.queries.images[:, 0] + 1) * 127.5, pixels.float())


def test_classes_are_chosen_by_name_and_fewer_images_are_some_of_more(originals):
    load = lambda **options: di.load_dataset(di.DatasetConfig("fashion", **options))  # noqa: E731
    two = load(classes=("Bag", "Trouser"), train_size=6, query_size=2)
    assert two.class_names == ("Bag", "Trouser") and torch.bincount(two.train.labels).tolist() == [3, 3]
    assert all(i % 10 == (8, 1)[label] for i, label in zip(two.train.ids.tolist(), two.train.labels, strict=True))
    four = load(classes=("Bag", "Trouser"), train_size=4)
    bags = load(classes=("Bag",), train_size=3)
    assert set(four.train.ids.tolist()) < set(two.train.ids.tolist())
    assert set(bags.train.ids.tolist()) == {i for i in two.train.ids.tolist() if i % 10 == 8}
    others = [load(classes=("Bag", "Trouser"), train_size=4, seed=seed).train.ids.tolist() for seed in range(4)]
    assert any(ids != four.train.ids.tolist() for ids in others)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("Bag", "Hat")}, r"classes: Hat not in Fashion-MNIST; give some of T-shirt/top, Trouser, .*, Ankle boot$"),
        ({"train_size": 41}, "train_size=41: there are 40 images; ask for as many or fewer"),
        ({"classes": ("Bag", "Coat"), "query_size": 5}, "query_size=5: there are 4 images"),
        ({"classes": ("Sneaker", "Bag"), "train_size": 401, "query_size": 64}, "train_size=401: there are 8 images"),
    ],
)  # fmt: skip
def test_impossible_requests_are_refused_in_one_line(originals, options, message):
    with pytest.raises(DataError, match=message) as refused:
        di.load_dataset(di.DatasetConfig("fashion", **options))
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_named(originals, tmp_path):
    path = tmp_path / "FashionMNIST" / "raw" / PACKED[0]
    whole = path.read_bytes()
    path.write_bytes(gzip.compress(gzip.decompress(whole)[:-1] + b"\0"))
    with pytest.raises(DownloadError, match=f"{PACKED[0]}: its content's md5 is .*; delete it and run again"):
        di.load_dataset("fashion")
    path.write_bytes(whole[:-20])
    with pytest.raises(DownloadError, match=f"{PACKED[0]}: damaged .*; delete it and run again"):
        di.load_dataset("fashion")


def test_without_files_or_network_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")
    message = rf"DIFFINF_OFFLINE=1 forbids downloads; place {PACKED[0]}, .* in {tmp_path}/FashionMNIST/raw, or install"
    with pytest.raises(DownloadError, match=message):
        di.load_dataset("fashion")


def test_names_and_files_are_those_of_torchvision():
    from torchvision.datasets import FashionMNIST

    assert list(fashion.CLASSES) == FashionMNIST.classes
    assert [name for name, _ in FashionMNIST.resources] == PACKED


@pytest.fixture
def nothing_else(tmp_path, monkeypatch):
    """No original files anywhere."""
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    monkeypatch.setattr(fashion, "DEBIAN", tmp_path / "none")


def test_the_preset_s_images_ship_with_the_library(nothing_else):
    config = di.get_preset("fashion").dataset
    assert config == SHIPPED
    data = di.load_dataset(config)
    assert (len(data.train), len(data.queries)) == (config.train_size, config.query_size)
    assert torch.bincount(data.train.labels).tolist() == [200, 200] and data.class_names == ("Sneaker", "Bag")
    assert data.train.ids.max() < 60_000 <= data.queries.ids.min()
    assert not data.repeated_queries()


@pytest.mark.parametrize(
    ("options", "ships"),
    [
        ({"train_size": 40, "query_size": 7}, True),
        ({"classes": ("Bag",), "train_size": 200, "query_size": 32}, True),
        ({"classes": ("Bag", "Sneaker")}, True),
        ({"classes": ("Bag",)}, False),
        ({"classes": ("Bag", "Coat")}, False),
        ({"train_size": 401}, False),
        ({"query_size": None}, False),
        ({"seed": 1}, False),
        ({"stratified": False}, False),
    ],
)
def test_what_needs_the_original_files(nothing_else, options, ships):
    config = replace(SHIPPED, **options)
    if ships:
        assert len(di.load_dataset(config).train) == config.train_size
    else:
        with pytest.raises(DownloadError, match="DIFFINF_OFFLINE"):
            di.load_dataset(config)


@pytest.mark.skipif(not fashion.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_shipped_images_are_those_that_the_original_files_give(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    fashion.write_shipped(tmp_path / "fashion.npz")
    made, shipped = read_arrays(tmp_path / "fashion.npz"), read_arrays(fashion.SHIPPED)
    assert made.keys() == shipped.keys()
    assert all(np.array_equal(made[name], shipped[name]) and made[name].dtype == shipped[name].dtype for name in made)
    parts = fashion.original_parts()
    assert len(parts[0].ids) == 60_000 and len(parts[1].ids) == 10_000
    monkeypatch.setattr(fashion, "original_parts", lambda: parts)  # read once
    some = [
        replace(SHIPPED, train_size=51, query_size=9),
        replace(SHIPPED, classes=("Bag",), train_size=9, query_size=3),
    ]
    for config in (SHIPPED, *some):
        ours = di.load_dataset(config)
        with monkeypatch.context() as patched:
            patched.setattr(fashion, "_ships", lambda *_: False)
            assert di.load_dataset(config).digest == ours.digest


def test_the_licence_lies_beside_the_images():
    assert "Zalando" in fashion.SHIPPED.with_name("fashion-LICENSE.txt").read_text()
