"""Renormalised influence against dense matrices, and what dividing by a length does to a ranking."""

import pytest
import torch
from cases import by_definition, images, linear_denoiser, tiny_unet

import diffinf_lib as di
from diffinf_lib.attribution.renormalised import renormalised_scores, training_norms, trak_norms
from diffinf_lib.attribution.trak import Trak
from diffinf_lib.configuration import DrawConfig
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientConfig, all_gradients, gradient_shards

DRAWS = DrawConfig(4)
DAMPINGS = [1e-3, 0.5]


def case(make, side):
    model, train, queries = make(), images(7, side), images(3, side, seed=1)
    curvature = fit_curvature(model, train, by_definition(DRAWS))
    config = GradientConfig(DRAWS)
    return curvature, *(all_gradients(gradient_shards(model, curvature, data, config)) for data in (queries, train))


@pytest.fixture(scope="module")
def linear():
    return case(linear_denoiser, 2)


@pytest.fixture(scope="module")
def unet():
    return case(tiny_unet, 4)


def dense_steps(curvature: Curvature, train, damping):
    """(F + λI)⁻¹ ∇ℓ_n in the weights' own basis, with F's dense blocks."""
    steps, plain = [], []
    for name, layer in curvature.layers.items():
        rows = layer.from_eigenbasis(train[name]).flatten(1)
        block = layer.block("ekfac")
        steps.append(torch.linalg.solve(block + damping * torch.eye(len(block), dtype=torch.float64), rows.T).T)
        plain.append(rows)
    return torch.cat(steps, dim=1), torch.cat(plain, dim=1)


@pytest.mark.parametrize("name", ["linear", "unet"])
def test_lengths_are_those_of_dense_matrices(name, request):
    curvature, _, train = request.getfixturevalue(name)
    norms = training_norms(train, curvature, damping=DAMPINGS)
    for index, damping in enumerate(DAMPINGS):
        steps, plain = dense_steps(curvature, train, damping)
        torch.testing.assert_close(norms.step[index], steps.norm(dim=1), rtol=1e-7, atol=1e-12)
        own = (steps * plain).sum(1).sqrt()
        torch.testing.assert_close(norms.self_influence[index], own, rtol=1e-7, atol=1e-12)
        torch.testing.assert_close(norms.gradient, plain.norm(dim=1), rtol=1e-9, atol=1e-12)


def test_shards_give_the_same_and_the_self_influence_is_the_librarys(unet):
    curvature, _, train = unet
    parts = [(rows, {name: g[rows] for name, g in train.items()}) for rows in (slice(0, 4), slice(4, 7))]
    whole, sharded = (training_norms(source, curvature, damping=DAMPINGS) for source in (train, iter(parts)))
    for one, other in zip(whole, sharded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    library = di.self_influence(iter(parts), curvature, count=7, damping=DAMPINGS) * 7
    torch.testing.assert_close(whole.self_influence.square(), library, rtol=1e-9, atol=1e-14)


def test_relative_influence_is_the_influence_of_a_step_of_length_one(linear):
    """Barshan et al. 2020, section 4.1: the change of the query's loss when the weights move by one along the step."""
    curvature, queries, train = linear
    scores = di.scores_from_gradients(queries, train, curvature, count=7, damping=DAMPINGS)
    norms = training_norms(train, curvature, damping=DAMPINGS)
    found = renormalised_scores(scores, norms.step)
    measured = torch.cat([curvature.layers[n].from_eigenbasis(g).flatten(1) for n, g in queries.items()], dim=1)
    for index, damping in enumerate(DAMPINGS):
        steps, _ = dense_steps(curvature, train, damping)
        unit = steps / steps.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[index], measured @ unit.T / 7, rtol=1e-7, atol=1e-12)
    assert bool((found.sign() == scores.sign()).all())


def test_an_image_whose_gradient_is_scaled_keeps_its_score(linear):
    curvature, queries, train = linear
    scale = torch.ones(7, dtype=torch.float64)
    scale[2] = 50.0
    louder = {name: g * scale.view(-1, 1, 1) for name, g in train.items()}
    for field in ("step", "self_influence", "gradient"):
        found = []
        for gradients in (train, louder):
            scores = di.scores_from_gradients(queries, gradients, curvature, count=7, damping=1e-3)
            norms = getattr(training_norms(gradients, curvature, damping=1e-3), field)
            found.append(renormalised_scores(scores, norms))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("dimension", [None, 4, 64])
def test_lengths_from_traks_decomposition(unet, dimension):
    _, queries, train = unet
    trak = Trak(train, dimension=dimension)
    norms = trak_norms(trak, damping=DAMPINGS)
    features = trak.features(train)  # inner products, or projections
    gram = features if dimension is None else features @ features.T
    for index, damping in enumerate(DAMPINGS):
        inverse = torch.linalg.inv(gram + damping * torch.eye(7, dtype=torch.float64))
        step = (inverse @ gram @ inverse).diagonal().sqrt()
        torch.testing.assert_close(norms.step[index], step, rtol=1e-7, atol=1e-12)
        own = (gram @ inverse).diagonal().sqrt()
        torch.testing.assert_close(norms.self_influence[index], own, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(norms.gradient, gram.diagonal().sqrt(), rtol=1e-9, atol=1e-12)
    scores = renormalised_scores(trak.scores(queries, DAMPINGS), norms.step)
    assert bool(torch.isfinite(scores).all())


def test_an_image_without_a_gradient_scores_nothing(linear):
    curvature, queries, train = linear
    silent = {name: g.clone() for name, g in train.items()}
    for g in silent.values():
        g[4] = 0
    scores = di.scores_from_gradients(queries, silent, curvature, count=7, damping=[0.0, 1e-3])
    norms = training_norms(silent, curvature, damping=[0.0, 1e-3])
    for lengths in norms:
        found = renormalised_scores(scores, lengths)
        assert bool((found[..., 4] == 0).all()) and bool((found[..., 3] != 0).all())


@pytest.mark.parametrize("dimension", [None, 4, 64])
def test_next_to_no_gradient_scores_nothing_in_traks_decomposition(unet, dimension):
    """Its share of every direction is rounding, of either sign: neither NaN nor one rounding divided by another."""
    _, queries, train = unet
    silent = {name: torch.cat([g, g, g[:1] * 0, g[1:5] * 1e-12]) for name, g in train.items()}
    trak = Trak(silent, dimension=dimension)
    for damping in (0.0, 1e-6, 1.0):
        assert bool(torch.isfinite(trak.kernel.step_lengths(damping)).all())
        scores = trak.scores(queries, damping)
        for lengths in trak_norms(trak, damping=damping):
            found = renormalised_scores(scores, lengths)
            assert bool((found[..., 14:] == 0).all()) and bool((found[..., :14] != 0).all())


def test_bad_input_is_refused_in_one_line(linear):
    curvature, _, train = linear
    scores, nan = torch.ones(2, 3, 7), float("nan")
    for norms, message in [
        (torch.ones(6), r"norms: of shape \(6,\) for scores of \(2, 3, 7\)"),
        (torch.ones(3, 7), r"norms: of shape \(3, 7\)"),
        (torch.ones(2, 3, 7), r"norms: of shape \(2, 3, 7\)"),
        (torch.full((7,), -1.0), "norms: some are negative"),
        (torch.full((7,), nan), "norms: some are negative or not finite"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            renormalised_scores(scores, norms)
    with pytest.raises(ConfigurationError, match="scores: some are not finite"):
        renormalised_scores(scores * nan, torch.ones(7))
    broken = {name: g * nan for name, g in train.items()}
    for source, options, message in [
        (train, {"damping": -1.0}, "damping=-1.0"),
        (train, {"approximation": "best"}, "approximation='best'"),
        (broken, {}, "the gradient of row 0 is not finite"),
        ({"other": train["layers.0"]}, {}, "train: layer other: gradients of shape"),
        ({"projection": torch.ones(7, 4)}, {}, "a projected store"),
        (iter([]), {}, "train: there are no gradients"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            training_norms(source, curvature, **options)
