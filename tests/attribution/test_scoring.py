"""What one pass over the gradients gives: lists of dampings and approximations, parts by layer and timestep, self-influence."""

import pytest
import torch
from annotations import unchecked
from cases import by_definition, conv_denoiser, images, in_shards, linear_denoiser, tiny_unet

import diffinf_lib as di
from diffinf_lib.attribution.scoring import KeptQueries, products
from diffinf_lib.attribution.similarity import gradient_dot_scores
from diffinf_lib.configuration import (
    MEASUREMENT_PURPOSE,
    QUERY_PURPOSE,
    CurvatureConfig,
    DrawConfig,
    Expectation,
    MeasurementConfig,
)
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientSet, compute, gradients_of, grouped_gradients
from diffinf_lib.gradients.compute import gradients_in_eigenbasis

DRAWS = DrawConfig(6)
MEASUREMENT = MeasurementConfig(draws=DrawConfig(20))


@pytest.fixture(scope="module")
def case():
    model, train, queries = tiny_unet(), images(7, 4), images(3, 4, seed=1)
    return model, fit_curvature(model, train, CurvatureConfig(draws=DrawConfig(4))), train, queries


def gradients(case):
    model, curvature, train, queries = case
    query_config = Expectation(MEASUREMENT.draws, MEASUREMENT_PURPOSE)
    pairs = [(queries, query_config), (train, Expectation(DRAWS))]
    return [gradients_of(model, curvature, data, config) for data, config in pairs]


def test_one_pass_gives_every_damping_and_approximation(case):
    options = {"measurement": MEASUREMENT, "draws": DRAWS}
    dampings, approximations = [1e-6, 1e-3, 1.0], ["kfac", "ekfac", "identity"]
    both = di.influence(*case, damping=dampings, approximation=approximations, **options)
    assert both.shape == (3, 3, 3, 7)
    for a, approximation in enumerate(approximations):
        several = di.influence(*case, damping=dampings, approximation=approximation, **options)
        torch.testing.assert_close(several, both[a], rtol=1e-12, atol=1e-14)
        for d, damping in enumerate(dampings):
            one = di.influence(*case, damping=damping, approximation=approximation, **options)
            torch.testing.assert_close(one, both[a, d], rtol=1e-12, atol=1e-14)
    one_damping = di.influence(*case, damping=1e-3, approximation=approximations, **options)
    torch.testing.assert_close(one_damping, both[:, 1], rtol=1e-12, atol=1e-14)


def test_relative_damping_is_a_fraction_of_each_blocks_mean_eigenvalue(case):
    _, curvature, _, _ = case
    queries, train = gradients(case)
    relative = di.scores_from_gradients(queries, train, curvature, damping=0.1, damping_kind="relative")
    expected = 0
    for name, layer in curvature.layers.items():
        values = layer.corrected_eigenvalues
        inverse = 1 / (values + 0.1 * values.mean())
        expected = expected + (queries.whole()[name] * inverse).flatten(1) @ train.whole()[name].flatten(1).T / 7
    torch.testing.assert_close(relative[0], expected, rtol=1e-10, atol=1e-14)
    scaled = fit_curvature(case[0], case[2], CurvatureConfig("kfac", DrawConfig(4)))
    assert scaled.layers
    with unchecked(), pytest.raises(ConfigurationError, match="damping_kind='per_cent'"):
        Inverses([1.0], ["ekfac"], "per_cent")


def test_layers_add_up(case):
    _, curvature, _, _ = case
    queries, train = gradients(case)
    whole = di.scores_from_gradients(queries, train, curvature, damping=[1e-4, 1e-2])
    parts = di.attribution.scores_by_layer(queries, train, curvature, damping=[1e-4, 1e-2])
    assert list(parts) == list(curvature.layers)
    torch.testing.assert_close(sum(parts.values()), whole, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_timesteps_add_up(case, bins):
    model, curvature, _, queries = case
    query_gradients, train = gradients(case)
    whole = di.scores_from_gradients(query_gradients, train, curvature, damping=[1e-4, 1e-2])
    parts = di.attribution.influence_by_timestep(
        model, curvature, train, queries, bins=bins, measurement=MEASUREMENT, damping=[1e-4, 1e-2]
    )
    assert parts.shape == (bins, 2, 3, 7)
    torch.testing.assert_close(parts.sum(0), whole, rtol=1e-9, atol=1e-13)
    assert bins == 1 or float(parts.abs().amax((1, 2, 3)).min()) > 0  # ten stratified timesteps: one a bin, none empty


def test_self_influence_is_the_diagonal_and_never_negative(case):
    _, curvature, _, _ = case
    _, train = gradients(case)
    dampings = [1e-6, 1e-2]
    found = di.self_influence(in_shards(train, 4), curvature, damping=dampings)
    whole = di.scores_from_gradients(train, train, curvature, damping=dampings)
    torch.testing.assert_close(found, whole.diagonal(dim1=1, dim2=2), rtol=1e-10, atol=1e-14)
    assert bool((found > 0).all())


@pytest.mark.parametrize("count", [1, 2, 6])
def test_examples_that_share_a_batch_get_the_same_gradients(count):
    model, data = tiny_unet(attention=True), images(5, 4)
    config = Expectation(DrawConfig(count, noise_rule="independent"))
    curvature = fit_curvature(model, data, CurvatureConfig("identity", DrawConfig(2)))
    blocks = curvature.blocks(model)
    grouped = grouped_gradients(model, data, config, blocks, batch_size=4)
    single = compute.separate_gradients(model, data, config, blocks)
    for name, expected in single.items():
        torch.testing.assert_close(grouped[name], expected, rtol=1e-9, atol=1e-13)


def test_weights_of_importance_draws_make_gradients_unbiased():
    """Half of the draws in a tenth of the timesteps, undone by weights: the mean over seeds is that of uniform draws."""
    model, data = linear_denoiser(), images(1, 2)
    curvature = fit_curvature(model, data, CurvatureConfig("identity", DrawConfig(2)))
    preferred = DrawConfig(200, "importance", proposal=(5.0, *[5 / 9] * 9))

    def mean(draws, seeds):
        parts = [
            gradients_in_eigenbasis(model, curvature, data, Expectation(draws, seed=seed)) for seed in range(seeds)
        ]
        return torch.stack([part["layers.0"][0] for part in parts]).mean(0)

    expected, found = mean(DrawConfig(8000), 4), mean(preferred, 100)
    assert float((found - expected).norm() / expected.norm()) < 0.06


def test_a_bias_of_its_own_and_groups_reach_the_scores():
    model, train = conv_denoiser(), images(4, 4)
    for bias in ("joint", "separate"):
        curvature = fit_curvature(model, train, by_definition(DRAWS, bias=bias))
        scores = di.influence(model, curvature, train, train, measurement=MEASUREMENT, draws=DRAWS, damping=1e3)
        # with a large damping only the inner product is left, however the blocks are cut
        queries = gradients_of(model, curvature, train, Expectation(MEASUREMENT.draws, MEASUREMENT_PURPOSE))
        own = gradients_of(model, curvature, train, Expectation(DRAWS))
        dot = products(queries.whole(), own.whole()) / 4e3
        torch.testing.assert_close(scores, dot, rtol=1e-3, atol=1e-9)
        assert len(curvature.layers) == (2 if bias == "joint" else 3)


def test_shards_are_scored_together_up_to_a_size():
    values = torch.arange(5.0).repeat_interleave(2).view(10, 1, 1).expand(10, 1, 4)
    split = in_shards(GradientSet.of({"a": values}), 2)
    joined = list(split.shards(4 * values[0].numel() * 4))
    assert [where for where, _ in joined] == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert joined[1][1]["a"][:, 0, 0].tolist() == [2.0, 2.0, 3.0, 3.0]
    assert [where for where, _ in split.shards(1)] == [slice(start, start + 2) for start in range(0, 10, 2)]
    assert torch.equal(split.whole()["a"], values) and torch.equal(split.held().whole()["a"], values)


def test_fewer_queries_than_images_or_more_is_the_same(case):
    _, curvature, _, _ = case
    queries, train = gradients(case)
    inverses = Inverses([1e-4], ["ekfac"])
    kept = KeptQueries(queries, train, curvature, inverses)
    few = kept.scores(train.whole())
    one_by_one = [kept.scores({n: g[i : i + 1] for n, g in train.whole().items()}) for i in range(7)]
    torch.testing.assert_close(few, torch.cat(one_by_one, dim=2), rtol=1e-12, atol=1e-15)


def test_query_draws_of_their_own(case):
    model, curvature, _, queries = case
    own = gradients_of(model, curvature, queries, Expectation(DRAWS, QUERY_PURPOSE))
    _, train_gradients = gradients(case)
    expected = di.scores_from_gradients(own, train_gradients, curvature, damping=1e-4)[0]
    found = di.influence(*case, measurement=MEASUREMENT, draws=DRAWS, query_draws=DRAWS, damping=1e-4)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("projected", [False, True])
def test_gradients_in_another_eigenbasis_are_refused(case, projected):
    """They have the same shapes, so scores would come out and mean nothing."""
    model, curvature, train, queries = case
    other = fit_curvature(model, train, CurvatureConfig(draws=DrawConfig(8)), seed=1)
    asked = gradients_of(model, curvature, queries, Expectation(DRAWS))
    form = di.StoreFormat("projection", dimension=16) if projected else None
    given = gradients_of(model, other, train, Expectation(DRAWS), store_format=form)
    with pytest.raises(ConfigurationError, match="train: these gradients are in the eigenbasis of another curvature"):
        di.scores_from_gradients(asked, given, curvature, damping=1e-3)
    with pytest.raises(ConfigurationError, match="queries: these gradients are in the eigenbasis of another"):
        di.scores_from_gradients(asked, given, other, damping=1e-3)
    with pytest.raises(ConfigurationError, match="another curvature than"):
        gradient_dot_scores(asked, gradients_of(model, other, train, Expectation(DRAWS)))
