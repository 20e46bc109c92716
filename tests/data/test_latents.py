"""Latents of a folder's images: what the autoencoder itself says of them, encoded once, and drawn anew in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import save_autoencoder
from PIL import Image

import diffinf_lib as di
from diffinf_lib.autoencoder import load_autoencoder
from diffinf_lib.data import Latents, mapped
from diffinf_lib.errors import ArtifactError, ConfigurationError


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    """A pipeline's folder with a tiny autoencoder: three channels to four, sides to a quarter."""
    return save_autoencoder(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFINF_DATA", str(tmp_path / "data"))
    generator = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 3)):
        (tmp_path / "images" / part).mkdir(parents=True)
        for place in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / part / f"{place:02}.png")
    return tmp_path / "images"


def loaded(images, autoencoder):
    return di.load_dataset(di.configuration.DatasetConfig(f"folder:{images}", autoencoder=str(autoencoder)))


def test_latents_are_what_diffusers_says(images, autoencoder):
    from diffusers import AutoencoderKL

    data, pixels = loaded(images, autoencoder), di.load_dataset(f"folder:{images}")
    network = AutoencoderKL.from_pretrained(autoencoder / "vae").eval()
    assert isinstance(data.train, Latents) and data.train.shape == (4, 4, 4)
    assert torch.equal(data.train.ids, pixels.train.ids) and data.train.names == pixels.train.names
    with torch.no_grad():
        for part, picture in (
            (data.train.parts[:2], pixels.train.images),
            (data.train.parts[2:], pixels.train.images.flip(-1)),
        ):
            said = network.encode(picture).latent_dist
            torch.testing.assert_close(part[0], (said.mean - 0.1) * 0.5, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close((0.5 * part[1]).exp(), said.std * 0.5, rtol=1e-4, atol=1e-5)
        shown = data.pixels(data.queries)
        expected = network.decode(data.queries.images / 0.5 + 0.1).sample.clamp(-1, 1)
    torch.testing.assert_close(shown, expected, rtol=1e-4, atol=1e-5)


def test_images_are_encoded_once_and_a_killed_encoding_goes_on(images, autoencoder, tmp_path, monkeypatch):
    first = loaded(images, autoencoder)
    (kept,) = (tmp_path / "data" / "latents").glob("*/rows.npy")
    before = kept.stat().st_mtime_ns
    loaded(images, autoencoder)
    assert kept.stat().st_mtime_ns == before
    network, done = load_autoencoder(str(autoencoder)), []

    def killed(start, stop, readable):
        done.append(start)
        if len(done) == 2:
            raise KeyboardInterrupt
        return network.moments(readable[start:stop])

    pair = di.load_dataset(f"folder:{images}")
    pixels = torch.cat([pair.train.images, pair.queries.images])
    shape, folder = (4, len(pixels), 4, 4, 4), tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        mapped.kept_rows(folder, "x", shape, lambda *rows: killed(*rows, pixels), name="latents", at_once=5)
    again = mapped.kept_rows(folder, "x", shape, lambda *rows: killed(*rows, pixels), name="latents", at_once=5)
    assert done == [0, 5, 5, 10, 15, 20]
    torch.testing.assert_close(again[0, :20], first.train.images, rtol=1e-4, atol=1e-5)


def test_training_draws_from_the_distributions_and_mirrors_before_encoding(images, autoencoder):
    train = loaded(images, autoencoder).train
    index, mirror = torch.tensor([3, 3, 7, 7]), torch.tensor([False, True, False, True])
    drawn = torch.stack([
        train.for_training(index, mirror, torch.Generator().manual_seed(seed)) for seed in range(4_000)
    ])  # fmt: skip
    means = torch.stack([train.images[3], train.mirrored[3], train.images[7], train.mirrored[7]])
    spread = (0.5 * torch.stack([
        train.log_variances[3], train.mirrored_log_variances[3], train.log_variances[7], train.mirrored_log_variances[7]
    ])).exp()  # fmt: skip
    assert ((drawn.mean(0) - means).abs() < 5 * spread / 4_000**0.5).all()
    assert ((drawn.std(0) / spread - 1).abs() < 0.08).all()
    part = train.subset([5, 2])
    assert isinstance(part, Latents) and torch.equal(part.mirrored, train.mirrored[[5, 2]])
    assert part.digest != train.subset([2, 5]).digest


def test_an_autoencoder_is_read_alike_whatever_the_caller_has_set(autoencoder):
    load_autoencoder.cache_clear()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            found = load_autoencoder(str(autoencoder))
    finally:
        torch.set_default_dtype(before)
    values = found.network.state_dict().values()
    assert all(value.dtype == torch.float32 and not value.is_inference() for value in values)


def test_what_cannot_be_encoded_is_refused(images, autoencoder, tmp_path):
    with pytest.raises(ConfigurationError, match="autoencoder=x: only images in files"):
        di.configuration.DatasetConfig("digits", autoencoder="x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="no config.json of an AutoencoderKL"):
        loaded(images, tmp_path / "empty")
    odd = di.configuration.DatasetConfig(f"folder:{images}", image_size=18, autoencoder=str(autoencoder))
    with pytest.raises(ArtifactError, match="multiples of 4"):
        di.load_dataset(odd)
