"""DAS against the change of the output itself: dense Jacobians, dense curvature, one training image at a time."""

import pytest
import torch
from cases import (
    by_definition,
    draw_batch,
    images,
    in_shards,
    linear_denoiser,
    out_of_eigenbasis,
    same_draws_for_both_passes,
)

from diffinf_lib.attribution.das import das_scores
from diffinf_lib.configuration import DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.exact import dense_ggn
from diffinf_lib.curvature.layers import curvature_layers, gradient_matrices, layer_parameters
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientSet, gradients_of

DRAWS = DrawConfig(4)
DAMPINGS = [1e-2, 0.5]
COUNT, QUERIES, DIMENSION = 6, 3, 4  # training images, queries, outputs of the linear denoiser


def jacobians(model, data, draws=2):
    """J of each draw of each image, `[n, S, C, P]`, by one backward pass for each output."""
    layers = curvature_layers(model)
    rows = []
    batch = draw_batch(data, DrawConfig(draws), purpose="probes")
    output = model.predict(batch)
    for value in output.flatten():
        gradients = torch.autograd.grad(value, layer_parameters(layers), retain_graph=True)
        rows.append(torch.cat([m.flatten() for m in gradient_matrices(layers, gradients).values()]))
    return torch.stack(rows).view(len(data), draws, output[0].numel(), -1)


def in_eigenbasis(curvature, rows):
    """Rows over all weights, `[n, P]`, as gradients by block in the eigenbasis."""
    sizes = [layer.shape[0] * layer.shape[1] for layer in curvature.layers.values()]
    parts = zip(curvature.layers.items(), rows.split(sizes, dim=1), strict=True)
    return GradientSet.of({name: layer.to_eigenbasis(part.reshape(-1, *layer.shape)) for (name, layer), part in parts})


@pytest.fixture(scope="module")
def case():
    """A linear denoiser, whose EK-FAC is exact; the Jacobians of its queries and the gradients of its training images."""
    model, train, queries = linear_denoiser(), images(COUNT, 2), images(QUERIES, 2, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        same_draws_for_both_passes(patch)
        curvature = fit_curvature(model, train, by_definition(DRAWS))
    rotated = gradients_of(model, curvature, train, Expectation(DRAWS))
    plain = torch.cat([g.flatten(1) for g in out_of_eigenbasis(curvature, rotated).whole().values()], dim=1)
    ggn = dense_ggn(model, draw_batch(train, DRAWS, purpose="x"))
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
        [in_eigenbasis(curvature, rows)], rotated, curvature, damping=DAMPINGS, probes_per_query=per_query
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
    options = {"damping": DAMPINGS}
    exact = das_scores([in_eigenbasis(curvature, rows)], rotated, curvature, probes_per_query=per_query, **options)
    errors = []
    for repeats in (64, 1024):
        generator = torch.Generator().manual_seed(repeats)
        signs = torch.randint(0, 2, (QUERIES, repeats, 2, DIMENSION), generator=generator).double() * 2 - 1
        probes = torch.einsum("qrsc,qscp->qrsp", signs, jacobian).flatten(0, 2)
        found = das_scores(
            [in_eigenbasis(curvature, probes)], rotated, curvature, probes_per_query=2 * repeats, **options
        )
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[1] < 0.05 and errors[1] < errors[0] / 2


def test_probes_may_come_draw_by_draw_and_training_gradients_in_shards(case):
    curvature, jacobian, rotated, _, _ = case
    rows, per_query = basis_probes(jacobian)
    options = {"damping": DAMPINGS}
    whole = das_scores([in_eigenbasis(curvature, rows)], rotated, curvature, probes_per_query=per_query, **options)
    draws = [
        in_eigenbasis(curvature, (DIMENSION**0.5 * jacobian[:, s]).flatten(0, 1)) for s in range(jacobian.shape[1])
    ]
    parts = das_scores(draws, in_shards(rotated, 4), curvature, probes_per_query=DIMENSION, **options)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-15)


def test_bad_input_is_refused_in_one_line(case):
    curvature, jacobian, rotated, _, _ = case
    probes = in_eigenbasis(curvature, jacobian[:, 0].flatten(0, 1))
    ((block, rows),) = probes.whole().items()
    fewer, other = GradientSet.of({block: rows[:4]}), GradientSet.of({"other": rows})
    stored = rotated.packed_as(curvature, StoreFormat("projection", dimension=3))
    for changes, message in [
        ({"probes_per_query": 5}, "probes_per_query=5: 12 rows of probes are no multiple"),
        ({"probes_per_query": 0}, "probes_per_query=0"),
        ({"probes": []}, "probes: there are none"),
        ({"probes": [probes, fewer]}, "probes: 4 rows after 12"),
        ({"probes": [other]}, "layer other: gradients of shape"),
        ({"train": stored}, "a projection has forgotten its blocks"),
        ({"damping": -1.0}, "damping=-1.0"),
        ({"count": 0}, "count=0: give N"),
    ]:
        arguments = {"probes": [probes], "train": rotated, "curvature": curvature} | changes
        with pytest.raises(ConfigurationError, match=message):
            das_scores(**arguments)
