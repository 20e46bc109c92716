"""Iterative influence against dense solves, explicit series and Krylov subspaces, in float64 on tiny models."""

import warnings
from dataclasses import replace

import pytest
import torch
from annotations import unchecked
from cases import by_definition, conv_denoiser, draw_batch, images, linear_denoiser, tiny_unet

from diffinf_lib.attribution import influence, scores_from_gradients
from diffinf_lib.attribution.iterative import (
    GGN_PURPOSE,
    solved_queries,
    solved_scores,
    training_ggn,
)
from diffinf_lib.configuration import (
    MEASUREMENT_PURPOSE,
    TRAIN_PURPOSE,
    CurvatureConfig,
    DrawConfig,
    Expectation,
    MeasurementConfig,
    StoreFormat,
)
from diffinf_lib.curvature import curvature_preconditioner, dense_ggn, example_gradients, fit_curvature, flatten_layers
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import gradients_of

MEASUREMENT = MeasurementConfig(draws=DrawConfig(6))
DRAWS, GGN_DRAWS = DrawConfig(4), DrawConfig(16)
GIVEN = {"measurement": MEASUREMENT, "draws": DRAWS}


def case(make=conv_denoiser, side=4, **options):
    """A model, its EK-FAC of few draws, training images and queries."""
    model, train, queries = make(), images(8, side), images(3, side, seed=1)
    curvature = fit_curvature(model, train, CurvatureConfig(draws=DrawConfig(8), **options))
    return model, curvature, train, queries


def dense_system(model, train, queries, damping):
    """F + λI, ∇m and ∇ℓ by brute force: `[P, P]`, `[P, Q]`, `[P, N]`."""
    ggn = dense_ggn(model, draw_batch(train, GGN_DRAWS, purpose=GGN_PURPOSE))
    measured = example_gradients(model, draw_batch(queries, MEASUREMENT.draws, purpose=MEASUREMENT_PURPOSE))
    losses = example_gradients(model, draw_batch(train, DRAWS, purpose=TRAIN_PURPOSE))
    return ggn + damping * torch.eye(len(ggn), dtype=ggn.dtype), flatten_layers(measured), flatten_layers(losses)


def score(setup, *, damping, batch_size=256, ggn_batch_size=25, **options):
    """Scores of solutions with the exact GGN, `[D, Q, N]`."""
    model, curvature, train, queries = setup
    asked = gradients_of(model, curvature, queries, MEASUREMENT.expectation(), batch_size=batch_size)
    ggn = training_ggn(model, train, GGN_DRAWS, batch_size=ggn_batch_size, covers=curvature.covers)
    solved = [solved_queries(model, curvature, ggn, asked, damping=value, **options)[0] for value in damping]
    return solved_scores(solved, gradients_of(model, curvature, train, Expectation(DRAWS), batch_size=batch_size))


@pytest.mark.parametrize(("method", "damping"), [("cg", 1e-5), ("cg", 1e-2), ("neumann", 1e-1)])
@pytest.mark.parametrize("bias", ["joint", "separate"])
def test_converged_scores_are_those_of_the_dense_ggn(method, damping, bias):
    setup = case(bias=bias)
    matrix, measured, losses = dense_system(setup[0], setup[2], setup[3], damping)
    (found,) = score(setup, damping=[damping], method=method, tolerance=1e-10, max_iterations=3000)
    expected = torch.linalg.solve(matrix, measured).T @ losses / 8
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7 * float(expected.abs().max()))
    assert found.shape == (3, 8) and found.dtype == torch.float64


@pytest.mark.parametrize(("make", "bias"), [(conv_denoiser, "separate"), (tiny_unet, "joint")], ids=["conv", "unet"])
@pytest.mark.parametrize("approximation", ["ekfac", "kfac", "identity"])
def test_one_term_of_the_series_is_influence_with_the_preconditioner(make, bias, approximation):
    setup = case(make, bias=bias)
    found = score(
        setup, method="neumann", scale=1.0, max_iterations=1, damping=[1e-4, 1e-2], approximation=approximation
    )
    expected = influence(*setup, **GIVEN, damping=[1e-4, 1e-2], approximation=approximation)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12 * float(expected.abs().max()))


def test_one_conjugate_gradient_is_influence_times_a_number_for_each_query():
    setup = case()
    found, ekfac = score(setup, max_iterations=1, damping=[1e-3])[0], influence(*setup, **GIVEN, damping=1e-3)
    ratio = found / ekfac
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-8, atol=0)
    assert float(ratio.min()) > 0


def test_conjugate_gradients_are_best_in_their_krylov_space():
    """n iterations minimise the error in the norm of A = F + λI over span{Pv, PAPv, …, (PA)ⁿ⁻¹Pv}, here by least squares."""
    model, curvature, train, queries = case()
    matrix, measured, losses = dense_system(model, train, queries, 1e-3)
    precondition = curvature_preconditioner(model, curvature, 1e-3)
    columns = [precondition(measured)]
    for _ in range(2):
        columns.append(precondition(matrix @ columns[-1]))
    expected = torch.empty(3, 8, dtype=torch.float64)
    for q in range(3):
        basis, _ = torch.linalg.qr(torch.stack([column[:, q] for column in columns], dim=1))
        solution = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ measured[:, q])
        expected[q] = solution @ losses / 8
    (found,) = score((model, curvature, train, queries), damping=[1e-3], max_iterations=3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8 * float(expected.abs().max()))


def test_the_series_is_its_sum_term_by_term():
    model, curvature, train, queries = case()
    matrix, measured, losses = dense_system(model, train, queries, 1e-2)
    precondition = curvature_preconditioner(model, curvature, 1e-2)
    term, total = precondition(measured), torch.zeros_like(measured)
    for _ in range(4):
        total, term = total + 0.2 * term, term - 0.2 * precondition(matrix @ term)
    (found,) = score((model, curvature, train, queries), damping=[1e-2], method="neumann", scale=0.2, max_iterations=4)
    expected = total.T @ losses / 8
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


def test_iterations_come_nearer_to_the_dense_solve():
    setup = case()
    matrix, measured, losses = dense_system(setup[0], setup[2], setup[3], 1e-3)
    exact = torch.linalg.solve(matrix, measured).T @ losses / 8
    errors = [float((score(setup, damping=[1e-3], max_iterations=n) - exact).norm()) for n in (1, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.05 * errors[0]


def test_an_exact_preconditioner_is_done_after_one_iteration():
    """EK-FAC of a linear denoiser is its GGN, if both are taken over the same draws."""
    model, train, queries = linear_denoiser(), images(6, 2), images(2, 2, seed=1)
    curvature = fit_curvature(model, train, by_definition(GGN_DRAWS))
    config = Expectation(MEASUREMENT.draws, MEASUREMENT_PURPOSE)
    gradients = gradients_of(model, curvature, queries, config)
    blocks = torch.block_diag(*(layer.block("ekfac") for layer in curvature.layers.values()))
    _, solution = solved_queries(model, curvature, blocks, gradients, damping=1e-6, tolerance=1e-9, max_iterations=50)
    assert solution.iterations == 1 and solution.converged


def test_scores_do_not_depend_on_batches_or_order():
    setup = case()
    model, curvature, train, queries = setup
    reference = score(setup, damping=[1e-4, 1e-2])
    tolerance = {"rtol": 0, "atol": 1e-8 * float(reference.abs().max())}
    for index, damping in enumerate((1e-4, 1e-2)):
        torch.testing.assert_close(score(setup, damping=[damping])[0], reference[index], **tolerance)
    torch.testing.assert_close(
        score(setup, damping=[1e-4, 1e-2], ggn_batch_size=30, batch_size=5), reference, **tolerance
    )
    order, query_order = [3, 1, 5, 0, 4, 2, 7, 6], [2, 0, 1]
    shuffled = (model, curvature, train.subset(order), queries.subset(query_order))
    torch.testing.assert_close(
        score(shuffled, damping=[1e-4, 1e-2]), reference[:, query_order][:, :, order], **tolerance
    )


def test_a_fixed_number_of_iterations_is_no_failure_but_a_missed_tolerance_is():
    setup = case()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("cg", "neumann"):
            score(setup, damping=[1e-2], max_iterations=2, method=method)
    with pytest.warns(UserWarning, match="relative residual .* after 2 iterations"):
        score(setup, damping=[1e-2], max_iterations=2, tolerance=1e-6)


def test_the_solver_says_how_far_it_came():
    model, curvature, train, queries = case()
    config = Expectation(MEASUREMENT.draws, MEASUREMENT_PURPOSE)
    gradients = gradients_of(model, curvature, queries, config)
    ggn = training_ggn(model, train, GGN_DRAWS)
    solved, solution = solved_queries(model, curvature, ggn, gradients, damping=1e-2, max_iterations=2)
    matrix, measured, _ = dense_system(model, train, queries, 1e-2)
    residuals = (measured - matrix @ solution.vectors).norm(dim=0) / measured.norm(dim=0)
    torch.testing.assert_close(solution.residuals, residuals, rtol=1e-6, atol=0)
    losses = gradients_of(model, curvature, train, Expectation(DRAWS))
    found = solved_scores([solved], losses)
    torch.testing.assert_close(found, score((model, curvature, train, queries), damping=[1e-2], max_iterations=2))


def test_bad_input_is_refused():
    setup = case()
    for options, message in [
        ({"method": "lissa"}, "method='lissa': give neumann or cg"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"scale": 1.0}, "scale=1.0 with method='cg'"),
        ({"scale": -1.0, "method": "neumann"}, "scale=-1.0"),
        ({"damping": [-1.0]}, "damping=-1.0"),
        ({"method": "neumann", "scale": 1e6, "max_iterations": 50}, "the Neumann series diverges"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            score(setup, **{"damping": [1e-2], **options})
    model, curvature, train, queries = setup
    solved = gradients_of(model, curvature, queries, MEASUREMENT.expectation())
    stored = gradients_of(
        model, curvature, train, Expectation(DRAWS), store_format=StoreFormat("projection", dimension=4)
    )
    with pytest.raises(ConfigurationError, match="a projection has forgotten its blocks"):
        solved_scores([solved], stored)


def test_without_damping_directions_of_no_curvature_are_left_out():
    """F and EK-FAC of it are zero in some directions: what is solved is the rest, and the preconditioner adds nothing there."""
    model, curvature, train, queries = case(linear_denoiser, 2)
    ((name, layer),) = curvature.layers.items()
    values = layer.corrected_eigenvalues.clone()
    values[:, ::2] = 0
    curvature = replace(curvature, layers={name: replace(layer, corrected_eigenvalues=values)})
    matrix = curvature.layers[name].block("ekfac")
    asked = gradients_of(model, curvature, queries, MEASUREMENT.expectation())
    given = gradients_of(model, curvature, train, Expectation(DRAWS))
    expected = scores_from_gradients(asked, given, curvature, damping=[0.0])
    solved, _ = solved_queries(model, curvature, matrix, asked, damping=0.0, max_iterations=3)
    torch.testing.assert_close(
        solved_scores([solved], given), expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max())
    )
