"""Images too many for memory: the same numbers from a file as from memory."""

import numpy as np
import pytest
import torch
from PIL import Image

import diffinf_lib as di
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
