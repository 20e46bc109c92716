"""Renormalised influence against dense matrices, and what dividing by a length does to a ranking."""

import pytest
import torch
from annotations import unchecked
from cases import by_definition, images, in_shards, linear_denoiser, out_of_eigenbasis, tiny_unet

import diffinf_lib as di
from diffinf_lib.attribution.renormalised import renormalised_scores, training_norms
from diffinf_lib.configuration import DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import Curvature, fit_curvature
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientSet, gradients_of

DRAWS = DrawConfig(4)
DAMPINGS = [1e-3, 0.5]


def case(make, side):
    model, train, queries = make(), images(7, side), images(3, side, seed=1)
    curvature = fit_curvature(model, train, by_definition(DRAWS))
    config = Expectation(DRAWS)
    return curvature, *(gradients_of(model, curvature, data, config) for data in (queries, train))


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
        rows = layer.from_eigenbasis(train.whole()[name]).flatten(1)
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
    parts = in_shards(train, 4)
    whole, sharded = (training_norms(gradients, curvature, damping=DAMPINGS) for gradients in (train, parts))
    for one, other in zip(whole, sharded, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
    library = di.self_influence(parts, curvature, damping=DAMPINGS) * 7
    torch.testing.assert_close(whole.self_influence.square(), library, rtol=1e-9, atol=1e-14)


def test_relative_influence_is_the_influence_of_a_step_of_length_one(linear):
    """Barshan et al. 2020, section 4.1: the change of the query's loss when the weights move by one along the step."""
    curvature, queries, train = linear
    scores = di.scores_from_gradients(queries, train, curvature, damping=DAMPINGS)
    norms = training_norms(train, curvature, damping=DAMPINGS)
    found = renormalised_scores(scores, norms.step)
    measured = torch.cat([g.flatten(1) for g in out_of_eigenbasis(curvature, queries).whole().values()], dim=1)
    for index, damping in enumerate(DAMPINGS):
        steps, _ = dense_steps(curvature, train, damping)
        unit = steps / steps.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found[index], measured @ unit.T / 7, rtol=1e-7, atol=1e-12)
    assert bool((found.sign() == scores.sign()).all())


def test_an_image_whose_gradient_is_scaled_keeps_its_score(linear):
    curvature, queries, train = linear
    scale = torch.ones(7, dtype=torch.float64)
    scale[2] = 50.0
    louder = GradientSet.of({name: g * scale.view(-1, 1, 1) for name, g in train.whole().items()})
    for field in ("step", "self_influence", "gradient"):
        found = []
        for gradients in (train, louder):
            scores = di.scores_from_gradients(queries, gradients, curvature, damping=1e-3)
            norms = getattr(training_norms(gradients, curvature, damping=1e-3), field)
            found.append(renormalised_scores(scores, norms))
        torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


def test_an_image_without_a_gradient_scores_nothing(linear):
    curvature, queries, train = linear
    loud = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    silent = GradientSet.of({name: g * loud.view(-1, 1, 1) for name, g in train.whole().items()})
    scores = di.scores_from_gradients(queries, silent, curvature, damping=[0.0, 1e-3])
    norms = training_norms(silent, curvature, damping=[0.0, 1e-3])
    for lengths in norms:
        found = renormalised_scores(scores, lengths)
        assert bool((found[..., 4] == 0).all()) and bool((found[..., 3] != 0).all())


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
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            renormalised_scores(scores, norms)
    with pytest.raises(ConfigurationError, match="scores: some are not finite"):
        renormalised_scores(scores * nan, torch.ones(7))
    other = GradientSet.of({"other": train.whole()["layers.0"]})
    stored = train.packed_as(curvature, StoreFormat("projection", dimension=4))
    for gradients, options, message in [
        (train, {"damping": -1.0}, "damping=-1.0"),
        (train, {"approximation": "best"}, "approximation='best'"),
        (other, {}, "train: layer other: gradients of shape"),
        (stored, {}, "a projection has forgotten its blocks"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            training_norms(gradients, curvature, **options)
