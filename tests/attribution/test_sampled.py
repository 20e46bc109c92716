"""The sampled GGN against explicit matrices, dense solves and the exact GGN, in float64 on tiny models."""

import pytest
import torch
from cases import draw_batch, images, linear_denoiser

from diffinf_lib.attribution.sampled import SampledGGN, sampled_path
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation, MeasurementConfig, Objective
from diffinf_lib.curvature import dense_ggn, fit_curvature, flatten_layers, split_layers
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import gradients_of

ONE = DrawConfig(1, timestep_rule="uniform", noise_rule="independent")
MODEL, TRAIN, QUERIES = linear_denoiser(), images(8, 2), images(3, 2, seed=1)
CURVATURE = fit_curvature(MODEL, TRAIN, CurvatureConfig(draws=DrawConfig(8)))


def probes(count):
    """Gradients of sampled outputs, a set for each seed."""
    each = [Expectation(ONE, "sampled-ggn", seed, objective=Objective("output_probe")) for seed in range(count)]
    return [gradients_of(MODEL, CURVATURE, TRAIN, one).held() for one in each]


def rows(gradients):
    held = gradients.whole()
    return torch.cat([held[name].flatten(1) for name in CURVATURE.layers], dim=1)


def fitted(approximation="ekfac"):
    return torch.cat([layer.eigenvalues(approximation).flatten() for layer in CURVATURE.layers.values()])


def explicit(sets, weight, approximation="ekfac"):
    """The matrix by its definition."""
    sample = torch.cat([rows(one) for one in sets])
    return (1 - weight) * torch.diag(fitted(approximation)) + weight * 2 / 4 * sample.T @ sample / len(sample)


@pytest.mark.parametrize("approximation", ["ekfac", "kfac"])
def test_products_are_those_of_the_explicit_matrix(approximation):
    sets = probes(2)
    operator = SampledGGN(CURVATURE, sets, 4, weight=0.3, approximation=approximation)
    identity = torch.eye(operator.shape[1], dtype=torch.float64)
    torch.testing.assert_close(operator @ identity, explicit(sets, 0.3, approximation))


def test_a_sample_of_many_gradients_is_the_exact_ggn():
    operator = SampledGGN(CURVATURE, probes(600), 4, weight=1.0)
    draws = draw_batch(TRAIN, DrawConfig(512, timestep_rule="stratified"), purpose="ggn")
    size = operator.shape[1]
    plain = split_layers(MODEL, torch.eye(size, dtype=torch.float64), CURVATURE.covers)
    basis = {name: layer.to_eigenbasis(plain[name]) for name, layer in CURVATURE.layers.items()}
    rotation = flatten_layers(basis)
    exact = rotation @ dense_ggn(MODEL, draws) @ rotation.T
    found = operator @ torch.eye(size, dtype=torch.float64)
    assert float((found - exact).norm() / exact.norm()) < 0.1
    assert float(found.trace() / exact.trace()) == pytest.approx(1, abs=0.05)


def test_the_path_ends_at_the_dense_solution():
    sets = probes(2)
    queries = gradients_of(MODEL, CURVATURE, QUERIES, MeasurementConfig(draws=DrawConfig(6)).expectation())
    operator, damping = SampledGGN(CURVATURE, sets, 4), 1e-3
    *_, last = sampled_path(CURVATURE, operator, queries, damping=damping, iterations=60)
    expected = torch.linalg.solve(explicit(sets, 0.1) + damping * torch.eye(len(fitted())), rows(queries).T).T
    torch.testing.assert_close(rows(last), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))
    first = next(sampled_path(CURVATURE, operator, queries, damping=damping, iterations=1))
    start = rows(queries) / (fitted() + damping)
    cosine = torch.nn.functional.cosine_similarity(rows(first), start, dim=1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_what_is_no_sample_is_refused():
    with pytest.raises(ConfigurationError, match="weight=0"):
        SampledGGN(CURVATURE, probes(1), 4, weight=0.0)
    with pytest.raises(ConfigurationError, match="at least one"):
        SampledGGN(CURVATURE, [], 4)
