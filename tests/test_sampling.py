from dataclasses import replace

import pytest
import torch

from diffinf_lib.configuration import Process
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.sampling import sample, sample_seeds, sample_states
from diffinf_lib.training import train

MODEL = build_model(get_preset("smoke").unet)
SHAPE = (1, 8, 8)


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_a_sample_depends_on_its_seed_only(method):
    together = sample(MODEL, [4, 5, 6], SHAPE, method=method, steps=6)
    alone = torch.cat([sample(MODEL, [seed], SHAPE, method=method, steps=6) for seed in (4, 5, 6)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    batches = sample(MODEL, [6, 5, 4], SHAPE, method=method, steps=6, batch_size=2).flip(0)
    torch.testing.assert_close(together, batches, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 0.1


def test_a_trajectory_goes_from_noise_to_the_sample():
    states = sample_states(MODEL, 2, SHAPE, steps=5)
    assert states.shape == (2, 6, *SHAPE)
    noise = torch.randn(SHAPE, generator=keyed_generator("sample", 0))
    assert torch.equal(states[0, 0], noise)
    torch.testing.assert_close(states[:, -1], sample(MODEL, 2, SHAPE, steps=5))
    torch.testing.assert_close(sample_states(MODEL, 2, SHAPE, steps=5, keep=(0, 3)), states[:, [0, 3]])


class Gaussian(torch.nn.Module):
    """The optimal denoiser for data N(0, v), (a s v + b n) / (s² v + n²) x_t; samples must have variance v."""

    def __init__(self, variance, process):
        super().__init__()
        self.variance, self.process = variance, process
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy, timesteps):
        place = timesteps - 1 if self.process.is_flow else timesteps  # a flow is asked at T σ = t + 1
        signal, noise, of_image, of_noise = self.process.at(place.long(), noisy)
        gain = (of_image * signal * self.variance + of_noise * noise) / (signal**2 * self.variance + noise**2)
        return gain * noisy


@pytest.mark.parametrize(("method", "steps"), [("ddpm", 1000), ("ddim", 250)])
@pytest.mark.parametrize("options", [
    {}, {"target": "image"}, {"target": "v"}, {"target": "v", "zero_terminal_snr": True}, {"target": "velocity"},
    {"beta_schedule": "sigmoid"}, {"beta_schedule": "sigmoid", "target": "v", "zero_terminal_snr": True},
])  # fmt: skip
def test_the_sampler_recovers_a_known_distribution(method, steps, options):
    process = Process(**options)
    model = Denoiser(Gaussian(0.04, process), process)
    method = "euler" if process.is_flow else method
    samples = sample(model, 8, (1, 16, 16), method=method, steps=steps)
    # 2,048 values: the standard error of the variance is about 3%
    assert abs(samples.var().item() / 0.04 - 1) < 0.12
    assert abs(samples.mean().item()) < 0.02


def test_bad_requests_are_refused():
    with pytest.raises(ConfigurationError, match="seeds"):
        sample(MODEL, 0, SHAPE)
    for steps in (0, 1001):
        with pytest.raises(ConfigurationError, match=f"steps={steps}: give a whole number from 1 to 1000"):
            sample(MODEL, 1, SHAPE, steps=steps)
    with pytest.raises(ConfigurationError, match="method"):
        sample(MODEL, 1, SHAPE, method="euler")


def test_a_model_in_float64_is_sampled_and_trained_in_float64():
    preset = get_preset("smoke")
    exact = build_model(preset.unet).double()
    samples = sample(exact, 2, SHAPE, steps=3)
    assert samples.dtype == torch.float64
    torch.testing.assert_close(
        sample(MODEL, 2, SHAPE, method="ddim", steps=3).double(),
        sample(exact, 2, SHAPE, method="ddim", steps=3),
        rtol=1e-3,
        atol=1e-4,
    )
    data = ImageSet(samples.float().clamp(-1, 1), torch.zeros(2).long(), torch.arange(2))
    trained = train(exact, data, replace(preset.training, steps=2, batch_size=2, keep_ema_at=()), progress=False).model
    assert trained.dtype == torch.float64


def test_samples_of_different_seeds_are_different_however_many_there_are():
    assert sample_seeds(0, 4) == [0, 1, 2, 3] and sample_seeds(1, 8)[:3] == sample_seeds(1, 3)
    every = [seed for first in (0, 1, 2, -1) for seed in sample_seeds(first, 16)]
    assert len(set(every)) == len(every)
