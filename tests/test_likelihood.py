"""Loss, ELBO and log-likelihood where they are known in closed form: a linear denoiser of Gaussian data."""

import builtins
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from diffinf_lib.configuration import DrawConfig, LikelihoodConfig, MeasurementConfig, Process
from diffinf_lib.data import ImageSet, load_dataset
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.elbo import elbo_terms, nats_to_bits_per_dimension, nearest_levels, prior_kl
from diffinf_lib.diffusion.reverse import posterior_variance, reverse_mean
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.likelihood import LEAST_SIGNAL, angle_grid, angles, log_likelihood, timesteps_at
from diffinf_lib.measurements import measure
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.training import train

D = 4
PROCESSES = [
    Process(),
    Process(0.00085, 0.012, "scaled_linear"),
    Process(target="image"),
    Process(beta_schedule="squaredcos_cap_v2", target="v"),
    Process(target="v", zero_terminal_snr=True),
    Process(target="velocity", clip_sample=None),
    Process(target="velocity", clip_sample=None, flow_shift=3.0),
]


def alphas_cumprod_at(timesteps, process):
    """ᾱ at real-valued timesteps, log ᾱ linear between whole ones."""
    known = process.alphas_cumprod.clamp(min=LEAST_SIGNAL).log()
    return torch.from_numpy(np.interp(timesteps.double(), np.arange(len(known)), known)).exp()


class GaussianNetwork(torch.nn.Module):
    """The best network for data N(μ, Σ): E[a x + b ε | x_t], linear in x_t."""

    def __init__(self, process, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = 0.4 * torch.randn(D, D, generator=generator, dtype=torch.float64)
        self.covariance = root @ root.T + 0.02 * torch.eye(D, dtype=torch.float64)
        self.mean = torch.nn.Parameter(0.3 * torch.randn(D, generator=generator, dtype=torch.float64))
        self.process = process

    def coefficients(self, times):
        """s, n, a, b at any time between timesteps as well, `[B, 1]`."""
        if self.process.is_flow:
            noise = times.double().view(-1, 1) / self.process.num_train_timesteps
            return 1 - noise, noise, -torch.ones_like(noise), torch.ones_like(noise)
        kept = alphas_cumprod_at(times, self.process).view(-1, 1)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()
        one, nothing = torch.ones_like(kept), torch.zeros_like(kept)
        return (
            signal,
            noise,
            *{"noise": (nothing, one), "image": (one, nothing), "v": (-noise, signal)}[self.process.target],
        )

    def at(self, signal, noise):
        """Covariance of s x + n ε, `[..., D, D]`."""
        identity = torch.eye(D, dtype=torch.float64)
        return signal.view(-1, 1, 1) ** 2 * self.covariance + noise.view(-1, 1, 1) ** 2 * identity

    def forward(self, noisy, times):
        signal, noise, of_image, of_noise = self.coefficients(times)
        centred = noisy.flatten(1) - signal * self.mean
        solved = torch.linalg.solve(self.at(signal, noise), centred.unsqueeze(-1)).squeeze(-1)
        image = self.mean + signal * solved @ self.covariance
        return (of_image * image + of_noise * noise * solved).view_as(noisy)


class GaussianDenoiser(Denoiser):
    """The best denoiser of Gaussian data, whose loss, ELBO and likelihood are known."""

    def __init__(self, process=Process(), seed=0):
        super().__init__(GaussianNetwork(process, seed), process)
        self.covariance, self.mean, self.at = self.network.covariance, self.network.mean, self.network.at

    def data(self, count, seed=1):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(count, D, generator=generator, dtype=torch.float64)
        vectors = self.mean.detach() + noise @ torch.linalg.cholesky(self.covariance).T
        return ImageSet(vectors.view(-1, 1, 2, 2), torch.zeros(count, dtype=torch.int64), torch.arange(count))


def expected_square_error(model, images):
    """E_ε ‖y − y_θ‖² at every timestep, `[N, T]`.

    With centred state z = s (x − μ) + n ε the error of the guessed image is x − μ − s Σ C⁻¹ z, that of the noise ε − n C⁻¹ z,
    and the target's a times the one plus b times the other.
    """
    signal, noise, of_image, of_noise = (value.view(-1, 1, 1) for value in model.process.coefficients)
    inverse, identity = torch.linalg.inv(model.at(signal, noise)), torch.eye(D, dtype=torch.float64)
    gain = of_image * signal * model.covariance @ inverse + of_noise * noise * inverse
    spread, pull = of_noise * identity - noise * gain, of_image * identity - signal * gain
    offsets = torch.einsum("tij,nj->nti", pull, images.flatten(1) - model.mean.detach())
    return spread.square().sum((1, 2)) + offsets.square().sum(2)


def closed_form_elbo(model, images):
    """The ELBO with a last step that counts by its density, in nats; `[N]`.

    The guessed image misses by n/D times the target's error, and a KL is half the lost signal-to-noise ratio times its square.
    """
    process, variance = model.process, posterior_variance(model.process)
    signal, noise, of_image, of_noise = process.coefficients
    errors = expected_square_error(model, images) * (noise / (signal * of_noise - noise * of_image)).square()
    ratio = (signal / noise).square()
    last = -0.5 * errors[:, 0] / variance[0] - 0.5 * D * torch.log(2 * math.pi * variance[0])
    prior = 0.5 * ((signal[-1] * images.flatten(1)).square() + noise[-1] ** 2 - 1 - 2 * noise[-1].log()).sum(1)
    return last - errors[:, 1:] @ (ratio[:-1] - ratio[1:]) / 2 - prior


def sigma_points():
    """±√D e_i: the mean of any quadratic function over these is its mean under N(0, I)."""
    return D**0.5 * torch.cat([torch.eye(D), -torch.eye(D)]).double().view(-1, 1, 2, 2)


@torch.no_grad()
def elbo_of_all_draws(model, images):
    """`elbo_terms` of every timestep and sigma point less the prior's term, in nats; `[N]`."""
    process = model.process
    timesteps = torch.arange(process.num_train_timesteps).repeat_interleave(2 * D)
    noise = sigma_points().repeat(process.num_train_timesteps, 1, 1, 1)
    values = []
    for image in images:
        repeated = image.expand(len(timesteps), -1, -1, -1)
        prediction = model(process.noisy(repeated, timesteps, noise), timesteps)
        target = process.target_of(repeated, timesteps, noise)
        values.append(elbo_terms(prediction, repeated, timesteps, target, process, levels=None).mean())
    return torch.stack(values) - prior_kl(images, process)


@torch.no_grad()
def chain_distribution(model):
    """The Gaussian that the model's reverse chain samples from, by following its mean and covariance."""
    process = model.process
    mean, covariance = torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    points = torch.cat([torch.zeros(1, D), torch.eye(D)]).double().view(-1, 1, 2, 2)
    for t in range(process.num_train_timesteps - 1, -1, -1):
        timesteps = torch.full((D + 1,), t)
        moved = reverse_mean(points, model(points, timesteps), timesteps, process).flatten(1)
        linear = (moved[1:] - moved[0]).T
        noise = posterior_variance(process)[t] * torch.eye(D, dtype=torch.float64)
        mean, covariance = linear @ mean + moved[0], linear @ covariance @ linear.T + noise
    return MultivariateNormal(mean, covariance)


def flow_log_density(model, images):
    """log p(x) under the ODE of the denoiser, whose flow is linear: x_T = m_T + C_T^½ C_0^−½ (x − m_0); nats, `[N]`.

    States are those of length one, √ᾱ x + √(1−ᾱ) ε.
    """
    kept = model.process.alphas_cumprod.clamp(min=LEAST_SIGNAL)[[0, -1]]
    values, vectors = torch.linalg.eigh(model.covariance)
    first, last = (share * values + 1 - share for share in kept)
    means = kept.sqrt().view(-1, 1) * model.mean.detach()
    final = means[1] + ((images.flatten(1) - means[0]) @ vectors) * (last / first).sqrt() @ vectors.T
    return (
        MultivariateNormal(torch.zeros(D).double(), torch.eye(D).double()).log_prob(final)
        + 0.5 * (last / first).log().sum()
    )


# The linear denoiser


@pytest.mark.parametrize("process", PROCESSES)
def test_the_loss_is_known_in_closed_form(process):
    model = GaussianDenoiser(process)
    data = model.data(6)
    expected = expected_square_error(model, data.images).mean(1) / D
    draws = DrawConfig(4000)
    actual = measure(model, data, MeasurementConfig(draws=draws))
    torch.testing.assert_close(actual, expected, rtol=0.06, atol=0)
    # Over the data it is the trace of what x_t leaves open of the target, at every timestep: D² tr(Σ C⁻¹)
    signal, noise, of_image, of_noise = process.coefficients
    left = (model.covariance @ torch.linalg.inv(model.at(signal, noise))).diagonal(0, 1, 2).sum(1)
    mean = expected_square_error(model, points_of_the_data(model)).mean(0)
    torch.testing.assert_close(mean, (signal * of_noise - noise * of_image) ** 2 * left, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_elbo_is_known_in_closed_form(process):
    model = GaussianDenoiser(process)
    images = model.data(5).images
    torch.testing.assert_close(elbo_of_all_draws(model, images), closed_form_elbo(model, images), rtol=1e-8, atol=1e-6)


def test_the_elbo_is_below_the_log_probability_of_the_chain():
    model = GaussianDenoiser()
    images = torch.cat([model.data(20).images, 3 * model.data(20, seed=2).images])
    exact = chain_distribution(model).log_prob(images.flatten(1))
    gap = exact - closed_form_elbo(model, images)
    assert gap.min() > 0


def lost_by_the_elbo(model):
    """Mean over the data of log q(x) − ELBO(x): the KLs of the true reverse steps to the model's, which share their mean."""
    signal, noise = model.process.coefficients[:2]
    signal, noise = torch.cat([torch.ones(1).double(), signal]), torch.cat([torch.zeros(1).double(), noise])
    covariances = model.at(signal, noise)
    ratio = (signal[1:] / signal[:-1]).square().view(-1, 1, 1)
    gain = torch.linalg.solve(covariances[1:], covariances[:-1])
    true = covariances[:-1] - ratio * covariances[:-1] @ gain
    variance = posterior_variance(model.process).view(-1, 1, 1)
    steps = true / variance
    kls = 0.5 * (steps.diagonal(0, 1, 2).sum(1) - D - torch.logdet(steps))
    end = MultivariateNormal(signal[-1] * model.mean.detach(), covariances[-1])
    start = MultivariateNormal(torch.zeros(D).double(), torch.eye(D).double())
    return kls.sum() + torch.distributions.kl_divergence(end, start)


def points_of_the_data(model):
    """Points over which the mean of a quadratic function is its mean over the data."""
    root = torch.linalg.cholesky(model.covariance)
    return model.mean.detach().view(1, 1, 2, 2) + (sigma_points().flatten(1) @ root.T).view(-1, 1, 2, 2)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_elbo_loses_what_its_steps_lose(process):
    model = GaussianDenoiser(process)
    points = points_of_the_data(model)
    density = MultivariateNormal(model.mean.detach(), model.covariance)
    lost = (density.log_prob(points.flatten(1)) - closed_form_elbo(model, points)).mean()
    torch.testing.assert_close(lost, lost_by_the_elbo(model), rtol=1e-5, atol=0)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_ode_gives_the_density_of_gaussian_data(process):
    model = GaussianDenoiser(process)
    data = model.data(12)
    config = LikelihoodConfig("rk4", steps=60, divergence="exact")
    bits = log_likelihood(model, data, config, levels=None)
    nats = bits * D * math.log(2)
    torch.testing.assert_close(nats, flow_log_density(model, data.images), rtol=0, atol=1e-4)
    kept = process.alphas_cumprod[0]
    density = MultivariateNormal(kept.sqrt() * model.mean.detach(), model.at(kept.sqrt(), (1 - kept).sqrt())[0])
    # What noising leaves of the data after the last timestep, where the flow's end is taken for N(0, I)
    left = max(float(process.alphas_cumprod[-1]), LEAST_SIGNAL) ** 0.5
    torch.testing.assert_close(nats, density.log_prob(data.images.flatten(1)), rtol=0, atol=5 * left + 1e-4)


def test_the_elbo_is_below_the_log_likelihood_on_average():
    model = GaussianDenoiser()
    points = points_of_the_data(model)
    data = ImageSet(points, torch.zeros(2 * D, dtype=torch.int64), torch.arange(2 * D))
    bits = log_likelihood(model, data, LikelihoodConfig("rk4", steps=40, divergence="exact"), levels=None)
    elbo = nats_to_bits_per_dimension(closed_form_elbo(model, points), D)
    assert (elbo < bits).all()
    lost = nats_to_bits_per_dimension(lost_by_the_elbo(model), D)
    # Up to the trace of noise that the flow's density is of, and what noising leaves of the data
    assert (bits - elbo).mean() == pytest.approx(float(lost), abs=0.01)


@pytest.mark.parametrize(("method", "steps", "tolerance"), [
    ("rk4", 20, 1e-3), ("heun3", 30, 1e-3), ("midpoint", 60, 2e-3), ("dopri5", 1, 1e-4),
])  # fmt: skip
def test_every_solver_finds_the_same(method, steps, tolerance):
    model = GaussianDenoiser()
    data = model.data(12)
    config = LikelihoodConfig(method, steps=steps, tolerance=1e-7, divergence="exact")
    nats = log_likelihood(model, data, config, levels=None) * D * math.log(2)
    torch.testing.assert_close(nats, flow_log_density(model, data.images), rtol=0, atol=tolerance * D)


def test_more_steps_are_closer():
    model = GaussianDenoiser()
    data = model.data(12)
    expected = flow_log_density(model, data.images)
    for method, order in (("midpoint", 2), ("heun3", 3), ("rk4", 4)):
        errors = []
        for steps in (16, 32):
            config = LikelihoodConfig(method, steps=steps, divergence="exact")
            found = log_likelihood(model, data, config, levels=None) * D * math.log(2)
            errors.append((found - expected).abs().mean())
        assert errors[1] < errors[0] / 2 ** (order - 1)


# Probes, bins, batches


def repeated(image, count):
    """One image under many ids: so many spreads and probes in one batch."""
    return ImageSet(image.expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.int64), torch.arange(count))


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_hutchinson_s_mean_is_the_exact_divergence(method):
    model = GaussianDenoiser()
    image, options = model.data(1).images, {"method": method, "tolerance": 1e-4}
    exact = log_likelihood(model, repeated(image, 1), LikelihoodConfig(**options, divergence="exact"), levels=None)
    one = log_likelihood(model, repeated(image, 400), LikelihoodConfig(**options), levels=None)
    assert one.std() > 1e-2
    assert (one.mean() - exact).abs() < 4 * one.std() / 20
    many = log_likelihood(model, repeated(image, 400), LikelihoodConfig(**options, probes=9), levels=None)
    # Nine probes: a third of the standard deviation, which 400 repetitions show to about 5%
    assert many.std() / one.std() == pytest.approx(1 / 3, rel=0.2)


def test_other_probes_at_every_step_are_worth_many():
    model = GaussianDenoiser()
    data = repeated(model.data(1).images, 200)
    kept = log_likelihood(model, data, LikelihoodConfig("dopri5", tolerance=1e-4), levels=None)
    assert log_likelihood(model, data, LikelihoodConfig("rk4"), levels=None).std() < 0.7 * kept.std()


def test_images_are_spread_over_their_bins_and_the_bins_counted():
    model = GaussianDenoiser()
    raw = model.data(3)
    data = ImageSet(nearest_levels(raw.images, 17), raw.labels, raw.ids)
    config = LikelihoodConfig("rk4", divergence="exact", draws=2)
    uniform = torch.stack([torch.rand(1, 2, 2, generator=keyed_generator("spread", 5, i, 0)) for i in range(3)])
    spread = ImageSet(data.images + (uniform - 0.5) / 8, data.labels, data.ids)
    opposite = ImageSet(data.images - (uniform - 0.5) / 8, data.labels, data.ids)
    density = (
        log_likelihood(model, spread, config, levels=None) + log_likelihood(model, opposite, config, levels=None)
    ) / 2
    torch.testing.assert_close(log_likelihood(model, data, config, levels=17, seed=5), density - 3)
    # Values between levels, as a model makes them, go to the nearest
    between = ImageSet(data.images + 0.02, data.labels, data.ids)
    torch.testing.assert_close(log_likelihood(model, between, config, levels=17, seed=5), density - 3)
    already = log_likelihood(model, spread, config, levels=256, dequantised=True)
    torch.testing.assert_close(already, log_likelihood(model, spread, config, levels=None) - 7)


def test_the_bound_is_below_the_log_probability_of_the_levels():
    model = GaussianDenoiser()
    kept = Process().alphas_cumprod[0]
    density = MultivariateNormal(kept.sqrt() * model.mean.detach(), model.at(kept.sqrt(), (1 - kept).sqrt())[0])
    data = ImageSet(nearest_levels(model.data(1).images, 5), torch.zeros(1, dtype=torch.int64), torch.zeros(1).long())
    offsets = torch.cartesian_prod(*[(torch.arange(16, dtype=torch.float64) + 0.5) / 32 - 0.25] * D)
    probability = density.log_prob(data.images.flatten(1) + offsets).exp().mean() * 0.5**D
    config = LikelihoodConfig(steps=12, divergence="exact", draws=1)
    bounds = log_likelihood(model, repeated(data.images, 200), config, levels=5)
    exact, error = nats_to_bits_per_dimension(probability.log(), D), bounds.std() / 200**0.5
    # The mean of the logarithm over a bin is below the logarithm of the mean
    assert 0.01 < exact - bounds.mean() - 3 * error < 0.3
    pairs = log_likelihood(model, repeated(data.images, 200), replace(config, draws=2), levels=5)
    assert pairs.mean() == pytest.approx(float(bounds.mean()), abs=4 * float(error))
    # Two spreads on opposite sides do better than two at random
    assert pairs.std() < 0.95 * bounds.std() / 2**0.5


SMOKE = get_preset("smoke")


@pytest.fixture(scope="module")
def trained():
    data = load_dataset(SMOKE.dataset)
    config = replace(SMOKE.training, steps=80, keep_ema_at=())
    return train(build_model(SMOKE.unet, seed=0), data.train, config, progress=False).model, data


def test_a_trained_unet_s_elbo_is_below_its_log_likelihood(trained):
    model, data = trained
    images = data.queries.images
    bits = log_likelihood(model, data.queries, LikelihoodConfig(draws=2), levels=17)
    timesteps, generator = torch.arange(1000), torch.Generator().manual_seed(0)
    elbos = []
    for image in images:
        copies = image.expand(1000, -1, -1, -1)
        noise = torch.randn(copies.shape, generator=generator)
        with torch.no_grad():
            prediction = model(Process().noisy(copies, timesteps, noise), timesteps)
        elbos.append(elbo_terms(prediction, copies, timesteps, noise, Process(), levels=17).double().mean())
    elbo = nats_to_bits_per_dimension(torch.stack(elbos) - prior_kl(images.double(), Process()), 64)
    assert (elbo < bits).all()


def test_a_value_depends_on_its_image_only(trained):
    model, data = trained
    config = LikelihoodConfig(steps=2, probes=2, draws=2)
    together = log_likelihood(model, data.queries, config, levels=17)
    for batch_size in (1, 4):
        apart = log_likelihood(model, data.queries, config, levels=17, batch_size=batch_size)
        torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    backwards = log_likelihood(model, data.queries.subset([3, 1]), config, levels=17)
    torch.testing.assert_close(together[[3, 1]], backwards, rtol=1e-5, atol=1e-5)
    assert together.dtype == torch.float64
    assert (log_likelihood(model, data.queries, config, levels=17, seed=1) - together).abs().min() > 1e-4


# Time


@pytest.mark.parametrize("process", PROCESSES)
def test_angles_and_timesteps_belong_together(process):
    found, expected = timesteps_at(angles(process), process), torch.arange(1000).double()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    kept = process.alphas_cumprod
    torch.testing.assert_close(
        alphas_cumprod_at(torch.arange(1000), process), kept.clamp(min=LEAST_SIGNAL), rtol=1e-12, atol=0
    )
    middle = alphas_cumprod_at(torch.tensor([10.5]), process)
    assert float(middle) == pytest.approx(float((kept[10] * kept[11]).sqrt()), rel=1e-12)
    torch.testing.assert_close(
        timesteps_at(middle.sqrt().acos(), process), torch.tensor([10.5]).double(), atol=1e-6, rtol=0
    )
    grid = angle_grid(7, process)
    assert len(grid) == 8 and (grid.diff() > 0).all()
    assert grid[0] == angles(process)[0] and grid[-1] == angles(process)[-1]


def test_bad_requests_are_refused(monkeypatch):
    model = GaussianDenoiser()
    for options in ({"method": "euler"}, {"steps": 0}, {"probes": 0}, {"divergence": "trace"}, {"tolerance": math.nan}):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            LikelihoodConfig(**options)
    with pytest.raises(ConfigurationError, match="dequantised"):
        log_likelihood(model, model.data(1), levels=None, dequantised=True)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        log_likelihood(model, model.data(1), batch_size=0)
    with pytest.raises(ConfigurationError, match="levels=1"):
        log_likelihood(model, model.data(1), levels=1)
    present = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "torchdiffeq":
            raise ImportError(name)
        return present(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigurationError, match=r"install diffinf\[likelihood\]"):
        log_likelihood(model, model.data(1))
