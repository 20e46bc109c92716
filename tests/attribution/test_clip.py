"""CLIP similarity against transformers' own pipeline from picture files, on a tiny random CLIP."""

import socket
import sys
import time

import numpy as np
import pytest
import torch
from made_data import save_clip
from PIL import Image

from diffinf_lib.attribution.clip import clip_similarity_scores, load_clip
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import ArtifactError, ConfigurationError, DataError

transformers = pytest.importorskip("transformers")

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny random CLIP with its preprocessor, saved as transformers saves it."""
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def pictures(count, channels, seed, height=10, width=14):
    """8-bit pictures and the same ones as images in [−1, 1]."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    pixels = torch.from_numpy(levels).permute(0, 3, 1, 2).float() / 127.5 - 1
    files = [Image.fromarray(picture.squeeze(2) if channels == 1 else picture) for picture in levels]
    return files, ImageSet(pixels, torch.zeros(count, dtype=torch.int64), torch.arange(count))


def features(source, files):
    """get_image_features of pictures through the folder's own processor, image by image, unit length."""
    model = transformers.CLIPModel.from_pretrained(source).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(source)
    rows = []
    with torch.no_grad():
        for file in files:
            found = model.get_image_features(**processor(images=file, return_tensors="pt"))
            rows.append(getattr(found, "pooler_output", found)[0])  # a tensor before transformers 5
    rows = torch.stack(rows).double()
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("channels", [1, 3], ids=["grey", "rgb"])
def test_scores_are_cosines_of_the_pipeline_on_picture_files(source, channels):
    (train_files, train), (query_files, queries) = pictures(7, channels, 0), pictures(3, channels, 1)
    expected = features(source, query_files) @ features(source, train_files).T
    scores = clip_similarity_scores(train, queries, source=source, batch_size=4)
    assert scores.shape == (3, 7) and scores.dtype == torch.float64
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
    assert float(expected.std()) > 1e-2  # else any scores would do


def test_scores_do_not_depend_on_batches(source):
    (_, train), (_, queries) = pictures(7, 3, 0), pictures(3, 3, 1)
    reference = clip_similarity_scores(train, queries, source=source)
    for size in (1, 3):
        found = clip_similarity_scores(train, queries, source=str(source), batch_size=size)
        torch.testing.assert_close(found, reference, rtol=0, atol=1e-5)


def test_an_image_is_most_alike_to_itself(source):
    _, images = pictures(6, 1, 2)
    scores = clip_similarity_scores(images, images, source=source)
    torch.testing.assert_close(scores.diagonal(), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-12)
    assert scores.argmax(1).tolist() == list(range(6))


def copied(source, folder, without):
    folder.mkdir()
    for file in source.iterdir():
        if file.name != without:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "preprocessor_config.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(source, name, tmp_path):
    with pytest.raises(ArtifactError, match=f"{name} is missing") as caught:
        load_clip(copied(source, tmp_path / "part", name))
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_not_loaded(source, tmp_path):
    folder = copied(source, tmp_path / "pickled", WEIGHTS)
    torch.save(transformers.CLIPModel.from_pretrained(source).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="safetensors"):
        load_clip(folder)


def test_truncated_and_incomplete_weights_are_refused(source, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = copied(source, tmp_path / "broken", None)
    weights = folder / WEIGHTS
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="damaged"):
        load_clip(folder)
    tensors.pop("visual_projection.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"1 weights are missing, first \['visual_projection.weight'\]"):
        load_clip(folder)


def test_another_kind_of_model_is_refused(source, tmp_path):
    folder = copied(source, tmp_path / "other", None)
    (folder / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(ArtifactError, match="model_type='siglip'"):
        load_clip(folder)


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("no-such-owner/no-such-model", "DIFFINF_OFFLINE=1 forbids asking a hub"),
        ("not/a/hub/id", "no such folder; give a CLIP"),
    ],
)
def test_what_is_neither_a_folder_nor_in_the_cache_is_refused_at_once(missing, why):
    begun = time.monotonic()
    with pytest.raises(ArtifactError, match=why) as caught:
        load_clip(missing)
    assert "\n" not in str(caught.value) and time.monotonic() - begun < 5


def test_a_hub_id_is_read_from_the_cache_without_a_network(source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    kept = tmp_path / "models--some-owner--tiny"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    (kept / "snapshots").mkdir()
    copied(source, kept / "snapshots" / ("a" * 40), None)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model, _ = load_clip("some-owner/tiny")
    assert model.config.projection_dim == 8
    (kept / "snapshots" / ("a" * 40) / WEIGHTS).unlink()
    with pytest.raises(ArtifactError, match="some-owner/tiny: .*model.safetensors is missing"):
        load_clip("some-owner/tiny")


def test_without_a_network_there_is_one_line_and_no_waiting(monkeypatch):
    def refuse(*arguments, **options):
        raise OSError("no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("DIFFINF_OFFLINE")
    begun = time.monotonic()
    with pytest.raises(ArtifactError, match="no such folder, and the hub cannot be asked") as caught:
        load_clip("no-such-owner/no-such-model")
    assert "\n" not in str(caught.value) and time.monotonic() - begun < 5


def test_bad_input_is_refused(source, monkeypatch):
    _, images = pictures(2, 3, 0)
    two = ImageSet(images.images[:, :2], images.labels, images.ids)
    with pytest.raises(DataError, match="queries: images of 2 channels"):
        clip_similarity_scores(images, two, source=source)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        clip_similarity_scores(images, images, source=source, batch_size=0)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigurationError, match=r"install diffinf\[clip\]"):
        clip_similarity_scores(images, images, source=source)
