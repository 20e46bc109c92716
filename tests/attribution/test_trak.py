"""TRAK against dense algebra, against influence on the empirical Fisher, and against traker."""

import pytest
import torch
from annotations import unchecked
from cases import by_definition, draw_batch, images, in_shards, linear_denoiser, out_of_eigenbasis

import diffinf_lib as di
from diffinf_lib.attribution import trak as module
from diffinf_lib.attribution.trak import Trak, TrakKernel, gradient_products, gram_matrix, trak_scores
from diffinf_lib.compression import projected
from diffinf_lib.configuration import DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.exact import dense_empirical_fisher
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.gradients import GradientSet, gradients_of, sets

SHAPES = {"first": (3, 4), "second": (2, 5)}  # 22 weights


def gradients(count, seed=0, shapes=SHAPES, kind=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return GradientSet.of({
        name: torch.randn(count, *shape, generator=generator, dtype=torch.float64).to(kind)
        for name, shape in shapes.items()
    })  # fmt: skip


def flat(gradients):
    return torch.cat([part.flatten(1).double() for part in gradients.whole().values()], dim=1)


def changed(gradients, change):
    """What a function makes of each block."""
    return GradientSet.of({name: change(part) for name, part in gradients.whole().items()})


def short(gradients, dimension, **options):
    return projected(gradients.whole(), dimension, **options)


def by_weights(queries, train, damping):
    """φ_q (ΦᵀΦ + λI)⁻¹ φ_n through the P×P matrix."""
    features = flat(train)
    inner = features.T @ features + damping * torch.eye(features.shape[1], dtype=torch.float64)
    return flat(queries) @ torch.linalg.pinv(inner, hermitian=True) @ features.T


@pytest.mark.parametrize("count", [7, 22, 40])
def test_inner_products_give_what_the_matrix_over_weights_gives(count):
    queries, train, dampings = gradients(3, 1), gradients(count), [0.0, 1e-3, 5.0]
    scores = trak_scores(queries, train, damping=dampings)
    assert scores.shape == (3, 3, count) and scores.dtype == torch.float64
    for index, damping in enumerate(dampings):
        torch.testing.assert_close(scores[index], by_weights(queries, train, damping), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("count", "dimension"), [(9, 16), (40, 16), (16, 16)])
def test_the_projected_form_is_the_same_algebra_on_projected_gradients(count, dimension):
    queries, train, dampings = gradients(3, 1), gradients(count), [0.0, 1e-3, 5.0]
    scores = trak_scores(queries, train, damping=dampings, dimension=dimension, seed=4)
    kept = [GradientSet.of({"all": short(part, dimension, seed=4).unsqueeze(1)}) for part in (queries, train)]
    for index, damping in enumerate(dampings):
        torch.testing.assert_close(scores[index], by_weights(*kept, damping), rtol=1e-6, atol=1e-8)


def test_the_projection_error_falls_like_one_over_the_root_of_the_dimension():
    queries, train = gradients(4, 1), gradients(12)
    exact = trak_scores(queries, train, damping=10.0)
    errors = []
    for dimension in (256, 1024, 4096):
        found = [trak_scores(queries, train, damping=10.0, dimension=dimension, seed=seed) for seed in range(40)]
        squares = torch.stack([(one - exact).square().sum() for one in found]).mean()
        errors.append(float((squares / exact.square().sum()).sqrt()))
    ratios = [before / after for before, after in zip(errors, errors[1:], strict=False)]
    assert all(1.7 < ratio < 2.3 for ratio in ratios), errors
    assert errors[-1] < 0.1


def test_no_damping_is_a_pseudo_inverse_in_float32_too():
    """Copies make the Gram matrix singular: dividing its rounding by itself would swamp scores; copies share their part."""
    queries, once = gradients(3, 1, kind=torch.float32), gradients(6, kind=torch.float32)
    twice = changed(once, lambda part: torch.cat([part, part]))
    scores = trak_scores(queries, twice, damping=0.0)[0]
    torch.testing.assert_close(scores, by_weights(queries, twice, 0.0), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(scores[:, :6], trak_scores(queries, once, damping=0.0)[0] / 2, rtol=1e-6, atol=1e-8)
    nothing = changed(once, torch.zeros_like)
    for dimension in (None, 4, 16):
        assert torch.equal(trak_scores(queries, nothing, damping=[0.0, 1.0], dimension=dimension), torch.zeros(2, 3, 6))


def test_a_nearly_singular_gram_does_not_amplify_rounding():
    """Rank 5 in exact arithmetic, float32 rounding in the rest: no damping gives the scores of the five directions."""
    generator = torch.Generator().manual_seed(3)
    weights, mixed, asked = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 60), (20, 5), (3, 5))
    )
    exact = [GradientSet.of({"a": (rows @ weights).unsqueeze(1)}) for rows in (asked, mixed)]
    rounded = [changed(part, torch.Tensor.float) for part in exact]
    expected = by_weights(*exact, 0.0)
    scores = trak_scores(*rounded, damping=0.0)[0]
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_shards_give_the_same_as_one_piece(monkeypatch):
    queries, train = gradients(5, 1), gradients(11)
    for up_to in (sets.SHARD_BYTES, 1):
        monkeypatch.setattr(sets, "SHARD_BYTES", up_to)
        for dimension in (None, 8, 64):
            options = {"damping": [0.1, 1.0], "dimension": dimension}
            whole = trak_scores(queries, train, **options)
            parts = trak_scores(in_shards(queries, 2), in_shards(train, 4), **options)
            torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gram_matrix(in_shards(train, 4)), flat(train) @ flat(train).T, rtol=1e-12, atol=1e-12)


def test_wide_blocks_are_multiplied_in_pieces(monkeypatch):
    queries, train = gradients(3, 1, kind=torch.float32), gradients(5, kind=torch.float32)
    monkeypatch.setattr(module, "COPIED_ENTRIES", 24)  # three columns at a time
    torch.testing.assert_close(gradient_products(queries, train), flat(queries) @ flat(train).T, rtol=1e-12, atol=1e-12)


def test_losses_give_influence_on_the_empirical_fisher_with_its_scale():
    """(1/N) ∇m (F + λ'I)⁻¹ ∇ℓ, F = GGN^loss per example, by dense algebra over weights, is TRAK with λ = Nλ'."""
    model, train, queries, draws = linear_denoiser(), images(6, 2), images(3, 2, seed=1), DrawConfig(4)
    curvature = fit_curvature(model, train, by_definition(draws))  # its eigenbasis rotates the gradients
    config = Expectation(draws)
    rotated = [gradients_of(model, curvature, data, config) for data in (queries, train)]
    plain = [flat(out_of_eigenbasis(curvature, part)) for part in rotated]
    fisher = dense_empirical_fisher(model, draw_batch(train, draws, purpose=config.purpose), per="example")
    dampings = [1e-3, 0.5]
    scores = trak_scores(*rotated, damping=[6 * damping for damping in dampings])
    for index, damping in enumerate(dampings):
        inverse = torch.linalg.inv(fisher + damping * torch.eye(len(fisher), dtype=torch.float64))
        torch.testing.assert_close(scores[index], plain[0] @ inverse @ plain[1].T / 6, rtol=1e-7, atol=1e-12)
    own = trak_scores(rotated[1], rotated[1], damping=0.1)[0]
    assert bool((own.diagonal() > 0).all())  # leaving an image out raises its own loss


def test_relative_damping_is_a_fraction_of_the_mean_squared_length():
    queries, train = gradients(3, 1), gradients(9)
    unit = float(flat(train).square().sum(1).mean())
    relative = trak_scores(queries, train, damping=0.1, damping_kind="relative")
    torch.testing.assert_close(relative, trak_scores(queries, train, damping=0.1 * unit), rtol=1e-10, atol=1e-12)
    many = changed(train, lambda part: part.repeat(4, 1, 1))
    ready = Trak(many, dimension=8)
    mean = float(short(many, 8).square().sum(1).mean())
    found = ready.scores(queries, 0.1, damping_kind="relative")
    torch.testing.assert_close(found, ready.scores(queries, 0.1 * mean), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dimension", [12, 32])
def test_traker_gives_the_same_scores_from_the_same_projected_gradients(dimension):
    """traker's own score computers: the plain one with its scale, the block-wise one up to the mean it divides by."""
    computers = pytest.importorskip("trak.score_computers")

    class SingleBlock(computers.BasicSingleBlockScoreComputer):
        def __init__(self, dtype, device):  # abstract there
            super().__init__(dtype, device)

    queries, train = (gradients(count, seed, kind=torch.float32) for count, seed in ((5, 1), (40, 0)))
    short_queries, short_train = (short(part, dimension) for part in (queries, train))
    damping = 3.0
    ours = trak_scores(queries, train, damping=damping, dimension=dimension)[0]

    plain, accumulator = SingleBlock(torch.float32, torch.device("cpu")), torch.zeros(40, 5)
    inner = plain.get_xtx(short_train) + damping * torch.eye(dimension)
    plain.get_scores(plain.get_x_xtx_inv(short_train, inner), short_queries, accumulator)
    assert float((ours.T - accumulator).norm() / ours.norm()) < 1e-4

    blocks = computers.BasicScoreComputer(torch.float32, torch.device("cpu"), CUDA_MAX_DIM_SIZE=16, lambda_reg=damping)
    accumulator = torch.zeros(40, 5)
    features = blocks.get_x_xtx_inv(short_train, blocks.get_xtx(short_train))
    blocks.get_scores(features, short_queries, accumulator)
    unscaled = accumulator * torch.linalg.inv(inner.double()).abs().mean()
    assert float((ours.T - unscaled).norm() / ours.norm()) < 1e-4


def test_bad_input_is_refused_in_one_line():
    queries, train = gradients(3, 1), gradients(5)
    first = train.whole()["first"]
    other = GradientSet.of({"first": first, "second": train.whole()["second"][:, :, :4]})
    model, data = linear_denoiser(), images(2, 2)
    curvature = fit_curvature(model, data, by_definition(DrawConfig(4)))
    stored = gradients_of(
        model, curvature, data, Expectation(DrawConfig(4)), store_format=StoreFormat("projection", dimension=8)
    )
    for options, message in [
        ({"damping": -1.0}, "damping=-1.0: give a number >= 0"),
        ({"damping": [1.0, float("nan")]}, "damping=nan"),
        ({"damping_kind": "per_cent"}, "damping_kind='per_cent'"),
        ({"dimension": 0}, "dimension=0: give a positive number"),
        ({"train": other}, r"layer second: gradients of shape \(2, [45]\), \(2, [45]\)"),
        ({"train": GradientSet.of({"first": first})}, "layer second: gradients of shape .*none"),
        ({"train": stored}, "a projection has forgotten its blocks"),
        ({"queries": stored}, "a projection has forgotten its blocks"),
    ]:
        for dimension in (None, 8):
            arguments = {"queries": queries, "train": train, "damping": 1.0, "dimension": dimension} | options
            with unchecked(), pytest.raises(ConfigurationError, match=message) as refusal:
                trak_scores(**arguments)
            assert "\n" not in str(refusal.value)


def test_one_decomposition_serves_every_query_and_damping():
    queries, train = gradients(3, 1), gradients(5)
    ready = Trak(train)
    kernel = TrakKernel.of_gram(gram_matrix(train))
    for damping in (0.1, [0.1, 2.0]):
        expected = trak_scores(queries, train, damping=damping)
        torch.testing.assert_close(ready.scores(queries, damping), expected)
        torch.testing.assert_close(kernel.scores(gradient_products(queries, train), damping), expected)
    dot = di.attribution.gradient_dot_scores(queries, train)  # what is left of TRAK under a heavy damping
    torch.testing.assert_close(ready.scores(queries, 1e9)[0] * 1e9, dot, rtol=1e-6, atol=1e-6)
