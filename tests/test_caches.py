"""What is kept between calls was made with the library's own settings, whoever asked first."""

import functools
import importlib
import pkgutil

import pytest
import torch
from cases import conv_denoiser, images
from test_settings import SETTINGS

import diffinf_lib as di
from diffinf_lib import likelihood
from diffinf_lib.configuration import process
from diffinf_lib.diffusion import draws, elbo, reverse
from diffinf_lib.sampling import sample_trajectories

SCHEDULE = di.Process(num_train_timesteps=16, beta_end=0.3, target="v")
SIGNAL = di.DrawConfig(4, timestep_rule="signal")
IMPORTANCE = di.DrawConfig(4, timestep_rule="importance", proposal=(1.0, 3.0))
TENSORS = {
    process._coefficients: [(SCHEDULE,), (di.Process(num_train_timesteps=16, target="velocity"),)],
    reverse.added_variances: [(SCHEDULE,)],
    reverse.posterior_variance: [(SCHEDULE,)],
    elbo.kl_weights: [(SCHEDULE,)],
    draws.timestep_probabilities: [(SIGNAL, SCHEDULE), (IMPORTANCE, SCHEDULE), (di.DrawConfig(4), SCHEDULE)],
    likelihood._known: [(SCHEDULE,)],
    likelihood.angles: [(SCHEDULE,)],
}
OTHERS = (
    "git_commit",
    "_version",
    "_annotations",
    "_settings_as_built",
    "network_count",
    "_stored_bytes",
    "load_autoencoder",
)
"""Texts, types and counts, in which no setting of torch has a part; and a network, which `test_latents` looks at."""


def caches():
    """Every function of the library that keeps what it gave."""
    names = [module.name for module in pkgutil.walk_packages(di.__path__, "diffinf_lib.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    kept = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, functools._lru_cache_wrapper)
    }
    return {name_of(value) for value in kept}


def name_of(cached):
    inside = cached.__wrapped__
    return inside.func.__name__ if isinstance(inside, functools.partial) else inside.__name__


def test_every_cache_is_looked_at():
    assert caches() == {*OTHERS, *map(name_of, TENSORS)}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("cached", TENSORS, ids=name_of)
def test_a_cache_filled_under_other_settings_serves_everyone(cached, setting):
    for arguments in TENSORS[cached]:
        cached.cache_clear()
        expected = cached(*arguments)
        for every in TENSORS:  # one may be made of another
            every.cache_clear()
        with SETTINGS[setting]():
            cached(*arguments)
        found = cached(*arguments)
        for value, wanted in zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]:
            assert value.device.type == "cpu" and value.dtype == torch.float64 and not value.is_inference()
            assert torch.equal(value, wanted)


@pytest.fixture(scope="module")
def task():
    """A tiny model with checkpoints, an ensemble and trajectories: what methods ask for."""
    model = di.Denoiser(conv_denoiser().network.float(), SCHEDULE)
    train, samples = images(5, 4), sample_trajectories(model, 2, (1, 4, 4))
    curvature = di.fit_curvature(model, train, di.CurvatureConfig(draws=di.DrawConfig(2)))
    early, final = (di.attribution.Checkpoint(name, model, curvature) for name in ("early", "final"))
    measurement = di.MeasurementConfig(draws=di.DrawConfig(2))
    return di.attribution.AttributionTask(
        final, train, samples, measurement, di.DrawConfig(2), along=lambda parts: [early, final][-parts:],
        ensemble=lambda: [final, early],
    )  # fmt: skip


def scored(task):
    return {method.name: method(task) for method in di.METHODS if method.requires != "clip"}


@pytest.fixture(scope="module")
def expected(task):
    return scored(task)


@pytest.mark.parametrize("setting", SETTINGS)
def test_methods_give_the_same_under_a_callers_settings(task, expected, setting):
    with SETTINGS[setting]():
        found = scored(task)
    for name, scores in found.items():
        assert scores.dtype == expected[name].dtype and scores.device.type == "cpu", name
        torch.testing.assert_close(scores, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max()))
