"""The pilot's proposal against the spread of gradients written out by hand, and against what it is for."""

from dataclasses import replace

import pytest
import torch
from cases import LinearDenoiser, images, linear_denoiser, tiny_unet

from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Process
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, iterate_draws
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.importance import PILOT_PURPOSE, timestep_proposal

DRAWS = DrawConfig(512)
DAMPING = 1e-3


def unit_gradients(model, data, draws, *, purpose, curvature=None, seed=0):
    """Weighted gradients −2/C (ε − W x − b) [x, 1]ᵀ of ε_θ = W x + b for every draw or pair: `[n, units, P]`."""
    (layer,) = model.network.layers
    size = len(data) * draws.count
    batch = next(
        iterate_draws(
            data.images.double(), data.ids, draws, seed=seed, purpose=purpose, process=model.process, batch_size=size
        )
    )
    noisy = batch.state.flatten(1)
    residual = (batch.noise.flatten(1) - layer(noisy)).detach() * batch.draw_weights[:, None]
    inputs = torch.cat([noisy, torch.ones(size, 1)], dim=1)
    matrices = -2 / noisy.shape[1] * residual[:, :, None] * inputs[:, None, :]
    if curvature is not None:
        (basis,) = curvature.layers.values()
        matrices = basis.to_eigenbasis(matrices) / (basis.corrected_eigenvalues + DAMPING).sqrt()
    pairs = 2 if draws.noise_rule == "antithetic" else 1
    return matrices.flatten(1).view(len(data), -1, pairs, matrices[0].numel()).mean(2)


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize(
    "draws",
    [DRAWS, replace(DRAWS, shared=True), replace(DRAWS, noise_rule="independent")],
    ids=["own", "shared", "unpaired"],
)
def test_proposal_is_the_spread_over_images(draws, whitened):
    """Same draws on both sides; only the random signs are left, and 64 units or more a slice average them out."""
    model, data = linear_denoiser(), images(40, 2)
    curvature = fit_curvature(model, data, CurvatureConfig(draws=DrawConfig(4))) if whitened else None
    found = timestep_proposal(model, data, curvature=curvature, draws=draws, slices=4, damping=DAMPING)
    units = unit_gradients(model, data, draws, purpose=PILOT_PURPOSE, curvature=curvature)
    spread = (units - units.mean(0)).square().sum(2).mean(0).view(4, -1).mean(1).sqrt()
    expected = spread / spread.mean()
    assert expected.max() / expected.min() > 1.4
    torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=0.15, atol=0)


def test_draws_from_the_proposal_err_less_than_stratified_ones():
    """Differences between two images' whitened gradients over the same four pairs, for 2,000 sets of pairs."""
    model, pilot = linear_denoiser(), images(40, 2)
    curvature = fit_curvature(model, pilot, CurvatureConfig(draws=DrawConfig(4)))
    shared = replace(DRAWS, shared=True)
    proposal = timestep_proposal(model, pilot, curvature=curvature, draws=shared, slices=8, damping=DAMPING)

    def differences(config):
        first, second = (
            ImageSet(image.expand(2000, 1, 2, 2), torch.zeros(2000, dtype=torch.int64), torch.arange(2000))
            for image in pilot.images[:2]
        )
        means = [unit_gradients(model, s, config, purpose="a", curvature=curvature).mean(1) for s in (first, second)]
        return means[0] - means[1]

    plain = differences(DrawConfig(8))
    weighted = differences(DrawConfig(8, timestep_rule="importance", proposal=proposal))
    variance, error = weighted.var(0).sum(), (weighted.mean(0) - plain.mean(0)).square().sum()
    assert error < 3 * (variance + plain.var(0).sum()) / 2000
    assert variance < 0.6 * plain.var(0).sum()


def test_batch_size_changes_rounding_only_and_the_seed_the_pilot():
    model, data = tiny_unet(), images(5, 4)
    draws = DrawConfig(8, shared=True)
    reference = torch.tensor(timestep_proposal(model, data, draws=draws, slices=2))
    for size in (1, 3, 1000):
        again = torch.tensor(timestep_proposal(model, data, draws=draws, slices=2, batch_size=size))
        torch.testing.assert_close(again, reference, rtol=1e-10, atol=0)
    other = torch.tensor(timestep_proposal(model, data, draws=draws, slices=2, seed=1))
    assert (other - reference).abs().max() > 1e-3
    assert reference.mean().item() == pytest.approx(1)


def test_slices_without_spread_keep_a_floor():
    """A network whose output hears of its weights at the first timesteps only; weights of draws stay bounded."""

    class EarlyDenoiser(LinearDenoiser):
        def forward(self, noisy, timesteps):
            return super().forward(noisy, timesteps) * (timesteps < 100).view(-1, 1, 1, 1)

    torch.manual_seed(0)
    model = Denoiser(EarlyDenoiser(), Process()).double()
    found = timestep_proposal(model, images(4, 2), draws=DrawConfig(40), slices=10)
    assert found[0] == pytest.approx(10) and set(found[1:]) == {0.05}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"draws": DrawConfig(30)}, "slices=16"),
        ({"draws": DrawConfig(32, timestep_rule="uniform")}, "stratified"),
        ({"slices": 0}, "slices=0"),
        ({"damping": 0.0}, "damping=0.0"),
        ({"damping": float("nan")}, "damping=nan"),
        ({"images": images(1, 2)}, "1 images"),
    ],
)
def test_bad_input_is_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        timestep_proposal(linear_denoiser(), **{"images": images(3, 2)} | arguments)


def test_broken_weights_and_another_models_curvature_are_refused():
    model, data = linear_denoiser(), images(3, 2)
    curvature = fit_curvature(model, data, CurvatureConfig(draws=DrawConfig(4)))
    with pytest.raises(ConfigurationError, match="layer"):
        timestep_proposal(tiny_unet(), images(3, 4), curvature=curvature)
    with torch.no_grad():
        model.network.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(ConfigurationError, match="not finite"):
        timestep_proposal(model, data)
