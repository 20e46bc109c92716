"""Formats of stored gradients: what comes back, and what it costs in scores."""

import pytest
import torch
from cases import by_definition, images, tiny_unet

import diffinf_lib as di
from diffinf_lib.attribution.scoring import Inverses, KeptQueries, preconditioned
from diffinf_lib.compression import Compression, StoreFormat, int8_rows, projected, random_signs, truncated_svd
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.diffusion import DrawConfig
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import spearman
from diffinf_lib.gradients import GradientConfig, all_gradients, gradient_shards

DRAWS = DrawConfig(6)


@pytest.fixture(scope="module")
def case():
    """A tiny float32 UNet, its curvature, and gradients of 12 training images and 5 queries."""
    model, train, queries = tiny_unet().float(), images(12, 4), images(5, 4, seed=1)
    curvature = fit_curvature(model, train, by_definition(DRAWS, exact_labels=False))
    gradients = [
        all_gradients(gradient_shards(model, curvature, data, GradientConfig(DRAWS))) for data in (queries, train)
    ]
    return model, train, queries, curvature, *gradients


def scores(case, damping=1e-4, *, form=None, query_form=None):
    _, _, _, curvature, queries, train = case
    compression = Compression(curvature, form or StoreFormat())
    stored = compression.decode(compression.encode(train))
    return KeptQueries([queries], curvature, Inverses([damping]), query_form, form or StoreFormat()).scores(stored)[0]


def rank_correlation(first, second):
    return float(spearman(first.numpy(), second.numpy()).mean())


@pytest.mark.parametrize(
    ("form", "least"),
    [
        (StoreFormat("bfloat16"), 0.999),
        (StoreFormat("int8", whitening=1e-4), 0.999),
        (
            StoreFormat("svd", rank=8, whitening=1e-4),
            0.9999,
        ),  # the full rank of every block here
        (StoreFormat("projection", dimension=16384, whitening=1e-4), 0.95),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_scores_survive(case, form, least):
    exact = scores(case)
    assert rank_correlation(scores(case, form=form), exact) > least
    if form.kind != "projection":
        assert rank_correlation(scores(case, query_form=form), exact) > least
        assert rank_correlation(scores(case, form=form, query_form=form), exact) > least - 0.001


def test_a_low_rank_loses_something_and_a_higher_one_less(case):
    exact = scores(case)
    errors = [
        float((scores(case, form=StoreFormat("svd", rank=rank, whitening=1e-4)) - exact).norm()) for rank in (1, 2, 8)
    ]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-4 * float(exact.norm())


def test_projections_are_unbiased_and_sharper_with_the_dimension(case):
    exact = scores(case)
    forms = [StoreFormat("projection", dimension=dimension, whitening=1e-4) for dimension in (64, 1024, 16384)]
    errors = [float((scores(case, form=form) - exact).norm()) for form in forms]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]  # a sixteenth of the variance is a quarter of the error


def test_whitening_is_what_makes_int8_good_enough(case):
    """With λ₀ far above the damping nothing is whitened, and rows of one scale drown the small entries that count."""
    exact = scores(case, 1e-6)
    whitened, plain = (
        float((scores(case, 1e-6, form=StoreFormat("int8", whitening=w)) - exact).norm()) for w in (1e-6, 1e3)
    )
    assert whitened < 0.5 * plain


def test_rows_of_zeros_and_single_elements_survive_int8():
    matrices = torch.tensor([[[0.0, 0.0], [1e-30, -1e-30]], [[3.0, -1.0], [0.0, 1e-40]]])
    stored = int8_rows(matrices)
    back = stored["values"] * stored["scale"]
    assert bool(torch.isfinite(back).all())
    torch.testing.assert_close(back, matrices, rtol=0.01, atol=1e-38)
    single = int8_rows(torch.tensor([[[0.25]]]))
    torch.testing.assert_close(single["values"] * single["scale"], torch.tensor([[[0.25]]]))


def test_int8_is_within_half_a_step():
    matrices = torch.randn(3, 4, 50, generator=torch.Generator().manual_seed(0))
    stored = int8_rows(matrices)
    error = (stored["values"] * stored["scale"] - matrices).abs()
    assert bool((error <= 0.5001 * stored["scale"]).all())


def test_the_truncated_svd_is_the_best_of_its_rank():
    matrices = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = truncated_svd(matrices, 2)
    error = (parts["left"] @ parts["right"] - matrices).square().sum((1, 2))
    torch.testing.assert_close(error, torch.linalg.svdvals(matrices)[:, 2:].square().sum(1), rtol=1e-10, atol=1e-12)


def test_signs_are_balanced_independent_and_the_same_in_any_piece():
    whole = random_signs(0, 3000, 70, 123, torch.device("cpu"))
    assert set(whole.unique().tolist()) == {-1, 1}
    parts = torch.cat([random_signs(start, 1000, 70, 123, torch.device("cpu")) for start in (0, 1000, 2000)])
    assert torch.equal(whole, parts)
    gram = whole.double().T @ whole.double() / len(whole)
    off = gram - torch.eye(70, dtype=torch.float64)
    assert float(off.abs().max()) < 5.5 / len(whole) ** 0.5
    assert float(whole.double().mean(0).abs().max()) < 4.5 / len(whole) ** 0.5
    rows = whole.double() @ whole.double().T / 70
    assert abs(float(rows.fill_diagonal_(0).square().mean()) * 70 - 1) < 0.05
    assert not torch.equal(whole, random_signs(0, 3000, 70, 124, torch.device("cpu")))


def test_signs_stay_what_they_are():
    """Stores on disk were projected with these very signs."""
    assert random_signs(5, 2, 8, 1, torch.device("cpu")).tolist() == EXPECTED_SIGNS


EXPECTED_SIGNS = [[-1, 1, -1, 1, -1, 1, 1, 1], [1, -1, -1, -1, -1, 1, 1, 1]]


def test_projected_in_chunks_is_the_same():
    gradients = {"a": torch.randn(2, 5, 7, dtype=torch.float64), "b": torch.randn(2, 3, 4, dtype=torch.float64)}
    torch.testing.assert_close(projected(gradients, 16, chunk=64), projected(gradients, 16), rtol=1e-12, atol=1e-12)


def test_dual_keeps_the_inner_product_for_every_damping(case):
    _, _, _, curvature, queries, train = case
    inverses = Inverses([1e-6, 1e-2], ["ekfac", "kfac"])
    compression = Compression(curvature, StoreFormat("projection", dimension=32768, whitening=1e-4))
    stored = compression.encode(train)["projection"]
    for factor in preconditioned(queries, curvature, inverses):
        exact = sum(factor[name].flatten(1) @ train[name].flatten(1).T for name in factor)
        approximate = compression.dual(factor)["projection"] @ stored.T
        assert float((approximate - exact).norm() / exact.norm()) < 0.35


@pytest.mark.parametrize("kind", ["bfloat16", "int8", "svd", "projection"])
def test_a_compressed_store_is_read_back_as_it_was_used(case, kind, tmp_path):
    model, train, queries, curvature, *_ = case
    form = StoreFormat(kind, rank=2, dimension=64)
    options = {"draws": DRAWS, "damping": [1e-6, 1e-3], "approximation": ["ekfac", "kfac"], "train_format": form}
    measurement = di.MeasurementConfig(draws=DRAWS)
    once = di.influence(model, curvature, train, queries, measurement=measurement, **options)
    kept = di.influence(model, curvature, train, queries, measurement=measurement, store=tmp_path, **options)
    again = di.influence(model, curvature, train, queries, measurement=measurement, store=tmp_path, **options)
    assert once.shape == (2, 2, 5, 12)
    assert torch.equal(kept, once) and torch.equal(again, once)
    with pytest.raises(di.ArtifactError, match=f"format.kind is {kind} there, float32 asked"):
        di.influence(model, curvature, train, queries, measurement=measurement, store=tmp_path, draws=DRAWS)


def test_bad_formats_are_refused(case):
    for options, message in [
        ({"kind": "int4"}, "format='int4'"),
        ({"rank": 0}, "rank=0"),
        ({"dimension": -1}, "dimension=-1"),
        ({"whitening": 0.0}, "whitening=0.0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            StoreFormat(**options)
    with pytest.raises(ConfigurationError, match="query_format='projection'"):
        scores(case, query_form=StoreFormat("projection"))


@pytest.mark.parametrize("form", [None, StoreFormat("int8", whitening=1e-4)], ids=["plain", "int8"])
def test_queries_may_come_in_shards(case, form):
    _, _, _, curvature, queries, train = case
    inverses = Inverses([1e-4, 1e-2], ["ekfac", "kfac"])
    shards = [{name: gradient[rows] for name, gradient in queries.items()} for rows in (slice(0, 2), slice(2, 5))]
    parts = KeptQueries(iter(shards), curvature, inverses, form).scores(train)
    whole = KeptQueries([queries], curvature, inverses, form).scores(train)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


def test_compressed_queries_reach_the_scores_and_their_store(case, tmp_path):
    model, train, queries, curvature, *_ = case
    options = {"measurement": di.MeasurementConfig(draws=DRAWS), "draws": DRAWS, "damping": 1e-4}
    exact = di.influence(model, curvature, train, queries, **options)
    form = StoreFormat("int8", whitening=1e-4)
    once = di.influence(model, curvature, train, queries, query_format=form, **options)
    kept = di.influence(model, curvature, train, queries, query_format=form, query_store=tmp_path, **options)
    assert torch.equal(once, kept)
    assert rank_correlation(once, exact) > 0.998
