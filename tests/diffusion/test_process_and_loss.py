import pytest
import torch

from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import (
    Denoiser,
    DrawConfig,
    Process,
    example_draws,
    per_draw_loss,
)
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.measurements import MEASUREMENT_STAGE, MeasurementConfig, measure


class Scaled(torch.nn.Module):
    """ε_θ(x_t, t) = w x_t, small enough to do by hand."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, noisy, timesteps):
        return self.weight * noisy


def test_alphas_are_the_product_of_one_minus_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(Process().alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-9)


def test_noising_agrees_with_diffusers():
    images, noise, steps = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 500, 998, 999])
    expected = Process().scheduler().add_noise(images, noise, steps)
    torch.testing.assert_close(Process().noisy(images, steps, noise), expected)


def test_scaled_linear_is_linear_in_the_square_root():
    process = Process(0.00085, 0.012, "scaled_linear")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(process.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-9)


def test_per_draw_loss_by_hand():
    images, noise = torch.full((1, 1, 1, 2), 1.0).double(), torch.tensor([[[[2.0, 0.0]]]]).double()
    kept = float(Process().alphas_cumprod[300])
    noisy = [kept**0.5 + (1 - kept) ** 0.5 * 2, kept**0.5]
    expected = ((2 - 3 * noisy[0]) ** 2 + (0 - 3 * noisy[1]) ** 2) / 2
    actual = per_draw_loss(Denoiser(Scaled(3.0)), images, torch.tensor([300]), noise)
    torch.testing.assert_close(actual, torch.tensor([expected]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
def test_the_measured_loss_is_the_mean_over_the_draws(batch_size):
    config, data = DrawConfig(8), ImageSet(torch.randn(3, 1, 4, 4), torch.zeros(3).long(), torch.tensor([4, 0, 11]))
    expected = []
    for image, example_id in zip(data.images.double(), data.ids, strict=True):
        draws = example_draws(int(example_id), (1, 4, 4), config, seed=0, stage=MEASUREMENT_STAGE)
        losses = per_draw_loss(
            Denoiser(Scaled(0.5)), image.expand(8, -1, -1, -1), draws.timesteps, draws.noise.double()
        )
        expected.append(losses.mean())
    actual = measure(Denoiser(Scaled(0.5)), data, MeasurementConfig(draws=config), batch_size=batch_size)
    torch.testing.assert_close(actual, torch.stack(expected).detach(), rtol=1e-12, atol=0)


def test_bad_schedules_are_refused():
    with pytest.raises(ConfigurationError, match="beta_start"):
        Process(beta_start=0.1, beta_end=0.01)
    with pytest.raises(ConfigurationError, match="timesteps=0"):
        Process(timesteps=0)
    with pytest.raises(ConfigurationError, match="method"):
        Process().scheduler("euler")
