"""Images too many for memory: the same numbers from a file as from memory."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from damage import HARMS
from PIL import Image

import diffinf_lib as di
from diffinf_lib.artifacts import write_sealed
from diffinf_lib.data import folder, mapped, reading


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path / "data"))
    (tmp_path / "images").mkdir()
    generator = np.random.default_rng(0)
    for place in range(30):
        Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "images" / f"{place}.png")
    return tmp_path / "images"


def small(monkeypatch, limit=1_000):
    for module in (mapped, reading):
        monkeypatch.setattr(module, "LARGEST_IN_MEMORY", limit)


def test_a_folder_beyond_memory_is_decoded_once_into_a_file(images, tmp_path, monkeypatch):
    plain = di.load_dataset(f"folder:{images}")
    small(monkeypatch)
    large = di.load_dataset(f"folder:{images}")
    assert large.digest == plain.digest and large.train.names == plain.train.names
    (kept,) = (tmp_path / "data" / "decoded").glob("*/rows.npy")
    monkeypatch.setattr(folder.ReadableImages, "rows", None)  # decoded again it would not be
    with monkeypatch.context() as patched:
        patched.setattr(reading, "decode", None)  # nor looked at again
        again = di.load_dataset(f"folder:{images}")
    assert again.digest == plain.digest and again.notes == large.notes
    kept.write_bytes(kept.read_bytes()[:-4] + b"\0\0\0\1")
    monkeypatch.undo()
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path / "data"))
    small(monkeypatch)
    with pytest.warns(UserWarning, match="rows.npy missing or damaged"):
        assert di.load_dataset(f"folder:{images}").digest == plain.digest


@pytest.mark.parametrize("name", [mapped.ROWS, mapped.PROGRESS])
@pytest.mark.parametrize("harm", HARMS)
def test_rows_do_not_go_on_from_what_is_damaged(tmp_path, name, harm):
    rows, made = torch.arange(40.0).reshape(2, 10, 2), []

    def kept(place, source, until=10):
        def make(start, stop):
            made.append(start)
            if stop > until:
                raise KeyboardInterrupt
            return source[:, start:stop]

        return mapped.kept_rows(tmp_path / place, "x", (2, 10, 2), make, name="rows", at_once=3)

    for place, source in (("one", rows), ("other", rows + 1)):
        with pytest.raises(KeyboardInterrupt):
            kept(place, source, 6)
    contents = [(tmp_path / place / name).read_bytes() for place in ("one", "other")]
    whole_until_then = 2  # the last bytes are of rows that are not made yet
    for number, content in enumerate([*HARMS[harm](*contents)][:whole_until_then]):
        shutil.copytree(tmp_path / "one", tmp_path / str(number))
        (tmp_path / str(number) / name).write_bytes(content)
        made.clear()
        with pytest.warns(UserWarning, match=rf"{tmp_path / str(number)}/(rows\.npy|progress\.json): damaged"):
            assert torch.equal(kept(str(number), rows), rows)
        assert made == [0, 3, 6, 9]
    made.clear()
    assert torch.equal(kept("one", rows), rows) and made == [6, 9]


@pytest.mark.parametrize("told", [{"rows": 6}, {"rows": 6, "content": "other"}])
def test_rows_whose_header_is_damaged_are_made_again(tmp_path, told):
    """NumPy reads a header as code, and what is damaged there may raise anything."""
    rows = torch.arange(40.0).reshape(2, 10, 2)
    for place in range(64):
        folder = tmp_path / str(place)
        folder.mkdir()
        np.save(folder / mapped.ROWS, np.zeros((2, 10, 2), np.float32))
        content = bytearray((folder / mapped.ROWS).read_bytes())
        content[place] ^= 8
        (folder / mapped.ROWS).write_bytes(content)
        write_sealed(folder / mapped.PROGRESS, told)
        with warnings.catch_warnings(action="ignore"):
            found = mapped.kept_rows(folder, "x", (2, 10, 2), lambda *at: rows[:, slice(*at)], name="rows")
        assert torch.equal(found[:, 6:], rows[:, 6:]) and found.shape == rows.shape


def test_who_has_mapped_rows_keeps_them_when_they_are_made_anew(tmp_path):
    def kept(value):
        return mapped.kept_rows(tmp_path, "x", (1, 4), lambda a, b: torch.full((1, b - a), value), name="rows")

    first = kept(1.0)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.warns(UserWarning, match="manifest.json: damaged"):
        assert torch.equal(kept(2.0), torch.full((1, 4), 2.0))
    assert torch.equal(first, torch.ones(1, 4))


@pytest.mark.parametrize("index", [slice(3, 9), [4, 4, 0], torch.tensor([2, 7]), torch.arange(30) % 3 == 0])
def test_subsets_are_the_same_from_a_file(images, tmp_path, monkeypatch, index):
    plain = di.load_dataset(f"folder:{images}").train
    if isinstance(index, torch.Tensor) and index.dtype == torch.bool:
        index = index[: len(plain)]
    wanted = plain.images[index]
    small(monkeypatch, 100)
    found = mapped.rows_at(plain.images, index)
    assert torch.equal(found, wanted)
    assert not list((tmp_path / "data").glob(".rows-*")) if (tmp_path / "data").exists() else True
