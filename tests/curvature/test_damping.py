"""The damped inverse: 1/(Λ + λ) where the curvature says something, nothing where it does not, in every place that divides."""

import pytest
import torch
from cases import by_definition, images, linear_denoiser

from diffinf_lib.attribution.trak import TrakKernel
from diffinf_lib.compression import Compression
from diffinf_lib.configuration import DrawConfig, StoreFormat
from diffinf_lib.curvature import curvature_preconditioner, fit_curvature, flatten_layers, split_layers
from diffinf_lib.curvature.damping import Inverses, damped_inverse, squared_rounding
from diffinf_lib.errors import ConfigurationError


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_it_is_one_over_the_sum_and_zero_where_only_rounding_is_left(kind):
    rounding = squared_rounding(kind)
    values = torch.tensor([4.0, 0.5, 8 * rounding, 2 * rounding, 0.0], dtype=kind)
    assert damped_inverse(values, 0.0).tolist()[:3] == (1 / values[:3]).tolist()
    assert damped_inverse(values, 0.0).tolist()[3:] == [0.0, 0.0]
    torch.testing.assert_close(damped_inverse(values, 0.5), 1 / (values + 0.5))
    assert damped_inverse(torch.zeros(3, dtype=kind), 0.0).tolist() == [0.0] * 3
    assert damped_inverse(values, 0.0, rounding=0.2).tolist() == [0.25, 0.0, 0.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def half_dead():
    """A model with a curvature that is zero in every other direction."""
    model = linear_denoiser()
    curvature = fit_curvature(model, images(4, 2), by_definition(DrawConfig(4)))
    for layer in curvature.layers.values():
        layer.corrected_eigenvalues[:, ::2] = 0
    return model, curvature


def test_every_inverse_has_the_same_idea_of_zero(half_dead):
    model, curvature = half_dead
    ((name, layer),) = curvature.layers.items()
    alive = layer.corrected_eigenvalues > 0
    expected = torch.where(alive, 1 / layer.corrected_eigenvalues, 0.0)
    assert torch.equal(next(Inverses([0.0]).factors(curvature, name)), expected)
    given = torch.randn(1, *layer.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = {name: layer.from_eigenbasis(given)}
    solved = split_layers(model, curvature_preconditioner(model, curvature, 0.0)(flatten_layers(plain)))
    torch.testing.assert_close(layer.to_eigenbasis(solved[name]), given * expected, rtol=1e-9, atol=1e-12)
    kernel = TrakKernel.of_gram(torch.diag(layer.corrected_eigenvalues.flatten()))
    square = torch.eye(alive.numel(), dtype=torch.float64)
    torch.testing.assert_close(kernel.scores(square, [0.0])[0].diagonal(), expected.flatten(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["int8", "int4", "svd", "svd_int8"])
def test_packing_leaves_dead_directions_finite(half_dead, kind):
    """λ₀ is nothing beside the largest eigenvalue here: what would be divided by rounding is left out."""
    _, curvature = half_dead
    ((name, layer),) = curvature.layers.items()
    layer.corrected_eigenvalues[0, 1] = 1e30
    gradients = {name: torch.ones(2, *layer.shape, dtype=torch.float64)}
    compression = Compression(curvature, StoreFormat(kind))
    back = compression.decode(compression.encode(gradients))[name]
    assert bool(back.isfinite().all())


def test_relative_dampings_and_bad_ones():
    with pytest.raises(ConfigurationError, match="damping=-1.0: give a number >= 0"):
        Inverses([1.0, -1.0])
    with pytest.raises(ConfigurationError, match="damping: give at least one number"):
        Inverses([])
