import hashlib
import tarfile

import pytest
import torch
from made_data import add_to_archive, write_cifar
from PIL import Image

import diffinf_lib as di
from diffinf_lib.data import cifar
from diffinf_lib.errors import DataError, DownloadError


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A small archive in the real one's layout: batches of pickled dictionaries with bytes for keys."""
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    path = write_cifar(tmp_path / cifar.ARCHIVE)
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_cifar10_and_its_two_classes(archive):
    ten, two = di.load_dataset("cifar10"), di.load_dataset("cifar2")
    assert (len(ten.train), len(ten.queries), ten.train.shape) == (100, 20, (3, 32, 32))
    assert two.class_names == ("automobile", "horse") and len(two.train) == 20 and len(two.queries) == 4
    assert two.train.ids.tolist() == [i for i in range(100) if i % 10 in (1, 7)]
    assert torch.equal(two.train.images, ten.train.images[two.train.ids])
    assert two.queries.ids.min() >= 100


def test_the_choice_is_stratified_or_not(archive):
    chosen = di.load_dataset(di.DatasetConfig("cifar2", train_size=10))
    assert torch.bincount(chosen.train.labels).tolist() == [5, 5]
    loose = [di.DatasetConfig("cifar2", train_size=10, stratified=False, seed=seed) for seed in range(6)]
    counts = [torch.bincount(di.load_dataset(config).train.labels, minlength=2).tolist() for config in loose]
    assert all(sum(count) == 10 for count in counts) and any(count != [5, 5] for count in counts)


def test_dequantised_pixels_stay_in_their_cell(archive):
    plain, noisy = di.load_dataset("cifar2"), di.load_dataset("cifar2deq")
    levels = ((plain.train.images + 1) / 2 * 255).round()
    cells = (noisy.train.images.double() + 1) / 2 * 256
    assert ((cells - levels >= -1e-3) & (cells - levels <= 1 + 1e-3)).all()
    within = (cells - levels).flatten()
    assert abs(within.mean() - 0.5) < 0.01 and abs(within.std() - 12**-0.5) < 0.01
    part = di.load_dataset(di.DatasetConfig("cifar2deq", train_size=4))
    where = torch.isin(noisy.train.ids, part.train.ids)
    assert torch.equal(noisy.train.images[where], part.train.images)


def test_a_folder_of_images_serves_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    for part in ("train", "test"):
        for name in ("automobile", "horse", "ship"):
            path = tmp_path / "cifar10" / part / name / "0.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(path)
    two = di.load_dataset("cifar2")
    assert (len(two.train), len(two.queries), two.class_names) == (2, 2, ("automobile", "horse"))


def test_without_archive_or_network_the_way_out_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    with pytest.raises(DownloadError, match=r"DIFFINF_OFFLINE=1 forbids downloads; place cifar-10-python\.tar\.gz in"):
        di.load_dataset("cifar10")


def test_a_damaged_archive_is_refused(archive):
    archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(DownloadError, match="delete it and run again"):
        di.load_dataset("cifar10")


def test_only_arrays_are_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    path = tmp_path / cifar.ARCHIVE
    with tarfile.open(path, "w:gz") as tar:
        add_to_archive(tar, "cifar-10-batches-py/data_batch_1", b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(DataError, match=r"posix\.system|os\.system"):
        di.load_dataset("cifar10")


def test_artbench_says_what_to_place_where(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path))
    with pytest.raises(DownloadError, match=r"place artbench-10-imagefolder-split\.tar"):
        di.load_dataset("artbench10")
    source = tmp_path / "source" / "artbench-10-imagefolder-split"
    for part in ("train", "test"):
        (source / part / "ukiyo_e").mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(source / part / "ukiyo_e" / "0.jpg")
    with tarfile.open(tmp_path / "artbench-10-imagefolder-split.tar", "w") as tar:
        tar.add(source, arcname=source.name)
    data = di.load_dataset(di.DatasetConfig("artbench10", image_size=8))
    assert data.train.shape == (3, 8, 8) and data.class_names == ("ukiyo_e",)
