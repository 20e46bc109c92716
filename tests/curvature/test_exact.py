"""The dense matrices against other ways to compute them: torch.func, finite differences, and curvlinops."""

import curvlinops
import pytest
import torch
from annotations import unchecked
from cases import conv_denoiser, deep_linear_denoiser, dense_blocks, draw_batch, images, linear_denoiser, tiny_unet
from torch.func import functional_call, hessian, jacrev

from diffinf_lib.configuration import DrawConfig
from diffinf_lib.curvature import ForwardPass
from diffinf_lib.curvature.exact import dense_empirical_fisher, dense_ggn, dense_hessian
from diffinf_lib.curvature.kfac import input_factor_sum, output_gradient_factor_sum
from diffinf_lib.curvature.label_vectors import exact_vectors
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.diffusion import per_draw_loss
from diffinf_lib.errors import ConfigurationError


class OneInput(torch.nn.Module):
    """A denoiser that ignores time as a network from x_t to a vector, as curvlinops wants it."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, noisy):
        return self.denoiser(noisy, torch.zeros(len(noisy), dtype=torch.int64)).flatten(1)


CASES = [(linear_denoiser, 2), (conv_denoiser, 4)]


@pytest.mark.parametrize(("make", "side"), CASES)
def test_the_scale_is_two_over_c_times_jacobian_squared(make, side):
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), purpose="x")
    noisy = batch.state
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
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), purpose="x")
    noisy = batch.state

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
    model, batch = make(), draw_batch(images(2, side), DrawConfig(4), purpose="x")
    noisy = batch.state
    layers = curvature_layers(model)
    operator = curvlinops.KFACLinearOperator(
        OneInput(model), torch.nn.MSELoss(reduction="mean"), layer_parameters(layers), [(noisy, batch.noise.flatten(1))],
        fisher_type="type-2", kfac_approx="expand", separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    dense = operator @ torch.eye(operator.shape[1], dtype=torch.float64)
    places = torch.arange(len(dense)).split([parameter.numel() for parameter in layer_parameters(layers)])
    forward = ForwardPass(model, layers, batch)
    vectors = exact_vectors(noisy)
    pulled = [forward.pull_back(vector, last=False) for vector in vectors]
    for name, order in gradient_matrices(layers, _shaped(places, layers)).items():
        input_factor = input_factor_sum(forward.inputs(name)) / len(noisy)
        output_factor = sum(output_gradient_factor_sum(gradients[name]) for gradients in pulled) / len(noisy)
        block = dense[order.flatten()][:, order.flatten()]
        torch.testing.assert_close(torch.kron(output_factor, input_factor), block, rtol=1e-9, atol=1e-13, msg=name)


def test_blocks_lie_on_the_diagonal():
    model, batch = conv_denoiser(), draw_batch(images(1, 4), DrawConfig(2), purpose="x")
    dense, blocks = dense_ggn(model, batch), dense_blocks(model, batch)
    assert list(blocks) == ["down", "middle"]
    torch.testing.assert_close(blocks["middle"], dense[30:, 30:])
    assert blocks["down"].shape == (30, 30)


WEIGHTED = DrawConfig(4, "importance", proposal=(1.0, 3.0, 2.0))


def weighted_losses(model, batch):
    """The weighted losses of all draws as a function of the layers' parameters, flattened in the matrices' order."""
    layers = curvature_layers(model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    shapes = [parameter.shape for parameter in layer_parameters(layers)]
    numbers = torch.arange(sum(shape.numel() for shape in shapes)).split([shape.numel() for shape in shapes])
    numbered = tuple(number.view(shape) for number, shape in zip(numbers, shapes, strict=True))
    order = torch.cat([m.flatten() for m in gradient_matrices(layers, numbered).values()])
    noisy = batch.state

    def losses(flat):
        plain = torch.zeros_like(flat).index_copy(0, order, flat).split([shape.numel() for shape in shapes])
        parameters = {name: part.view(shape) for name, part, shape in zip(names, plain, shapes, strict=True)}
        predicted = functional_call(model, parameters, (noisy, batch.timesteps))
        return batch.draw_weights * (batch.noise - predicted).square().flatten(1).mean(1)

    return losses, torch.cat([parameter.detach().flatten() for parameter in layer_parameters(layers)])[order]


ALL_CASES = [*CASES, (deep_linear_denoiser, 2)]


@pytest.mark.parametrize(("make", "side"), ALL_CASES)
def test_the_hessian_is_that_of_the_mean_loss(make, side):
    model, batch = make(), draw_batch(images(2, side), WEIGHTED, purpose="x")
    losses, point = weighted_losses(model, batch)
    expected = hessian(lambda flat: losses(flat).mean())(point)
    torch.testing.assert_close(dense_hessian(model, batch), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("make", "side"), ALL_CASES)
def test_both_empirical_fishers_are_outer_products_of_loss_gradients(make, side):
    model, batch = make(), draw_batch(images(3, side), WEIGHTED, purpose="x")
    losses, point = weighted_losses(model, batch)
    weighted = jacrev(losses)(point)
    per_draw = weighted.T @ (weighted / batch.draw_weights.unsqueeze(1)) / len(weighted)
    torch.testing.assert_close(dense_empirical_fisher(model, batch), per_draw, rtol=1e-9, atol=1e-13)
    means = weighted.view(3, 4, -1).mean(1)
    per_example = dense_empirical_fisher(model, batch, per="example")
    torch.testing.assert_close(per_example, means.T @ means / 3, rtol=1e-9, atol=1e-13)


def test_the_hessian_of_a_linear_denoiser_is_its_ggn_and_that_of_a_deep_one_is_not():
    batch = draw_batch(images(2, 2), WEIGHTED, purpose="x")
    model = linear_denoiser()
    torch.testing.assert_close(dense_hessian(model, batch), dense_ggn(model, batch), rtol=1e-10, atol=1e-14)
    deep = deep_linear_denoiser()
    difference = dense_hessian(deep, batch) - dense_ggn(deep, batch)
    assert float(difference.norm() / dense_ggn(deep, batch).norm()) > 0.1


def test_the_hessian_of_a_unet_is_the_slope_of_its_gradient():
    """Central differences along two directions: SiLU, group norm and attention have second derivatives."""
    model, batch = tiny_unet(attention=True), draw_batch(images(1, 4), DrawConfig(2), purpose="x")
    layers = curvature_layers(model)
    matrix = dense_hessian(model, batch)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-9, atol=1e-12 * float(matrix.abs().max()))
    generator = torch.Generator().manual_seed(0)

    def gradient_at(step, direction):
        with torch.no_grad():
            for parameter, change in zip(layer_parameters(layers), direction, strict=True):
                parameter.add_(step * change)
        loss = per_draw_loss(model, batch.images, batch.timesteps, batch.noise).mean()
        gradients = torch.autograd.grad(loss, layer_parameters(layers))
        with torch.no_grad():
            for parameter, change in zip(layer_parameters(layers), direction, strict=True):
                parameter.sub_(step * change)
        return torch.cat([m.flatten() for m in gradient_matrices(layers, gradients).values()])

    for _ in range(2):
        direction = tuple(torch.randn(p.shape, generator=generator).double() for p in layer_parameters(layers))
        vector = torch.cat([m.flatten() for m in gradient_matrices(layers, direction).values()])
        slope = (gradient_at(1e-5, direction) - gradient_at(-1e-5, direction)) / 2e-5
        assert float((matrix @ vector - slope).norm() / slope.norm()) < 1e-6


def test_an_unknown_outer_product_is_refused():
    with unchecked(), pytest.raises(ConfigurationError, match="per='image': give 'draw' or 'example'"):
        dense_empirical_fisher(linear_denoiser(), draw_batch(images(1, 2), DrawConfig(2), purpose="x"), per="image")
