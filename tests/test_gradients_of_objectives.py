"""Gradients of every objective: those of plain autograd over the same draws, for many draws and for few."""

import pytest
import torch
from cases import conv_denoiser, images

from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation, Objective, Process
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.data import Trajectories
from diffinf_lib.diffusion import Denoiser, objective_of_prediction
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import gradients_of
from diffinf_lib.sampling import sample_trajectories

PROCESSES = [Process(num_train_timesteps=16, beta_end=0.3, target=target) for target in ("noise", "image", "v")]
PROCESSES += [Process(num_train_timesteps=16, target="velocity", clip_sample=None)]
OBJECTIVES = [
    Objective("loss"), Objective("weighted_loss", loss_weights=(2.0, 0.5, 1.0)), Objective("simplified_elbo"),
    Objective("elbo", levels=17), Objective("elbo"), Objective("square_norm"), Objective("mean_output"), Objective("l1_norm"),
    Objective("l2_norm"), Objective("max_norm"), Objective("trajectory_log_prob"), Objective("journey_loss"),
    Objective("output_probe"),
]  # fmt: skip


@pytest.fixture(scope="module", params=PROCESSES, ids=lambda process: process.target)
def model(request):
    return Denoiser(conv_denoiser().network, request.param)


@pytest.fixture(scope="module")
def curvature(model):
    return fit_curvature(model, images(4, 4), CurvatureConfig(draws=DrawConfig(4)))


@pytest.fixture(scope="module")
def samples(model):
    """Samples with their states; a flow is sampled by no chain, so there the states are none of its sampler's."""
    of_noise = Denoiser(conv_denoiser().network.float(), PROCESSES[0]) if model.process.is_flow else model.float()
    found = sample_trajectories(of_noise, 3, (1, 4, 4))
    model.double()
    return found


def by_autograd(model, samples, config):
    """∇ of each example's weighted mean by plain autograd on the whole module."""
    rows = []
    for place in range(len(samples)):
        one = samples.subset(slice(place, place + 1))
        total = torch.zeros((), dtype=torch.float64)
        for batch in config.batches(model, one):
            output = model(batch.state, batch.timesteps)
            total = (
                total
                + (batch.draw_weights * objective_of_prediction(output, batch, config.objective, model.process)).sum()
            )
        parameters = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(total / config.draws.count, list(parameters.values()))
        rows.append(dict(zip(parameters, found, strict=True)))
    down = torch.stack([torch.cat([r["down.weight"].flatten(1), r["down.bias"].unsqueeze(1)], dim=1) for r in rows])
    return {"down": down, "middle": torch.stack([row["middle.weight"].flatten(1) for row in rows])}


@pytest.mark.parametrize("count", [4, 12])  # few draws share batches, many do not
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.name}-{o.levels}")
def test_gradients_are_those_of_autograd(model, curvature, samples, objective, count):
    draws = DrawConfig(count, timestep_rule="signal", noise_rule="independent")
    config = Expectation(draws, "x", seed=2, objective=objective)
    found = gradients_of(model, curvature, samples, config, shard_size=2, batch_size=5).whole()
    expected = by_autograd(model, samples, config)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        rotated = curvature.layers[name].to_eigenbasis(gradient)
        scale = float(rotated.abs().max())
        torch.testing.assert_close(found[name], rotated, rtol=1e-6, atol=1e-9 * scale)


def test_the_state_of_a_trajectory_is_what_the_network_sees(model, samples):
    objective = Objective("trajectory_log_prob")
    draws = DrawConfig(16, timestep_rule="grid", noise_rule="independent")
    (batch,) = Expectation(draws, "x", objective=objective).batches(model, samples.subset(slice(0, 1)))
    places = 15 - batch.timesteps
    torch.testing.assert_close(batch.state.float(), samples.states[0, places])
    torch.testing.assert_close(batch.held_against.float(), samples.states[0, places + 1])
    again = model.process.noisy(batch.images, batch.timesteps, batch.noise)
    torch.testing.assert_close(again, batch.state, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.process.target_of(batch.images, batch.timesteps, batch.noise), batch.target)


def test_probes_are_signs_that_depend_on_the_draw_only(model, samples):
    probes = Expectation(DrawConfig(6), "x", objective=Objective("output_probe"))
    whole, parts = (list(probes.batches(model, samples, batch_size)) for batch_size in (100, 4))
    signs = torch.cat([batch.held_against for batch in parts])
    assert torch.equal(signs, whole[0].held_against) and set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.flatten(1).unique(dim=0).shape[0] == 18


def test_states_are_asked_for_before_any_work(model, curvature, samples):
    plain = samples.__class__.__mro__[1](samples.images, samples.labels, samples.ids)
    config = Expectation(DrawConfig(4), objective=Objective("journey_loss"))
    with pytest.raises(ConfigurationError, match="objective='journey_loss': it needs the states"):
        gradients_of(model, curvature, plain, config)
    short = Trajectories(samples.images, samples.labels, samples.ids, samples.states[:, :9], samples.guesses[:, :8])
    with pytest.raises(ConfigurationError, match="trajectories of 8 steps: the process has 16"):
        gradients_of(model, curvature, short, config)
