"""Linear operators against dense matrices, iterative inverses against direct ones, estimates against exact values."""

import curvlinops
import pytest
import torch
from annotations import unchecked
from cases import (
    by_definition,
    conv_denoiser,
    deep_linear_denoiser,
    draw_batch,
    images,
    linear_denoiser,
    same_draws_for_both_passes,
    tiny_unet,
)
from curvlinops._torch_base import PyTorchLinearOperator

from diffinf_lib.configuration import DrawConfig
from diffinf_lib.curvature import fit_curvature, operators
from diffinf_lib.curvature.exact import dense_empirical_fisher, dense_ggn, dense_hessian
from diffinf_lib.curvature.inverses import (
    conjugate_gradient_inverse,
    curvature_preconditioner,
    largest_eigenvalue,
    neumann_inverse,
)
from diffinf_lib.curvature.layers import coverage, curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.curvature.operators import (
    FlatDenoiser,
    batch_size_of,
    empirical_fisher_operator,
    example_gradients,
    flatten_layers,
    ggn_operator,
    hessian_operator,
    packed,
    split_layers,
    to_dense,
)
from diffinf_lib.curvature.spectra import eigenvalue_density, extreme_eigenvalues, trace
from diffinf_lib.errors import ConfigurationError

DRAWS = DrawConfig(4)
WEIGHTED = DrawConfig(2, "importance", proposal=(1.0, 3.0, 2.0))
CASES = [
    (linear_denoiser, 2),
    (deep_linear_denoiser, 2),
    (conv_denoiser, 4),
    (tiny_unet, 4),
    (lambda: tiny_unet(attention=True), 4),
]
IDS = ["linear", "deep", "conv", "unet", "attention"]


def in_parts(batch, size):
    """The same draws in several batches, which cut through examples."""
    return [batch.rows(slice(i, i + size)) for i in range(0, len(batch.images), size)]


def relative_error(found, expected):
    return float((found - expected).norm() / expected.norm())


def operator_error(operator, dense):
    """Of the whole matrix, or of sixteen random combinations of its columns where there are thousands."""
    if len(dense) < 200:
        return relative_error(to_dense(operator, columns=50), dense)
    columns = torch.randn(len(dense), 16, dtype=dense.dtype, generator=torch.Generator().manual_seed(0))
    return relative_error(operator @ columns, dense @ columns)


# --- operators against dense matrices


@pytest.mark.parametrize(("make", "side"), CASES, ids=IDS)
def test_the_ggn_operator_is_the_dense_ggn(make, side):
    model, batch = make(), draw_batch(images(2, side), WEIGHTED, purpose="x")
    assert operator_error(ggn_operator(model, in_parts(batch, 3)), dense_ggn(model, batch)) < 1e-9


@pytest.mark.parametrize(("make", "side"), CASES, ids=IDS)
def test_the_hessian_operator_is_the_dense_hessian(make, side):
    model, batch = make(), draw_batch(images(2, side), WEIGHTED, purpose="x")
    assert operator_error(hessian_operator(model, in_parts(batch, 3)), dense_hessian(model, batch)) < 1e-9


@pytest.mark.parametrize("per", ["draw", "example"])
@pytest.mark.parametrize(("make", "side"), CASES, ids=IDS)
def test_the_empirical_fisher_operator_is_the_dense_one(make, side, per):
    model, batch = make(), draw_batch(images(2, side), WEIGHTED, purpose="x")
    operator = empirical_fisher_operator(model, in_parts(batch, 3), per=per)
    assert operator_error(operator, dense_empirical_fisher(model, batch, per=per)) < 1e-9


def test_ours_agrees_with_curvlinops_own_hessian():
    """Forward after backward, on a model for which it exists: backward after backward gives the same numbers."""
    model, batch = conv_denoiser(), draw_batch(images(2, 4), DRAWS, purpose="x")
    layers = curvature_layers(model)
    theirs = curvlinops.HessianLinearOperator(
        FlatDenoiser(model), torch.nn.MSELoss(), layer_parameters(layers), [packed(batch)],
        check_deterministic=False, batch_size_fn=batch_size_of,
    )  # fmt: skip
    ours = hessian_operator(model, batch)
    torch.testing.assert_close(to_dense(ours.inner), to_dense(theirs), rtol=1e-10, atol=1e-14)


def test_an_operator_multiplies_with_vectors_columns_and_matrices_of_layers():
    model, batch = conv_denoiser(), draw_batch(images(2, 4), DRAWS, purpose="x")
    operator, dense = ggn_operator(model, batch), dense_ggn(model, batch)
    gradients = example_gradients(model, batch)
    columns = flatten_layers(gradients)
    torch.testing.assert_close(operator @ columns, dense @ columns, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(operator @ columns[:, 0], dense @ columns[:, 0], rtol=1e-9, atol=1e-14)
    first = [matrices[0] for matrices in gradients.values()]
    for found, expected in zip(operator @ first, split_layers(model, dense @ columns[:, 0]).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)


def test_many_vectors_are_multiplied_a_few_at_a_time(monkeypatch):
    model, batch = conv_denoiser(), draw_batch(images(3, 4), DRAWS, purpose="x")
    operator = ggn_operator(model, batch)
    vectors = torch.randn(operator.shape[1], 5, dtype=torch.float64)
    expected, widths, inner = operator @ vectors, [], type(operator.inner)
    assert operator.columns >= 5
    once = inner.__matmul__
    monkeypatch.setattr(inner, "__matmul__", lambda self, part: widths.append(part.shape[1]) or once(self, part))
    monkeypatch.setattr(operators, "PRODUCT_PIXELS", 2 * batch.noise.numel())
    torch.testing.assert_close(ggn_operator(model, batch) @ vectors, expected, rtol=1e-12, atol=1e-15)
    assert widths == [2, 2, 1]


def test_vectors_and_layers_convert_both_ways():
    model = tiny_unet()
    gradients = example_gradients(model, draw_batch(images(3, 4), DRAWS, purpose="x"))
    columns = flatten_layers(gradients)
    for name, back in split_layers(model, columns).items():
        assert torch.equal(back, gradients[name])
    single = split_layers(model, columns[:, 1])
    assert all(torch.equal(single[name], gradients[name][1]) for name in gradients)
    assert torch.equal(flatten_layers(single), columns[:, 1])
    with pytest.raises(
        ConfigurationError, match="vectors: 7 rows, but the model's layers have 2615 covered parameters"
    ):
        split_layers(model, torch.zeros(7))


@pytest.mark.parametrize("make_operator", [ggn_operator, hessian_operator, empirical_fisher_operator])
def test_a_frozen_model_in_training_gives_the_same_and_is_left_as_it_was(make_operator):
    model, batch = tiny_unet(), draw_batch(images(2, 4), DRAWS, purpose="x")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    vector = torch.randn(2615, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected, names = make_operator(model, batch) @ vector, coverage(model).names
    model.train().requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(make_operator(model, batch, covers=names) @ vector, expected, rtol=1e-12, atol=1e-16)
    assert all(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_draws_and_unknown_outer_products_are_refused():
    with pytest.raises(ConfigurationError, match="batches: give at least one"):
        ggn_operator(linear_denoiser(), [])
    with unchecked(), pytest.raises(ConfigurationError, match="per='image'"):
        empirical_fisher_operator(linear_denoiser(), [], per="image")


# --- inverses


def system(make, side, monkeypatch, count=8, draws=16):
    """A model, its dense GGN, EK-FAC fitted to the same draws, and right-hand sides."""
    same_draws_for_both_passes(monkeypatch)
    model, data, draws = make(), images(count, side), DrawConfig(draws)
    batch = draw_batch(data, draws, purpose="x")
    curvature = fit_curvature(model, data, by_definition(draws))
    return model, dense_ggn(model, batch), curvature, flatten_layers(example_gradients(model, batch)), batch


def solved(dense, damping, vectors):
    return torch.linalg.solve(dense + damping * torch.eye(len(dense), dtype=dense.dtype), vectors)


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("make", "side"), CASES[:3], ids=IDS[:3])
def test_conjugate_gradients_solve_the_system(make, side, preconditioned, damping, monkeypatch):
    model, dense, curvature, vectors, batch = system(make, side, monkeypatch)
    preconditioner = curvature_preconditioner(model, curvature, damping) if preconditioned else None
    solution = conjugate_gradient_inverse(
        ggn_operator(model, batch), damping, vectors, preconditioner=preconditioner, tolerance=1e-12, max_iterations=500
    )
    assert solution.converged and float(solution.residuals.max()) < 1e-12
    assert relative_error(solution.vectors, solved(dense, damping, vectors)) < 1e-8


@pytest.mark.parametrize("preconditioned", [False, True])
@pytest.mark.parametrize(("make", "side"), [CASES[0], CASES[2]], ids=["linear", "conv"])
def test_the_neumann_series_solves_the_system(make, side, preconditioned, monkeypatch):
    model, dense, curvature, vectors, _ = system(make, side, monkeypatch)
    preconditioner = curvature_preconditioner(model, curvature, 1e-2) if preconditioned else None
    solution = neumann_inverse(dense, 1e-2, vectors, preconditioner=preconditioner, tolerance=1e-10)
    assert solution.converged
    assert relative_error(solution.vectors, solved(dense, 1e-2, vectors)) < 1e-8


def iterations(solve, model, dense, curvature, vectors, damping, **options):
    chosen = [None, curvature_preconditioner(model, curvature, damping)]
    return [solve(dense, damping, vectors, preconditioner=p, **options).iterations for p in chosen]


def test_an_exact_preconditioner_leaves_one_iteration(monkeypatch):
    """EK-FAC is exact in a linear denoiser."""
    setup = system(linear_denoiser, 2, monkeypatch)[:4]
    plain, preconditioned = iterations(conjugate_gradient_inverse, *setup, 1e-4, tolerance=1e-10)
    assert plain > 3 and preconditioned == 1
    plain, preconditioned = iterations(neumann_inverse, *setup, 1e-4, tolerance=1e-10)
    assert plain > 10 and preconditioned == 1


def test_ekfac_lowers_the_number_of_iterations(monkeypatch):
    setup = system(conv_denoiser, 4, monkeypatch, draws=64)[:4]
    plain, preconditioned = iterations(conjugate_gradient_inverse, *setup, 1e-6, tolerance=1e-10)
    assert preconditioned < 0.7 * plain
    plain, preconditioned = iterations(neumann_inverse, *setup, 1e-2, tolerance=1e-6)
    assert preconditioned < 0.7 * plain


@pytest.mark.parametrize("bias", ["joint", "separate"])
@pytest.mark.parametrize("approximation", ["ekfac", "kfac", "identity"])
def test_the_preconditioner_is_the_inverse_of_the_damped_blocks(approximation, bias, monkeypatch):
    same_draws_for_both_passes(monkeypatch)
    model, data = conv_denoiser(), images(3, 4)
    curvature = fit_curvature(model, data, by_definition(DRAWS, bias=bias))
    precondition = curvature_preconditioner(model, curvature, 1e-3, approximation)
    vector = torch.randn(84, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = split_layers(model, precondition(vector))
    for name, block in curvature.blocks(model).items():
        matrices = block.of(split_layers(model, vector)[block.layer_name])
        matrix = curvature.layers[name].block(approximation)
        expected = solved(matrix, 1e-3, matrices.flatten(1).T).T.view_as(matrices)
        torch.testing.assert_close(block.of(found[block.layer_name]), expected, rtol=1e-9, atol=1e-10, msg=name)


class Damped(PyTorchLinearOperator):
    """F + λI as curvlinops' inverses want it."""

    def __init__(self, operator, damping):
        super().__init__(operator._in_shape, operator._out_shape)
        self.operator, self.damping = operator, damping

    def _matmat(self, X):
        return [a + self.damping * x for a, x in zip(self.operator._matmat(X), X, strict=True)]


@pytest.mark.filterwarnings("ignore:CG terminated")
def test_curvlinops_conjugate_gradients_agree_as_far_as_they_come(monkeypatch):
    """They stop at residuals of about 1e-5, where inner products fall under a fixed 1e-10; ours go on."""
    model, dense, _, vectors, batch = system(conv_denoiser, 4, monkeypatch)
    damped = Damped(ggn_operator(model, batch), 1e-2) * 100
    theirs = curvlinops.CGInverseLinearOperator(damped, tolerance=1e-12, max_iter=200) @ vectors * 100
    ours = conjugate_gradient_inverse(dense, 1e-2, vectors, tolerance=1e-12).vectors
    assert relative_error(ours, theirs) < 1e-4
    exact = solved(dense, 1e-2, vectors)
    assert relative_error(ours, exact) < 1e-3 * relative_error(theirs, exact)


def test_our_neumann_series_is_curvlinops_term_by_term(monkeypatch):
    model, _, _, vectors, batch = system(conv_denoiser, 4, monkeypatch)
    operator = ggn_operator(model, batch)
    series = curvlinops.NeumannInverseLinearOperator(Damped(operator, 1e-2), num_terms=9, scale=10.0) @ vectors
    with pytest.warns(UserWarning, match="Neumann series: relative residual .* after 10 iterations"):
        ours = neumann_inverse(operator, 1e-2, vectors, scale=10.0, max_iterations=10)
    torch.testing.assert_close(ours.vectors, series, rtol=1e-10, atol=1e-14)


def test_too_few_iterations_warn_and_say_how_far_they_came(monkeypatch):
    _, dense, _, vectors, _ = system(conv_denoiser, 4, monkeypatch, count=2)
    with pytest.warns(
        UserWarning, match="conjugate gradients: relative residual .* after 3 iterations, tolerance=1.0e-06"
    ):
        solution = conjugate_gradient_inverse(dense, 1e-6, vectors[:, 0], max_iterations=3)
    assert not solution.converged and solution.iterations == 3 and solution.vectors.shape == (84,)
    remaining = dense @ solution.vectors + 1e-6 * solution.vectors - vectors[:, 0]
    torch.testing.assert_close(solution.residuals[0], remaining.norm() / vectors[:, 0].norm())


def test_a_zero_right_hand_side_has_a_zero_solution(monkeypatch):
    _, dense, _, vectors, _ = system(conv_denoiser, 4, monkeypatch, count=2)
    both = torch.stack([vectors[:, 0], torch.zeros(84, dtype=torch.float64)], dim=1)
    for solve in (conjugate_gradient_inverse, neumann_inverse):
        solution = solve(dense, 1e-1, both)
        assert solution.converged and float(solution.vectors[:, 1].norm()) == 0


def test_systems_without_a_solution_are_refused(monkeypatch):
    negative, vectors = torch.diag(torch.tensor([1.0, -2.0])).double(), torch.ones(2, dtype=torch.float64)
    with pytest.raises(ConfigurationError, match="damping=0.5: F \\+ λI is not positive definite"):
        conjugate_gradient_inverse(negative, 0.5, vectors)
    with pytest.raises(ConfigurationError, match="scale=3: the Neumann series diverges"):
        neumann_inverse(negative, 0.5, vectors, scale=3.0)
    for damping in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="damping="):
            conjugate_gradient_inverse(negative, damping, vectors)
    with unchecked(), pytest.raises(ConfigurationError, match="vectors have 3 rows"):
        neumann_inverse(negative, 1.0, torch.ones(3))


# --- influence


def optimum(batch):
    """The linear denoiser that minimises the mean loss of some draws: least squares."""
    model = linear_denoiser()
    flat = batch.state.flatten(1)
    joint = torch.cat([flat, torch.ones(len(flat), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(joint, batch.noise.flatten(1)).solution.T
    with torch.no_grad():
        model.network.layers[0].weight.copy_(solution[:, :-1])
        model.network.layers[0].bias.copy_(solution[:, -1])
    return model


def layer_vector(model):
    layers = curvature_layers(model)
    return flatten_layers(gradient_matrices(layers, tuple(p.detach() for p in layer_parameters(layers))))


def test_exact_influence_is_leaving_one_out_in_a_quadratic_problem():
    """With fixed draws a linear denoiser's loss is quadratic, and leaving example n out moves its optimum by exactly
    (N H − H_n)⁻¹ ∇ℓ_n; influence has (N H)⁻¹ in its place, which is right to first order in 1/N."""
    count, draws = 12, DrawConfig(32)
    batch = draw_batch(images(count, 2), draws, purpose="x")
    model = optimum(batch)
    train = flatten_layers(example_gradients(model, batch))
    queries = flatten_layers(example_gradients(model, draw_batch(images(3, 2, seed=1), draws, purpose="q")))
    moved = torch.empty(20, count, dtype=torch.float64)
    exact = torch.empty(3, count, dtype=torch.float64)
    whole = dense_hessian(model, batch)
    for n in range(count):
        left = batch.rows(batch.example != n)
        own = dense_hessian(model, batch.rows(batch.example == n))
        moved[:, n] = layer_vector(optimum(left)) - layer_vector(model)
        without = whole - own / count
        exact[:, n] = torch.linalg.solve(without, queries).T @ train[:, n] / count
    actual = queries.T @ moved
    torch.testing.assert_close(exact, actual, rtol=1e-8, atol=1e-12)
    operator = ggn_operator(model, batch)
    found = [
        conjugate_gradient_inverse(matrix, 0.0, queries, tolerance=1e-12).vectors.T @ train / count
        for matrix in (operator, whole)
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-12)
    correlation = torch.corrcoef(torch.stack([found[0].flatten(), actual.flatten()]))[0, 1]
    slope = (found[0] * actual).sum() / (found[0] * found[0]).sum()
    assert correlation > 0.99 and 1.0 < slope < 1 + 3 / count


# --- spectra


def test_traces_are_right_within_their_error():
    model, batch = conv_denoiser(), draw_batch(images(4, 4), DrawConfig(8), purpose="x")
    operator, dense = ggn_operator(model, batch), dense_ggn(model, batch)
    exact, samples = float(dense.trace()), 30
    off_diagonal = dense - torch.diag(dense.diagonal())
    deviation = (2 * float(off_diagonal.square().sum()) / samples) ** 0.5  # of Hutchinson's estimate with random signs
    for seed in range(3):
        assert abs(trace(operator, "hutchinson", samples, seed=seed) - exact) < 4 * deviation
        for method in ("hutch++", "xtrace"):  # both take the leading directions out first
            assert abs(trace(operator, method, samples, seed=seed) - exact) < deviation
    estimates = [trace(operator, "hutchinson", samples, seed=seed) for seed in range(40)]
    assert abs(sum(estimates) / 40 - exact) < 4 * deviation / 40**0.5


def test_a_trace_depends_on_its_seed_only_and_leaves_torch_alone():
    operator = ggn_operator(linear_denoiser(), draw_batch(images(2, 2), DRAWS, purpose="x"))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = trace(operator, "hutchinson", 3)
    assert torch.equal(torch.rand(3), expected)
    assert trace(operator, "hutchinson", 3) == first != trace(operator, "hutchinson", 3, seed=1)


def test_extreme_eigenvalues_and_density_describe_the_spectrum():
    model, batch = conv_denoiser(), draw_batch(images(4, 4), DrawConfig(8), purpose="x")
    operator, dense = hessian_operator(model, batch), dense_hessian(model, batch)
    values = torch.linalg.eigvalsh(dense)
    torch.testing.assert_close(extreme_eigenvalues(operator, 3), values[-3:], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(extreme_eigenvalues(operator, 2, which="smallest"), values[:2], rtol=1e-5, atol=1e-9)
    grid, density = eigenvalue_density(operator, lanczos_vectors=30, repeats=40)
    assert float(grid[0]) < values[0] and float(grid[-1]) > values[-1]
    mean = float(torch.trapezoid(grid * density, grid))
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=0.05)
    assert mean == pytest.approx(float(values.mean()), abs=0.05 * float(values[-1]))
    torch.testing.assert_close(eigenvalue_density(operator, lanczos_vectors=30, repeats=40)[1], density)


def test_the_largest_eigenvalue_is_approached_from_below(monkeypatch):
    model, dense, curvature, vectors, _ = system(conv_denoiser, 4, monkeypatch, count=2)
    damped = dense + 1e-3 * torch.eye(84, dtype=torch.float64)
    precondition = curvature_preconditioner(model, curvature, 1e-3)
    exact = float(torch.linalg.eigvals(precondition(damped)).real.max())
    found = largest_eigenvalue(lambda v: damped @ v, vectors[:, 0], precondition)
    assert 0.9 * exact < found <= exact * (1 + 1e-9)


def test_bad_requests_for_spectra_are_refused():
    operator = ggn_operator(linear_denoiser(), draw_batch(images(2, 2), DRAWS, purpose="x"))
    for call, message in [
        (lambda: trace(operator, "hutch"), "method='hutch'"),
        (lambda: trace(operator, "hutch++", 10), "samples=10: hutch\\+\\+ takes a positive multiple of 3 below the 20"),
        (lambda: trace(operator, "hutchinson", 20), "samples=20: hutchinson takes"),
        (lambda: extreme_eigenvalues(operator, 20), "count=20"),
        (lambda: extreme_eigenvalues(operator, which="LM"), "which='LM'"),
        (lambda: eigenvalue_density(operator), "lanczos_vectors=64"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            call()
