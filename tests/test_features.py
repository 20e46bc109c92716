"""Features of the middle block: what they are, that batches do not matter, and distances by a unit of their own."""

import numpy as np
import pytest
import torch
from annotations import unchecked
from torch import nn

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.features import FEATURE_TIMESTEPS, distances, middle_features
from diffinf_lib.runs import as_queries

PRESET = di.get_preset("smoke")
MODEL = di.build_model(PRESET.unet, PRESET.process, seed=0)
IMAGES = as_queries(torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_they_are_mean_activations_under_one_noise():
    found = middle_features(MODEL, IMAGES, timesteps=[30, 400], draws=4)
    caught = []
    handle = MODEL.network.mid_block.register_forward_hook(lambda *call: caught.append(call[-1]))
    for timestep in (30, 400):
        config = di.DrawConfig(4, timestep_rule="single", timestep=timestep, shared=True)
        draws = di.diffusion.example_draws(0, (1, 8, 8), config, seed=0, purpose="features", process=MODEL.process)
        for image in IMAGES.images:
            noisy = MODEL.process.noisy(image.expand(4, 1, 8, 8), draws.timesteps, draws.noise)
            MODEL.eval()(noisy, draws.timesteps)
    handle.remove()
    expected = torch.stack([activations.flatten(1).mean(0) for activations in caught]).view(2, 5, -1)
    torch.testing.assert_close(found, torch.cat([*expected], dim=1), rtol=1e-4, atol=1e-5)
    assert not MODEL.network.mid_block._forward_hooks


def test_batches_do_not_matter_and_the_seed_does():
    found = middle_features(MODEL, IMAGES)
    torch.testing.assert_close(middle_features(MODEL, IMAGES, batch_size=3), found, rtol=1e-4, atol=1e-5)
    assert found.shape[1] % len(FEATURE_TIMESTEPS) == 0 and not torch.equal(
        middle_features(MODEL, IMAGES, seed=1), found
    )
    assert found.std(0).max() > 0


def test_distances_by_hand():
    reference = torch.tensor([[0.0, 0.0], [6.0, 8.0], [0.0, 0.0]])  # 10, 0 and 10 apart: 20 / 3
    first, second = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(1, 2)
    np.testing.assert_allclose(distances(first, second, reference), [0.75, 0.0], rtol=1e-12)
    for alike in (reference[:1], torch.ones(3, 2)):
        with pytest.raises(DataError, match=f"reference: {len(alike)} images that are all alike"):
            distances(first, second, alike)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: middle_features(di.Denoiser(nn.Conv2d(1, 1, 1), di.Process()), IMAGES), "Conv2d: it has no mid_block"),
        (lambda: middle_features(MODEL, IMAGES, timesteps=[]), "timesteps: give at least one"),
        (lambda: middle_features(MODEL, IMAGES, draws=3), "draws=3: antithetic draws come in pairs"),
        (lambda: middle_features(MODEL, IMAGES, timesteps=[1000]), "timestep=1000: give a number from 0 to 999"),
        (lambda: middle_features(MODEL, IMAGES.images), "is no ImageSet"),
        (lambda: middle_features(MODEL.network, IMAGES), "does not say what it predicts"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with unchecked(), pytest.raises(ConfigurationError, match=message):
        make()
