"""Which files of a folder count, in which order, and what its subfolders mean."""

import os

import pytest
from PIL import Image

import diffinf_lib as di
from diffinf_lib.data.files import list_images, natural_key
from diffinf_lib.errors import DataError


def put(folder, *names):
    """Small images of these names, each another; returns the folder."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), i).save(folder / name, format="PNG")
    return folder


def load(folder, **options):
    return di.load_dataset(di.DatasetConfig(f"folder:{folder}", **options))


def listed(folder):
    return {file.name: (file.part, file.class_name) for file in list_images(folder).files}


def test_what_nobody_put_there_on_purpose_is_skipped(tmp_path):
    put(tmp_path, "cat/1.png", "dog/1.png", ".ipynb_checkpoints/1-checkpoint.png", "cat/._1.png", "__MACOSX/cat/1.png",
        "cat/@eaDir/1.png", ".hidden.png", "cat/.git/a/b.png")  # fmt: skip
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "cat" / "2.HEIC").write_bytes(b"x")
    found = list_images(tmp_path)
    assert [file.name for file in found.files] == ["cat/1.png", "dog/1.png"]
    assert found.notes == (
        "hidden or left behind by a system, skipped: .hidden.png, .ipynb_checkpoints, __MACOSX, …",
        "of a kind that is not read, skipped: 1 .heic file(s)",
    )


def test_a_folder_below_a_hidden_one_is_read(tmp_path):
    assert len(list_images(put(tmp_path / ".cache" / "__MACOSX", "cat/1.png")).files) == 1


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("Train", "Test"), ("TRAIN", "val"), ("train", "valid"), ("train", "Validation"),
     ("Training", "Testing")],
)  # fmt: skip
def test_parts_of_a_split_are_no_classes(tmp_path, train, test):
    put(tmp_path, *(f"{train}/{name}/{i}.png" for name in ("cat", "dog") for i in range(3)), f"{test}/cat/9.png")
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog") and (len(data.train), data.queries.names) == (6, (f"{test}/cat/9.png",))
    assert data.notes == ()


def test_test_images_are_the_queries_where_there_is_a_validation_part_too(tmp_path):
    put(tmp_path, "train/a/1.png", "train/a/2.png", "val/a/3.png", "test/a/4.png", "cover.png", "extra/5.png")
    with pytest.warns(
        UserWarning, match=r"3 images outside train/ and test/ are left out \(cover.png, extra/5.png, val/a/3"
    ):
        data = load(tmp_path)
    assert data.queries.names == ("test/a/4.png",) and data.class_names == ("a",) and len(data.train) == 2


@pytest.mark.parametrize("beside", [(), ("README.png",), ("extra/1.png",)])
def test_train_alone_is_a_part_and_queries_are_held_out_from_it(tmp_path, beside):
    put(tmp_path, *(f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(5)), *beside)
    (tmp_path / "test").mkdir()  # empty
    data = load(tmp_path, query_size=2)
    assert data.class_names == ("cat", "dog") and len(data.train) == 8
    assert all(name.startswith("train/") for name in (*data.train.names, *data.queries.names))


def test_files_right_below_train_are_of_one_class(tmp_path):
    data = load(put(tmp_path, "train/1.png", "train/2.png", "test/3.png"))
    assert data.class_names == ("all",) and len(data.train) == 2


def test_an_archives_own_folder_around_a_split_is_seen_through(tmp_path):
    data = load(put(tmp_path, "photos/train/cat/1.png", "photos/train/cat/2.png", "photos/test/cat/3.png"))
    assert data.class_names == ("cat",) and data.queries.names == ("photos/test/cat/3.png",)
    assert listed(put(tmp_path / "years", "cat/2020/1.png", "cat/2021/1.png"))["cat/2020/1.png"] == (None, "cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("bus/1.png", "train/1.png"), "train/ beside bus/: part of a split or a class"),  # pictures of trains
        (("cat/1.png", "test/1.png"), "test/ beside cat/: part of a split or a class"),
        (("Train/1.png", "train/1.png"), "Train/, train/ are several folders for one part"),
        (("train/1.png", "val/1.png", "valid/1.png"), "are several folders for one part"),
        (("test/1.png",), "there is test/ but no train/"),
        (("cat/train/1.png", "cat/test/2.png", "dog/train/3.png"), r"cat hold\(s\) train/ and a test part inside"),
    ],
)
def test_folders_that_can_be_understood_in_two_ways_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message) as raised:
        load(put(tmp_path, *names))
    assert "\n" not in str(raised.value)


def test_names_that_only_resemble_a_part_are_classes(tmp_path):
    put(tmp_path, "trains/1.png", "tests/1.png", "train_set/1.png", "val2/1.png")
    assert {name for _, name in listed(tmp_path).values()} == {"trains", "tests", "train_set", "val2"}


def test_links_are_followed_but_not_in_circles(tmp_path):
    put(tmp_path / "elsewhere", "1.png", "2.png")
    put(tmp_path / "data", "cat/1.png")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "one.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    assert set(listed(tmp_path / "data")) == {"cat/1.png", "dog/1.png", "dog/2.png", "one.png"}


def test_names_of_any_script_and_encoding(tmp_path):
    names = ("10²/1.png", "2/1.png", "٣/1.png", "cafe\u0301/1.png", "a b'<&>\".png")
    found = list_images(put(tmp_path, *names)).files
    assert found[0].class_name == "2" and {"10²", "٣", "café", "all"} < {f.class_name for f in found}
    with open(os.fsencode(tmp_path) + b"/2/\xff.png", "wb") as file:
        file.write((tmp_path / "2" / "1.png").read_bytes())
    assert "2/\ufffd.png" in di.read_image_folder(tmp_path).images.names


def test_numbers_compare_as_numbers_and_the_order_is_one():
    assert sorted(["b10", "b9", "B1", "b²", "b01", "b1"], key=natural_key) == ["b01", "B1", "b1", "b9", "b10", "b²"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path, "cat/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)"):
        list_images(tmp_path)


def test_images_beside_class_folders_are_said_to_be_a_class(tmp_path):
    (note,) = list_images(put(tmp_path, "cat/1.png", "dog/1.png", "cover.png")).notes
    assert note == "beside the class folders, of the class 'all': 1 image(s) (cover.png)"


def test_every_image_of_a_folder_or_of_a_list(tmp_path):
    put(tmp_path, "train/cat/1.png", "test/dog/2.png", "test/dog/10.png")
    found = di.read_image_folder(tmp_path)
    assert found.images.names == ("test/dog/2.png", "test/dog/10.png", "train/cat/1.png")
    assert found.class_names == ("cat", "dog") and found.images.labels.tolist() == [1, 1, 0]
    assert found.notes == ("parts of a split, read alike: test/ and train/",)
    files = di.read_image_folder([tmp_path / "train/cat/1.png", str(tmp_path / "test/dog/2.png")])
    assert files.images.names == ("train/cat/1.png", "test/dog/2.png") and files.class_names == ("all",)
    assert files.images.ids.tolist() == [found.images.ids[2], found.images.ids[0]]
    assert di.read_image_folder(tmp_path / "train/cat/1.png").images.names == ("1.png",)
    for wrong, message in [("", "no path"), ([], "no files"), (tmp_path / "x", "no such folder or file"),
                           ("~nosuchuser/x", "no such folder or file"), (["~nosuchuser/x", "y.png"], "no such file"),
                           ([tmp_path / "x.png", tmp_path / "y.png"], r"x\.png: no such file")]:  # fmt: skip
        with pytest.raises(DataError, match=message):
            di.read_image_folder(wrong)
