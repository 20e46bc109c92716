"""Trainings on a fixed sum: against torch's Adam, finite differences, and models for which all rungs agree."""

import pytest
import torch
from cases import LinearDenoiser, draw_batch, images, linear_denoiser
from torch import nn

from diffinf_lib.configuration import DrawConfig, Process
from diffinf_lib.curvature import example_gradients, flatten_layers
from diffinf_lib.curvature.exact import dense_ggn, dense_hessian
from diffinf_lib.diffusion import Denoiser, objective_values
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.studies.decomposition import Perceptron
from diffinf_lib.studies.fixed_sum import (
    FixedSum,
    FullBatchAdam,
    minima_nearby,
    train_side_by_side,
    unrolled_derivatives,
)

COUNT, DRAWS = 5, 12
CONFIG = FullBatchAdam(steps=25, learning_rate=3e-2)


def perceptron():
    torch.manual_seed(0)
    return Denoiser(Perceptron(4, 3, 1000), Process()).double()


def fixed_sum(model):
    return FixedSum(model, draw_batch(images(COUNT, 2), DrawConfig(DRAWS), purpose="x"))


def all_and_without():
    everyone = torch.ones(1, COUNT).double()
    return torch.cat([everyone, everyone - torch.eye(COUNT)]) / COUNT


@pytest.fixture(scope="module")
def total():
    return fixed_sum(perceptron())


def test_the_sum_is_the_model_s_loss_and_its_derivatives_are_the_library_s(total):
    theta, model = total.weights, total.model
    each = objective_values(model, total.batch).detach().view(COUNT, -1).mean(1)
    torch.testing.assert_close(total.losses(theta), each)
    gradients = flatten_layers(example_gradients(model, total.batch)).T
    torch.testing.assert_close(total.gradients(theta), gradients)
    torch.testing.assert_close(total.ggn(theta), dense_ggn(model, total.batch))
    torch.testing.assert_close(total.hessian(theta), dense_hessian(model, total.batch))


def test_side_by_side_is_torch_s_adam_on_each_set_of_shares():
    shares = all_and_without()[[0, 3]]
    found = train_side_by_side(fixed_sum(perceptron()), fixed_sum(perceptron()).weights, shares, CONFIG)
    for row, theta in zip(shares, found, strict=True):
        total = fixed_sum(perceptron())
        adam = torch.optim.Adam(total.model.parameters(), lr=CONFIG.learning_rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, CONFIG.steps)
        for _ in range(CONFIG.steps):
            adam.zero_grad()
            (row @ objective_values(total.model, total.batch).view(COUNT, -1).mean(1)).backward()
            adam.step()
            falling.step()
        torch.testing.assert_close(theta, fixed_sum(total.model).weights)


def test_the_unrolled_derivative_is_that_of_finite_differences(total):
    everyone = all_and_without()[0]
    directions = torch.cat([torch.eye(COUNT).double(), torch.ones(1, COUNT).double()])
    theta, tangents = unrolled_derivatives(total, total.weights, everyone, directions, CONFIG)
    small = 1e-5
    shares = torch.cat([everyone.unsqueeze(0), everyone + small * directions, everyone - small * directions])
    trained = train_side_by_side(total, total.weights, shares, CONFIG)
    up, down = trained[1:].chunk(2)
    torch.testing.assert_close(theta, trained[0])
    torch.testing.assert_close(tangents, (up - down) / (2 * small), rtol=1e-4, atol=1e-4 * float(tangents.abs().max()))


def test_a_factor_before_all_shares_changes_nothing_that_adam_notices(total):
    everyone = all_and_without()[0]
    _, tangents = unrolled_derivatives(total, total.weights, everyone, everyone.unsqueeze(0), CONFIG)
    _, of_one = unrolled_derivatives(total, total.weights, everyone, torch.eye(COUNT)[:1].double() / COUNT, CONFIG)
    assert tangents.norm() < 1e-4 * of_one.norm()


@pytest.mark.parametrize("damping", [1e-2, 1.0])
def test_the_nearest_minimum_of_a_quadratic_is_damped_influence(damping):
    """Kept answers of a linear network, for an image whose loss is only tilted: its gradient, without its curvature."""
    total = fixed_sum(linear_denoiser())
    theta, gradients = total.weights, total.gradients(total.weights)
    before, matrix = total.outputs(theta), total.ggn(theta) + damping * torch.eye(len(theta)).double()

    def objective(weights, without):
        distance = (total.outputs(weights) - before).square().mean()
        return distance - without @ gradients @ (weights - theta) + damping / 2 * (weights - theta).square().sum()

    rough = torch.linalg.inv(
        1.5 * matrix + torch.diag(matrix.diagonal()) / 5
    )  # not its inverse: one step is not enough
    found = minima_nearby(objective, theta, torch.eye(COUNT).double() / COUNT, rough, tolerance=1e-7)
    torch.testing.assert_close(found - theta, gradients @ torch.linalg.inv(matrix) / COUNT, rtol=1e-4, atol=1e-7)


def test_of_a_linear_network_the_hessian_is_the_ggn_and_all_answers_agree():
    """Trained to its minimum, it answers alike by retraining, unrolled, from a warm start and by one Newton step."""
    total = fixed_sum(linear_denoiser())
    shares, config = all_and_without(), FullBatchAdam(steps=400, learning_rate=0.1)
    hessian = total.hessian(total.weights)
    torch.testing.assert_close(hessian, total.ggn(total.weights))
    trained = train_side_by_side(total, total.weights, shares, config)
    theta = trained[0]
    gradients = total.gradients(theta)
    assert gradients.mean(0).norm() < 1e-8
    # without image n the Hessian lacks that image's part, and one step with what is left is exact
    parts = torch.func.jacfwd(total.gradients)(theta)
    exact = [torch.linalg.solve(hessian - part / COUNT, g) / COUNT for part, g in zip(parts, gradients, strict=True)]
    moved = trained[1:] - theta
    assert moved.abs().max() > 1e-2
    torch.testing.assert_close(moved, torch.stack(exact), rtol=1e-5, atol=1e-7)
    warm = train_side_by_side(total, theta, shares, config)
    torch.testing.assert_close(warm[1:] - warm[0], moved, rtol=1e-5, atol=1e-7)
    near = minima_nearby(total.total, theta, shares[1:], torch.linalg.inv(hessian), tolerance=1e-7)
    torch.testing.assert_close(near - theta, moved, rtol=1e-4, atol=1e-6)
    _, unrolled = unrolled_derivatives(total, total.weights, shares[0], -torch.eye(COUNT).double() / COUNT, config)
    influence = gradients @ torch.linalg.inv(hessian) / COUNT
    torch.testing.assert_close(unrolled, influence, rtol=1e-5, atol=1e-7)


def test_some_draws_of_each_image_are_those(total):
    chosen = torch.tensor([[0, 1], [4, 5], [10, 11], [2, 3], [6, 7]])
    part = total.of_draws(chosen)
    each = objective_values(total.model, total.batch).detach().view(COUNT, -1)
    torch.testing.assert_close(part.losses(total.weights), each.gather(1, chosen).mean(1))


def test_what_is_no_fixed_sum_of_a_covered_network_is_refused():
    batch = draw_batch(images(COUNT, 2), DrawConfig(DRAWS), purpose="x")
    with pytest.raises(ConfigurationError, match="as many of each"):
        FixedSum(linear_denoiser(), batch.rows(slice(3, None)))
    weighted = draw_batch(images(COUNT, 2), DrawConfig(DRAWS, timestep_rule="signal"), purpose="x")
    with pytest.raises(ConfigurationError, match="draws are weighted"):
        FixedSum(linear_denoiser(), weighted)
    network = LinearDenoiser()
    network.norm = nn.LayerNorm(4)
    with pytest.raises(ConfigurationError, match="8 parameters outside"):
        FixedSum(Denoiser(network, Process()).double(), batch)


def test_a_minimum_that_is_not_reached_is_said(total):
    with pytest.raises(ConfigurationError, match="iterations=1: the next step is still"):
        minima_nearby(
            total.total, total.weights, all_and_without(), torch.eye(len(total.weights)).double(), iterations=1
        )
