"""The dense GGN against two other ways to compute it: torch.func's Jacobian, and curvlinops."""

import curvlinops
import pytest
import torch
from cases import conv_denoiser, deep_linear_denoiser, draw_batch, images, linear_denoiser
from torch.func import functional_call, jacrev

from diffinf_lib.curvature import ForwardPass
from diffinf_lib.curvature.exact import dense_blocks, dense_ggn
from diffinf_lib.curvature.kfac import input_factor_sum, output_gradient_factor_sum
from diffinf_lib.curvature.labels import exact_vectors
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import DrawConfig, noisy_images


class OneInput(torch.nn.Module):
    """A denoiser that ignores time as a network from x_t to a vector, as curvlinops wants it."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, noisy):
        return self.denoiser(noisy, None).flatten(1)


CASES = [(linear_denoiser, 2), (conv_denoiser, 4)]


@pytest.mark.parametrize(("make", "side"), CASES)
def test_the_scale_is_two_over_c_times_jacobian_squared(make, side):
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), stage="x")
    noisy = noisy_images(batch.images, batch.timesteps, batch.noise)
    layers = curvature_layers(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def network(parameters):
        return functional_call(model, parameters, (noisy, batch.timesteps)).flatten()

    jacobian = jacrev(network)({name: dict(model.named_parameters())[name] for name in names})
    rows = []
    for row in range(noisy.numel()):
        gradients = tuple(jacobian[name][row] for name in names)
        rows.append(torch.cat([matrix.flatten() for matrix in gradient_matrices(layers, gradients).values()]))
    stacked = torch.stack(rows)
    expected = stacked.T @ stacked * 2 / noisy[0].numel() / len(noisy)
    torch.testing.assert_close(dense_ggn(model, batch), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("make", "side"), CASES)
def test_curvlinops_gives_the_same_matrix(make, side):
    """curvlinops' GGN of MSELoss(mean) is the GGN of the mean over draws and dimensions: the same scale."""
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), stage="x")
    noisy = noisy_images(batch.images, batch.timesteps, batch.noise)

    layers = curvature_layers(model)
    operator = curvlinops.GGNLinearOperator(
        OneInput(model),
        torch.nn.MSELoss(reduction="mean"),
        layer_parameters(layers),
        [(noisy, batch.noise.flatten(1))],
        check_deterministic=False,
    )
    dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    # curvlinops puts all of a layer's biases after its weights; ours follow each output's weights
    places = torch.arange(len(dense)).split([parameter.numel() for parameter in layer_parameters(layers)])
    order = torch.cat([m.flatten() for m in gradient_matrices(layers, _shaped(places, layers)).values()])
    torch.testing.assert_close(dense[order][:, order], dense_ggn(model, batch), rtol=1e-9, atol=1e-13)


def _shaped(places, layers):
    return tuple(part.view_as(p) for part, p in zip(places, layer_parameters(layers), strict=True))


@pytest.mark.parametrize(("make", "side"), [*CASES, (deep_linear_denoiser, 2)])
def test_curvlinops_gives_the_same_kronecker_factored_blocks(make, side):
    """Its K-FAC ("expand", all output dimensions, joint bias) agrees as B ⊗ A; how it splits the scale is its own."""
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), stage="x")
    noisy = noisy_images(batch.images, batch.timesteps, batch.noise)
    layers = curvature_layers(model)
    operator = curvlinops.KFACLinearOperator(
        OneInput(model), torch.nn.MSELoss(reduction="mean"), layer_parameters(layers), [(noisy, batch.noise.flatten(1))],
        fisher_type="type-2", kfac_approx="expand", separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    places = torch.arange(len(dense)).split([parameter.numel() for parameter in layer_parameters(layers)])
    forward = ForwardPass(model, layers, noisy, batch.timesteps)
    vectors = exact_vectors(noisy)
    pulled = [forward.pull_back(vector, last=False) for vector in vectors]
    for name, order in gradient_matrices(layers, _shaped(places, layers)).items():
        input_factor = input_factor_sum(forward.inputs(name)) / len(noisy)
        output_factor = sum(output_gradient_factor_sum(gradients[name]) for gradients in pulled) / len(noisy)
        block = dense[order.flatten()][:, order.flatten()]
        torch.testing.assert_close(torch.kron(output_factor, input_factor), block, rtol=1e-9, atol=1e-13, msg=name)


def test_blocks_lie_on_the_diagonal():
    model, batch = conv_denoiser(), draw_batch(images(1, 4), DrawConfig(2), stage="x")
    dense, blocks = dense_ggn(model, batch), dense_blocks(model, batch)
    assert list(blocks) == ["down", "middle"]
    assert torch.equal(blocks["middle"], dense[30:, 30:]) and blocks["down"].shape == (30, 30)
