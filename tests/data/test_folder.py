import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from annotations import unchecked
from PIL import Image

import diffinf_lib as di
from diffinf_lib.artifacts import project_root, read_arrays, write_bundle
from diffinf_lib.errors import ConfigurationError, DataError


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
    with pytest.raises(DataError, match="~nosuchuser/x: there is no such folder"):
        load("~nosuchuser/x")
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
    (file,) = run.path("scores").rglob("scores.npz")
    kept = read_arrays(file)
    assert kept["train_names"].tolist() == [f"train/blob/{i}.png" for i in range(8)]
    assert kept["query_names"].tolist() == ["test/blob/0.png", "test/blob/1.png"]
    assert kept["train_ids"].tolist() == run.data.train.ids.tolist() and kept["dampings"].tolist() == [preset.damping]


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


@pytest.fixture
def class_folder(tmp_path):
    """`CLASS/*` without a test part: 30 cats, 30 dogs, no two alike."""
    for i in range(30):
        write(tmp_path / "photos" / "cat" / f"{i}.png", value=i)
        write(tmp_path / "photos" / "dog" / f"{i}.png", value=100 + i)
    return tmp_path / "photos"


def counts(part):
    return torch.bincount(part.labels).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_queries_of_a_class_folder_are_held_out_evenly(class_folder, seed, recwarn):
    data = load(class_folder, query_size=8, train_size=20, seed=seed)
    assert counts(data.queries) == [4, 4] and counts(data.train) == [10, 10] and not recwarn
    assert data.split == f"8 of 60 held out by a hash of id and seed {seed}"
    loose = [counts(load(class_folder, query_size=8, stratified=False, seed=seed).queries) for seed in range(6)]
    assert all(sum(count) == 8 for count in loose) and any(count != [4, 4] for count in loose)


def test_a_small_class_gives_what_it_can_and_keeps_one(class_folder):
    write(class_folder / "cow" / "1.png", value=200)
    write(class_folder / "emu" / "1.png", value=210)
    write(class_folder / "emu" / "2.png", value=220)
    data = load(class_folder, query_size=13)
    assert counts(data.queries) == [6, 0, 6, 1] and counts(data.train) == [24, 1, 24, 1]  # cat, cow, dog, emu
    assert counts(load(class_folder, query_size=62).train) == [0, 0, 1]  # nearly all: not every class can stay


def test_a_share_of_each_class_is_held_out_where_no_number_is_given(class_folder):
    for i in range(20):
        (class_folder / "dog" / f"{i}.png").unlink()
    with pytest.warns(
        UserWarning, match=r"no test part: queries are 7 of 40 held out by .*; dataset.query_size sets how many"
    ):
        data = load(class_folder)
    assert counts(data.queries) == [5, 2] and counts(data.train) == [25, 8]
    with pytest.raises(DataError, match="query_size=40: there are 40 images; leave some for training"):
        load(class_folder, query_size=40)


def identity(part):
    """Ids by grey level: who is who, whatever the files are called."""
    return dict(zip(grey_levels(part), part.ids.tolist(), strict=True))


def test_a_file_more_changes_no_other_id_and_hardly_who_is_held_out(class_folder):
    before = load(class_folder, query_size=10, train_size=24)
    ids = identity(before.train) | identity(before.queries)
    for extra in (class_folder / "cat" / "0 new.png", class_folder / "dog" / "zz.png"):
        write(extra, value=222)
        after = load(class_folder, query_size=10, train_size=24)
        assert all(ids.get(level, i) == i for level, i in (identity(after.train) | identity(after.queries)).items())
        assert len(set(before.queries.ids.tolist()) - set(after.queries.ids.tolist())) <= 1
        assert len(set(before.train.ids.tolist()) - set(after.train.ids.tolist())) <= 2
        extra.unlink()


def test_a_share_held_out_hardly_changes_with_a_file_more(class_folder):
    before = load(class_folder)
    write(class_folder / "cat" / "new.png", value=222)
    assert len(set(before.queries.ids.tolist()) - set(load(class_folder).queries.ids.tolist())) <= 1


def test_names_and_folders_do_not_matter_to_ids(class_folder, tmp_path):
    before = load(class_folder, query_size=10)
    for i in range(30):
        (class_folder / "cat" / f"{i}.png").rename(class_folder / "cat" / f"renamed {29 - i}.png")
    class_folder.rename(tmp_path / "moved")
    after = load(tmp_path / "moved", query_size=10)
    assert identity(after.queries) == identity(before.queries) and identity(after.train) == identity(before.train)


def test_copies_have_ids_of_their_own(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        write(tmp_path / name, value=1)
    write(tmp_path / "d.png", value=2)
    ids = di.read_image_folder(tmp_path).images.ids.tolist()
    assert len(set(ids)) == 4
    (tmp_path / "a.png").unlink()
    assert di.read_image_folder(tmp_path).images.ids.tolist() == [*ids[:2], ids[3]]


def test_ids_meet_no_others_and_are_exact_everywhere(tmp_path):
    from diffinf_lib.sampling import GENERATED_IDS

    write(tmp_path / "a.png")
    (i,) = di.read_image_folder(tmp_path).images.ids.tolist()
    assert 1000 * GENERATED_IDS < 10**14 <= i < 10**15 < 2**53 and int(float(i)) == i


def test_a_path_is_the_same_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    ways = ["photos", "photos/", "./photos", "x/../photos", "~/photos", "link", f"{tmp_path}/photos//"]
    assert {di.DatasetConfig(f"folder:{way}").name for way in ways} == {f"folder:{tmp_path.resolve()}/photos"}
    options = [di.with_options(di.get_preset("smoke"), {"dataset.name": f"folder:{way}"}) for way in ways]
    assert len(set(options)) == 1
    for empty in ("folder:", "folder:  "):
        with pytest.raises(ConfigurationError, match="no path; give folder:PATH, folder:. for the current directory"):
            di.DatasetConfig(empty)


def test_a_run_goes_on_under_another_way_to_write_its_path(class_folder, tmp_path, monkeypatch):
    def open_run(way):
        options = {"dataset.name": f"folder:{way}", "dataset.classes": "none", "dataset.train_size": "none",
                   "unet.in_channels": 3, "unet.out_channels": 3, "unet.block_out_channels": "8", "unet.down_block_types":
                   "DownBlock2D", "unet.up_block_types": "UpBlock2D"}  # fmt: skip
        run = di.open_run(di.with_options(di.get_preset("smoke"), options), tmp_path / "run", progress=False)
        run.path("model").mkdir(exist_ok=True)
        run.path("model", "started").touch()

    open_run(class_folder)
    monkeypatch.chdir(class_folder.parent)
    open_run("photos/")


def test_a_dataset_says_what_it_holds(split_folder):
    write(split_folder / "train" / "dog" / ".hidden.png")
    with pytest.warns(UserWarning, match=r"skipped: train/dog/\.hidden\.png"):
        data = load(split_folder)
    assert str(data).splitlines() == [
        f"folder:{split_folder}: images of 3×4×4",
        "  24 training images (cat: 12, dog: 12)",
        "  6 queries (cat: 3, dog: 3)",
        "  split: queries are the images in test/",
        "  note: hidden or left behind by a system, skipped: train/dog/.hidden.png",
    ]
    assert repr(data.train) == "ImageSet: 24 images of 3×4×4"
    assert "57 queries (3: " in str(di.load_dataset(di.get_preset("digits").dataset))


def test_names_go_with_their_images(split_folder):
    part = load(split_folder).train
    for index in (slice(2, 4), [3, 2], torch.tensor([5]), part.labels == 1):
        places = torch.arange(24)[index].tolist()
        assert part.subset(index).names == tuple(part.names[place] for place in places)
    states = di.data.Trajectories(part.images, part.labels, part.ids, torch.zeros(24, 3, 3, 4, 4), torch.zeros(24, 2, 3, 4, 4),
                             names=part.names)  # fmt: skip
    assert states.subset([4, 1]).names == (part.names[4], part.names[1])


def test_a_ground_truth_keeps_the_names_of_its_queries(split_folder, tmp_path):
    queries = load(split_folder).queries
    arrays = {"masks": np.array([[True, False]]), "train_ids": np.arange(2), "held-out/images": queries.images.numpy(),
              "held-out/measured/loss": np.arange(6.0).reshape(1, 1, 6), "held-out/full/loss": np.zeros(6)}  # fmt: skip
    write_bundle("g", arrays | queries.identifiers("held-out/"), {}, {}, root=tmp_path)
    assert di.load_ground_truth("g", root=tmp_path).queries.names == queries.names


@pytest.mark.parametrize("classes", [(), ("cat", "cat"), (1, "1")])
def test_classes_are_given_each_once(classes):
    for name in ("digits", "folder:."):
        with pytest.raises(di.DiffinfError, match="give one or more, each once, or None for all"):
            di.DatasetConfig(name, classes=classes)


def test_one_image_alone_has_nothing_to_be_held_out_from(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "only.png")
    with pytest.raises(di.DiffinfError, match="one image alone, and queries are held out"):
        di.load_dataset(f"folder:{tmp_path}")
    for given in (tmp_path, None):
        with unchecked(), pytest.raises(di.DiffinfError, match="^dataset=.*: give one of digits, .*or a DatasetConfig"):
            di.load_dataset(given)
