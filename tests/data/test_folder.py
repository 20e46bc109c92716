import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import diffinf_lib as di
from diffinf_lib.artifacts import project_root
from diffinf_lib.errors import DataError


def write(path, value=0, size=(4, 4), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = size[::-1] + ((3,) if mode == "RGB" else ())
    Image.fromarray(np.full(shape, value, dtype=np.uint8), mode=mode).save(path)


def load(folder, **options):
    return di.load_dataset(di.DatasetConfig(f"folder:{folder}", **options))


@pytest.fixture
def split_folder(tmp_path):
    for i in range(12):
        write(tmp_path / "train" / "cat" / f"{i}.png", value=i)
        write(tmp_path / "train" / "dog" / f"{i}.png", value=100 + i)
    for i in range(3):
        write(tmp_path / "test" / "cat" / f"{i}.png", value=50 + i)
        write(tmp_path / "test" / "dog" / f"{i}.png", value=150 + i)
    return tmp_path


def grey_levels(part):
    return ((part.images[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_train_and_test_in_natural_order(split_folder):
    data = load(split_folder)
    assert grey_levels(data.train) == [*range(12), *range(100, 112)]
    assert grey_levels(data.queries) == [50, 51, 52, 150, 151, 152]
    assert data.class_names == ("cat", "dog") and data.queries.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.train.names[:2] == ("train/cat/0.png", "train/cat/1.png") and data.queries.names[-1] == "test/dog/2.png"
    assert data.train.images.shape == (24, 3, 4, 4)


def test_ids_do_not_depend_on_the_selection(split_folder):
    whole = load(split_folder)
    part = load(split_folder, train_size=6, query_size=2)
    assert torch.bincount(part.train.labels).tolist() == [3, 3] and len(part.queries) == 2
    levels = dict(zip(whole.train.ids.tolist(), grey_levels(whole.train), strict=True))
    assert [levels[i] for i in part.train.ids.tolist()] == grey_levels(part.train)
    dogs = load(split_folder, classes=("dog",))
    assert dogs.train.ids.tolist() == whole.train.ids.tolist()[12:] and dogs.class_names == ("dog",)


def test_folders_without_a_test_part_hold_queries_out(tmp_path):
    for i in range(10):
        write(tmp_path / f"{i}.png", value=i, mode="L")
    data = load(tmp_path, query_size=3)
    assert len(data.train) == 7 and len(data.queries) == 3 and data.train.shape == (1, 4, 4)
    assert sorted(grey_levels(data.train) + grey_levels(data.queries)) == list(range(10))
    assert data.train.names == tuple(f"{level}.png" for level in grey_levels(data.train))


def test_images_are_cropped_and_scaled_on_request(tmp_path):
    write(tmp_path / "a.png", value=10, size=(8, 4))
    write(tmp_path / "b.png", value=20, size=(4, 6))
    with pytest.raises(DataError, match=r"b\.png is 4×6, a\.png is 8×4: give image_size|a\.png is 8×4, b\.png is 4×6"):
        load(tmp_path, query_size=1)
    assert load(tmp_path, query_size=1, image_size=2).train.shape == (3, 2, 2)


def test_bad_folders_are_refused_in_one_line(tmp_path, split_folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"")
    for name, message in [("nowhere", "no such folder"), ("empty", "no images"), ("file.zip", "unpack it")]:
        with pytest.raises(DataError, match=message) as raised:
            load(tmp_path / name)
        assert "\n" not in str(raised.value)
    for options, message in [
        ({"train_size": 25}, "train_size=25: there are 24"),
        ({"classes": ("cow",)}, "cow not in"),
        ({"train_size": 23, "classes": ("cat",)}, "train_size=23"),
    ]:
        with pytest.raises(DataError, match=message):
            load(split_folder, **options)


def test_unbalanced_classes_are_named(tmp_path):
    for i in range(9):
        write(tmp_path / "train" / ("a" if i else "b") / f"{i}.png")
    write(tmp_path / "test" / "a" / "0.png")
    with pytest.raises(DataError, match="needs 3 images of class 'b', which has 1; ask for 2 or fewer, or give strat"):
        load(tmp_path, train_size=6)
    assert len(load(tmp_path, train_size=6, stratified=False).train) == 6


def test_an_unreadable_image_is_named(tmp_path):
    write(tmp_path / "a.png")
    write(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png: cannot be read as an image"):
        load(tmp_path, query_size=1)


def test_a_folder_goes_from_images_to_scores(tmp_path):
    """Real files through the same functions as any dataset: train, fit, score."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 2)):
        for i in range(count):
            path = tmp_path / "images" / part / "blob" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)
    preset = di.with_options(
        di.get_preset("smoke"),
        {"dataset.name": f"folder:{tmp_path / 'images'}", "dataset.classes": "none", "dataset.train_size": "none",
         "dataset.query_size": "none", "unet.in_channels": 3, "unet.out_channels": 3},
    )  # fmt: skip
    run = di.open_run(replace(preset, name="folder"), tmp_path / "run", progress=False)
    scores = di.influence_scores(run, run.data.queries)
    assert scores.shape == (1, 2, 8) and torch.isfinite(scores).all() and scores.abs().min() > 0


def test_the_jpeg_copy_of_cifar2_loads(tmp_path):
    archive = project_root().parent / "shared" / "data" / "cifar2-jpeg.zip"
    if not archive.exists():
        pytest.skip("the development copy of CIFAR-2 is not here")
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if name.endswith(("0001.jpg", "0002.jpg"))]
        content.extractall(tmp_path, members=names)
    (root,) = {path.parent for path in tmp_path.rglob("train")}
    data = load(root)
    assert data.class_names == ("automobile", "horse") and data.train.shape == (3, 32, 32)
    assert len(data.train) >= 4 and data.train.images.abs().max() <= 1


def test_a_copy_of_a_training_image_among_the_queries_is_flagged(split_folder, recwarn):
    assert not load(split_folder).repeated_queries() and not recwarn
    write(split_folder / "test" / "cat" / "copy.png", value=7)
    with pytest.warns(
        UserWarning, match=r"1 of 7 queries are training images too \(test/cat/copy\.png\); .* remove the copies"
    ):
        repeated = load(split_folder)
    (place,) = repeated.repeated_queries()
    assert (repeated.queries.images[place] == repeated.train.images[7]).all()
