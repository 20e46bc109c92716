"""The reverse process and the ELBO, against diffusers, torch.distributions and scipy."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import Independent, Normal, kl_divergence

from diffinf_lib.configuration import Process
from diffinf_lib.diffusion import Denoiser, elbo, reverse
from diffinf_lib.diffusion.elbo import (
    last_step_log_prob,
    nats_to_bits_per_dimension,
    nearest_levels,
)
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.sampling import sample_states

TIMES = torch.tensor([0, 1, 2, 40, 500, 998, 999])
elbo_terms, kl_weights, prior_kl, added_variances, posterior_mean, posterior_variance, reverse_mean, reverse_step_log_prob = (
    partial(function, process=Process())
    for function in (
        elbo.elbo_terms, elbo.kl_weights, elbo.prior_kl, reverse.added_variances, reverse.posterior_mean,
        reverse.posterior_variance, reverse.reverse_mean, reverse.reverse_step_log_prob,
    )
)  # fmt: skip


def batch(timesteps=TIMES, seed=0, levels=17):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(timesteps), 2, 3, 3)
    images = torch.randint(levels, shape, generator=generator).double() * 2 / (levels - 1) - 1
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    prediction = noise + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return images, noise, prediction, Process().noisy(images, timesteps, noise)


def gaussian(mean, variance):
    return Independent(Normal(mean, variance.sqrt().view(-1, 1, 1, 1)), 3)


# The reverse process


def test_the_posterior_is_bayes_rule():
    images, _, _, noisy = batch(TIMES[1:])
    kept = Process().alphas_cumprod.double()
    before, beta = kept[TIMES[1:] - 1].view(-1, 1, 1, 1), added_variances()[TIMES[1:]].view(-1, 1, 1, 1)
    # x_{t−1} | x_0 ~ N(√ᾱ_{t−1} x_0, 1 − ᾱ_{t−1}), seen through x_t = √(1−β) x_{t−1} + √β ε
    precision = 1 / (1 - before) + (1 - beta) / beta
    mean = (before.sqrt() * images / (1 - before) + (1 - beta).sqrt() * noisy / beta) / precision
    torch.testing.assert_close(posterior_variance()[TIMES[1:]], 1 / precision.flatten(), rtol=1e-10, atol=0)
    torch.testing.assert_close(posterior_mean(images, noisy, TIMES[1:]), mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("process", [Process(), Process(0.00085, 0.012, "scaled_linear", 50)])
def test_a_step_is_that_of_diffusers(clip, process):
    timesteps = torch.arange(process.num_train_timesteps)
    _, _, prediction, noisy = batch(timesteps)
    scheduler = process.scheduler()
    scheduler.register_to_config(clip_sample=clip)
    mean = reverse_mean(noisy, prediction, timesteps, process=process, clip=clip)
    for t in timesteps[:: process.num_train_timesteps // 25].tolist():
        # Generators that make no noise visible: the same seed on both sides, whatever the variance
        made, drawn = (torch.Generator().manual_seed(t) for _ in range(2))
        step = scheduler.step(prediction[t : t + 1], t, noisy[t : t + 1], generator=made)
        noise = torch.randn(1, 2, 3, 3, generator=drawn, dtype=torch.float64)
        expected = mean[t : t + 1] + (noise * posterior_variance(process=process)[t].sqrt() if t else 0)
        # diffusers' coefficients are float32: 1 − ᾱ_t keeps three digits near t = 0
        torch.testing.assert_close(step.prev_sample, expected, rtol=2e-4, atol=2e-4)
        image = process.solved(noisy, prediction, timesteps)[0][t]
        expected_image = step.pred_original_sample[0]
        torch.testing.assert_close(image.clamp(-1, 1) if clip else image, expected_image, rtol=1e-4, atol=1e-4)
        if t:
            assert float(scheduler._get_variance(t)) == pytest.approx(
                float(posterior_variance(process=process)[t]), rel=2e-3
            )
    assert posterior_variance(process=process)[0] == posterior_variance(process=process)[1]


def test_the_mean_without_clipping_is_equation_11():
    _, _, prediction, noisy = batch()
    beta = added_variances()[TIMES].view(-1, 1, 1, 1)
    rest = (1 - Process().alphas_cumprod.double()[TIMES]).view(-1, 1, 1, 1)
    expected = (noisy - beta / rest.sqrt() * prediction) / (1 - beta).sqrt()
    torch.testing.assert_close(reverse_mean(noisy, prediction, TIMES), expected, rtol=1e-8, atol=1e-8)


def test_a_step_s_log_probability_is_scipy_s():
    _, _, prediction, noisy = batch()
    following = noisy + 0.01
    mean = reverse_mean(noisy, prediction, TIMES, clip=True).numpy()
    scale = posterior_variance()[TIMES].sqrt().view(-1, 1, 1, 1).numpy()
    expected = stats.norm.logpdf(following.numpy(), mean, scale).sum((1, 2, 3))
    actual = reverse_step_log_prob(prediction, noisy, following, TIMES)
    np.testing.assert_allclose(actual, expected, rtol=1e-10)


class Slanted(torch.nn.Module):
    """A network whose guessed image often lies beyond ±1, so that clipping matters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, noisy, timesteps):
        return self.weight * noisy


def test_a_sampled_trajectory_has_standard_normal_residuals():
    process = Process(num_train_timesteps=50)
    model = Denoiser(Slanted(), process)
    states = sample_states(model, 40, (1, 6, 6), steps=50)
    total, unclipped, dimensions = 0.0, 0.0, 36
    for done, t in enumerate(range(49, 0, -1)):
        timesteps = torch.full((40,), t)
        prediction = model(states[:, done], timesteps).detach()
        args = (prediction, states[:, done], states[:, done + 1], timesteps, process)
        constant = 0.5 * dimensions * float((2 * math.pi * posterior_variance(process=process)[t]).log())
        # Of a standard normal residual, what is left of −log p is half a chi-squared variable
        residuals = -2 * (reverse.reverse_step_log_prob(*args) + constant)
        assert residuals.mean().item() == pytest.approx(dimensions, abs=6 * (2 * dimensions / 40) ** 0.5)
        total += residuals.mean().item() / 49
        unclipped -= 2 * (reverse.reverse_step_log_prob(*args, clip=False) + constant).mean().item() / 49
    assert total == pytest.approx(dimensions, abs=4 * (2 * dimensions / 40 / 49) ** 0.5)
    assert unclipped > total + 10
    last = reverse.reverse_step_log_prob(
        model(states[:, 49], torch.zeros(40, dtype=torch.long)), states[:, 49], states[:, 50],
        torch.zeros(40, dtype=torch.long), process,
    )  # fmt: skip
    best = -0.5 * dimensions * float((2 * math.pi * posterior_variance(process=process)[0]).log())
    torch.testing.assert_close(last, torch.full((40,), best), rtol=1e-4, atol=1e-2)


def test_one_timestep_is_refused():
    with pytest.raises(ConfigurationError, match="num_train_timesteps=1"):
        posterior_variance(process=Process(num_train_timesteps=1))


# The ELBO


def test_terms_are_the_kls_of_the_two_gaussians():
    timesteps = TIMES[1:]
    images, noise, prediction, noisy = batch(timesteps)
    variance = posterior_variance()[timesteps]
    true = gaussian(posterior_mean(images, noisy, timesteps), variance)
    model = gaussian(reverse_mean(noisy, prediction, timesteps), variance)
    expected = -1000 * kl_divergence(true, model)
    torch.testing.assert_close(elbo_terms(prediction, images, timesteps, noise), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("process", [Process(), Process(0.00085, 0.012, "scaled_linear", 100)])
def test_the_simplified_weight_is_the_kl_s_with_the_variance_beta(process):
    beta, kept = added_variances(process=process), process.alphas_cumprod.double()
    simplified = beta / (2 * (1 - beta) * (1 - kept))
    # β²/(2σ²α(1−ᾱ)) is the simplified weight at σ² = β; at σ² = β̃ it is larger by β/β̃ = (1−ᾱ_t)/(1−ᾱ_{t−1})
    expected = (simplified[1:] * (1 - kept[1:]) / (1 - kept[:-1])).tolist()
    assert kl_weights(process=process)[1:].tolist() == pytest.approx(expected, rel=1e-12)
    assert kl_weights(process=process)[0] == 0


@pytest.mark.parametrize("levels", [17, 256, None])
def test_the_term_at_zero_is_scipy_s_mass_or_density(levels):
    timesteps = torch.zeros(40, dtype=torch.long)
    images, noise, prediction, noisy = batch(timesteps, levels=levels or 17)
    mean = Process().solved(noisy, prediction, timesteps)[0].numpy()
    scale, half = float(posterior_variance()[0].sqrt()), 1 / ((levels or 2) - 1)
    lower = np.where(images == -1, -np.inf, images - half)
    upper = np.where(images == 1, np.inf, images + half)
    # Both masses in the tail where they are small, as scipy's own differences need it
    flip = lower > mean
    low, high = np.where(flip, 2 * mean - upper, lower), np.where(flip, 2 * mean - lower, upper)
    mass = np.log(stats.norm.cdf(high, mean, scale) - stats.norm.cdf(low, mean, scale))
    expected = stats.norm.logpdf(images, mean, scale) if levels is None else mass
    actual = elbo_terms(prediction, images, timesteps, noise, levels=levels)
    np.testing.assert_allclose(actual, 1000 * expected.sum((1, 2, 3)), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("offset", [0.0, 0.013, -0.7, 1.5, -30.0])
def test_probabilities_of_all_levels_sum_to_one(levels, offset):
    values = torch.linspace(-1, 1, levels, dtype=torch.float64).view(-1, 1, 1, 1)
    for scale in (0.0074, 0.3):
        logs = last_step_log_prob(values, offset - values, scale, levels)
        assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-12)
        assert logs.max() <= 1e-12


@pytest.mark.parametrize("levels", [17, 256])
def test_far_tails_agree_with_scipy_s_log_survival(levels):
    scale, half = 0.0074, 1 / (levels - 1)
    value = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for deviations in (3, 30, 300, 1e4):
        miss = torch.full_like(value, deviations * scale)
        near, far = (stats.norm.logsf((float(miss) + edge) / scale) for edge in (-half, half))
        expected = near + np.log1p(-np.exp(far - near))
        for side in (miss, -miss):
            assert float(last_step_log_prob(value, side, scale, levels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [2, 17, 256, None])
def test_values_and_gradients_stay_finite_however_far_off(dtype, levels):
    deviations = torch.tensor([0, 1e-6, 1, 5, 9, 30, 300, 1e4], dtype=dtype)
    deviations = torch.cat([deviations, -deviations])
    for value in (-1.0, 0.0, 1.0):
        images = torch.full((16, 1, 1, 1), value, dtype=dtype)
        timesteps, noise = torch.zeros(16, dtype=torch.long), torch.zeros_like(images)
        # One standard deviation of x_0 is one of the guessed noise too: σ_0² ≈ (1 − ᾱ_0)/2
        prediction = deviations.view_as(images).clone().requires_grad_()
        terms = elbo_terms(prediction, images, timesteps, noise, levels=levels)
        (gradient,) = torch.autograd.grad(terms.sum(), prediction)
        assert terms.isfinite().all() and gradient.isfinite().all()
        assert terms.dtype == dtype
        # Far off on the wrong side the pull is the distance over the variance
        if levels is not None and value == 0:
            assert gradient[7].abs() > 1e6 and gradient[7] * gradient[15] < 0


@pytest.mark.parametrize("levels", [17, None])
def test_gradients_are_those_of_finite_differences(levels):
    images, noise, prediction, _ = batch(torch.tensor([0, 3, 0, 700]))
    times = torch.tensor([0, 3, 0, 700])
    scaled = lambda guess: elbo_terms(guess, images, times, noise, levels=levels) / 1000  # noqa: E731
    assert torch.autograd.gradcheck(scaled, (prediction.requires_grad_(),), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_float32_agrees_with_float64():
    images, noise, prediction, _ = batch()
    exact = elbo_terms(prediction, images, TIMES, noise)
    single = elbo_terms(prediction.float(), images.float(), TIMES, noise.float())
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=1e-5)


def test_prior_kl_is_that_of_torch():
    images, *_ = batch()
    kept = Process().alphas_cumprod.double()[-1]
    noised = gaussian(kept.sqrt() * images, (1 - kept).expand(len(images)))
    standard = gaussian(torch.zeros_like(images), torch.ones(len(images), dtype=torch.float64))
    torch.testing.assert_close(prior_kl(images), kl_divergence(noised, standard), rtol=1e-8, atol=1e-12)


def test_nearest_levels_and_units():
    levels = torch.linspace(-1, 1, 17, dtype=torch.float64)
    torch.testing.assert_close(nearest_levels(levels + 0.03, 17), levels)
    torch.testing.assert_close(nearest_levels(torch.tensor([-3.0, 0.99, 0.05]), 3), torch.tensor([-1.0, 1.0, 0.0]))
    # A fair coin for every pixel is a bit for every pixel
    assert float(nats_to_bits_per_dimension(torch.tensor(-64 * math.log(2)), 64)) == pytest.approx(-1)
    with pytest.raises(ConfigurationError, match="levels=1"):
        elbo_terms(*(torch.zeros(1, 1, 2, 2),) * 2, torch.zeros(1, dtype=torch.long), torch.zeros(1, 1, 2, 2), levels=1)
