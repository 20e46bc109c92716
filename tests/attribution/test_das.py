"""DAS against the change of the output itself: dense Jacobians, dense curvature, one training image at a time."""

import pytest
import torch
from cases import by_definition, draw_batch, images, linear_denoiser, same_draws_for_both_passes, tiny_unet

from diffinf_lib.attribution.das import das_scores, trak_das_scores
from diffinf_lib.attribution.trak import Trak
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.exact import dense_ggn
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientConfig, all_gradients, gradient_shards

DRAWS = DrawConfig(4)
DAMPINGS = [1e-2, 0.5]
COUNT, QUERIES, DIMENSION = 6, 3, 4  # training images, queries, outputs of the linear denoiser


def jacobians(model, data, draws=2):
    """J of each draw of each image, `[n, S, C, P]`, by one backward pass for each output."""
    layers = curvature_layers(model)
    rows = []
    batch = draw_batch(data, DrawConfig(draws), stage="probes")
    output = model.predict(batch)
    for value in output.flatten():
        gradients = torch.autograd.grad(value, layer_parameters(layers), retain_graph=True)
        rows.append(torch.cat([m.flatten() for m in gradient_matrices(layers, gradients).values()]))
    return torch.stack(rows).view(len(data), draws, output[0].numel(), -1)


def in_eigenbasis(curvature, rows):
    """Rows over all weights, `[n, P]`, as gradients by block in the eigenbasis."""
    sizes = [layer.shape[0] * layer.shape[1] for layer in curvature.layers.values()]
    parts = zip(curvature.layers.items(), rows.split(sizes, dim=1), strict=True)
    return {name: layer.to_eigenbasis(part.reshape(-1, *layer.shape)) for (name, layer), part in parts}


@pytest.fixture(scope="module")
def case():
    """A linear denoiser, whose EK-FAC is exact; the Jacobians of its queries and the gradients of its training images."""
    model, train, queries = linear_denoiser(), images(COUNT, 2), images(QUERIES, 2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        same_draws_for_both_passes(patch)
        curvature = fit_curvature(model, train, by_definition(DRAWS))
    rotated = all_gradients(gradient_shards(model, curvature, train, GradientConfig(DRAWS)))
    plain = torch.cat([curvature.layers[n].from_eigenbasis(g).flatten(1) for n, g in rotated.items()], dim=1)
    ggn = dense_ggn(model, draw_batch(train, DRAWS, stage="x"))
    return curvature, jacobians(model, queries), rotated, plain, ggn


def brute_force(jacobian, inverse, plain):
    """E_s ‖J_{q,s} M ∇ℓ_n‖², a query, a draw and an image at a time."""
    scores = torch.zeros(len(jacobian), len(plain), dtype=torch.float64)
    for q, draws in enumerate(jacobian):
        for n, gradient in enumerate(plain):
            changes = [one @ (inverse @ gradient) for one in draws]
            scores[q, n] = sum(float(change.square().sum()) for change in changes) / len(changes)
    return scores


def basis_probes(jacobian):
    """u = √C e_i for each i: E[u uᵀ] = I exactly; rows ordered query by query."""
    return (DIMENSION**0.5 * jacobian).flatten(0, 2), jacobian.shape[1] * DIMENSION


def test_a_basis_of_probes_gives_the_squared_change_of_the_output(case):
    curvature, jacobian, rotated, plain, ggn = case
    rows, per_query = basis_probes(jacobian)
    scores = das_scores(
        in_eigenbasis(curvature, rows), rotated, curvature, count=COUNT, damping=DAMPINGS, probes_per_query=per_query
    )
    assert scores.shape == (2, QUERIES, COUNT)
    for index, damping in enumerate(DAMPINGS):
        inverse = torch.linalg.inv(ggn + damping * torch.eye(len(ggn), dtype=torch.float64))
        expected = brute_force(jacobian, inverse / COUNT, plain)
        torch.testing.assert_close(scores[index], expected, rtol=1e-7, atol=1e-14)
    assert bool((scores > 0).all())


def test_random_signs_come_to_the_same_as_their_number_grows(case):
    curvature, jacobian, rotated, _, _ = case
    rows, per_query = basis_probes(jacobian)
    options = {"count": COUNT, "damping": DAMPINGS}
    exact = das_scores(in_eigenbasis(curvature, rows), rotated, curvature, probes_per_query=per_query, **options)
    errors = []
    for repeats in (64, 1024):
        generator = torch.Generator().manual_seed(repeats)
        signs = torch.randint(0, 2, (QUERIES, repeats, 2, DIMENSION), generator=generator).double() * 2 - 1
        probes = torch.einsum("qrsc,qscp->qrsp", signs, jacobian).flatten(0, 2)
        found = das_scores(
            in_eigenbasis(curvature, probes), rotated, curvature, probes_per_query=2 * repeats, **options
        )
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.05 and errors[1] < errors[0] / 2


def test_probes_may_come_draw_by_draw_and_training_gradients_in_shards(case):
    curvature, jacobian, rotated, _, _ = case
    rows, per_query = basis_probes(jacobian)
    options = {"count": COUNT, "damping": DAMPINGS}
    whole = das_scores(in_eigenbasis(curvature, rows), rotated, curvature, probes_per_query=per_query, **options)
    draws = [
        in_eigenbasis(curvature, (DIMENSION**0.5 * jacobian[:, s]).flatten(0, 1)) for s in range(jacobian.shape[1])
    ]

    def shards():
        return ((rows, {n: g[rows] for n, g in rotated.items()}) for rows in (slice(0, 4), slice(4, 6)))

    parts = das_scores(draws, shards, curvature, probes_per_query=DIMENSION, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-15)
    options = {"damping": DAMPINGS}
    whole = trak_das_scores(in_eigenbasis(curvature, rows), Trak(rotated), probes_per_query=per_query, **options)
    parts = trak_das_scores(draws, Trak(shards), probes_per_query=DIMENSION, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_traks_curvature_with_and_without_the_image_itself(case, leave_one_out):
    curvature, jacobian, rotated, plain, _ = case
    rows, per_query = basis_probes(jacobian)
    scores = trak_das_scores(
        in_eigenbasis(curvature, rows), Trak(rotated), damping=[COUNT * d for d in DAMPINGS],
        probes_per_query=per_query, leave_one_out=leave_one_out,
    )  # fmt: skip
    for index, damping in enumerate(DAMPINGS):
        columns = []
        for n in range(COUNT):
            kept = [m for m in range(COUNT) if not leave_one_out or m != n]
            fisher = plain[kept].T @ plain[kept] / COUNT
            inverse = torch.linalg.inv(fisher + damping * torch.eye(len(fisher), dtype=torch.float64))
            columns.append(brute_force(jacobian, inverse / COUNT, plain[n : n + 1]))
        torch.testing.assert_close(scores[index], torch.cat(columns, dim=1), rtol=1e-7, atol=1e-14)


def test_a_projection_comes_near():
    model, train, queries = tiny_unet(), images(8, 4), images(2, 4, seed=1)
    curvature = fit_curvature(model, train, by_definition(DrawConfig(2), exact_labels=False))
    gradients = all_gradients(gradient_shards(model, curvature, train, GradientConfig(DRAWS)))
    probes = in_eigenbasis(curvature, jacobians(model, queries).flatten(0, 2))
    options = {"damping": float(Trak(gradients).kernel.eigenvalues.mean()), "probes_per_query": 32}
    exact = trak_das_scores(probes, Trak(gradients), **options)
    errors = []
    for dimension in (64, 4096):
        found = trak_das_scores(probes, Trak(gradients, dimension=dimension), **options)
        assert bool((found >= 0).all())
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.25 and errors[1] < errors[0] / 3


def test_bad_input_is_refused_in_one_line(case):
    curvature, jacobian, rotated, _, _ = case
    probes = in_eigenbasis(curvature, jacobian[:, 0].flatten(0, 1))
    (block,) = probes
    fewer = {block: probes[block][:4]}
    for changes, message in [
        ({"probes_per_query": 5}, "probes_per_query=5: 12 rows of probes are no multiple"),
        ({"probes_per_query": 0}, "probes_per_query=0"),
        ({"probes": []}, "probes: there are none"),
        ({"probes": [probes, fewer]}, "probes: 4 rows after 12"),
        ({"probes": {"other": probes[block]}}, "layer other: gradients of shape"),
        ({"probes": {block: probes[block] * float("nan")}}, "probes: layer .*: the gradient of row 0 is not finite"),
        ({"train": {"projection": torch.ones(6, 3)}}, "train: a projected store"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"count": 0}, "count=0: give N"),
    ]:
        arguments = {"probes": probes, "train": rotated, "curvature": curvature, "count": COUNT} | changes
        with pytest.raises(ConfigurationError, match=message):
            das_scores(**arguments)
    with pytest.raises(ConfigurationError, match="damping=nan"):
        trak_das_scores(probes, Trak(rotated), damping=float("nan"))
    with pytest.raises(ConfigurationError, match="leverage 1"):
        trak_das_scores(probes, Trak(rotated), damping=0.0, leave_one_out=True)
