"""Formats of stored gradients: what comes back, and what it costs in scores."""

import pytest
import torch
from cases import by_definition, images, in_shards, tiny_unet

import diffinf_lib as di
from diffinf_lib.attribution.scoring import damped_scores, preconditioned
from diffinf_lib.compression import (
    Compression,
    from_int4_rows,
    from_int8_rows,
    from_int8_svd,
    from_int8_tensors,
    int4_rows,
    int8_rows,
    int8_svd,
    int8_tensors,
    projected,
    random_signs,
    stored_bytes,
    truncated_svd,
)
from diffinf_lib.configuration import MEASUREMENT_PURPOSE, TRAIN_PURPOSE, DrawConfig, Expectation, StoreFormat
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import spearman
from diffinf_lib.gradients import gradients_of, sets

DRAWS = DrawConfig(6)
LOSSY = ["bfloat16", "int8", "int4", "int8_tensor", "svd", "svd_int8", "projection"]


@pytest.fixture(scope="module")
def case():
    """A tiny float32 UNet, its curvature, and gradients of 12 training images and 5 queries."""
    model, train, queries = tiny_unet().float(), images(12, 4), images(5, 4, seed=1)
    curvature = fit_curvature(model, train, by_definition(DRAWS, exact_labels=False))
    gradients = [gradients_of(model, curvature, data, Expectation(DRAWS)).held() for data in (queries, train)]
    return model, train, queries, curvature, *gradients


def scores(case, damping=1e-4, *, form=None, query_form=None):
    _, _, _, curvature, queries, train = case
    asked = queries if query_form is None else queries.packed_as(curvature, query_form)
    given = train if form is None else train.packed_as(curvature, form)
    return damped_scores(asked, given, curvature, Inverses([damping]))[0]


def rank_correlation(first, second):
    return float(spearman(first.numpy(), second.numpy()).mean())


@pytest.mark.parametrize(
    ("form", "least"),
    [
        (StoreFormat("bfloat16"), 0.999),
        (StoreFormat("int8", whitening=1e-4), 0.999),
        (StoreFormat("int4", whitening=1e-4), 0.98),
        (StoreFormat("int8_tensor"), 0.98),
        (StoreFormat("svd_int8", rank=8, whitening=1e-4), 0.999),
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
        both = rank_correlation(scores(case, form=form, query_form=form), exact)
        assert both > 1 - 2.5 * (1 - least)  # two errors, each within its bound


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


def random_matrices(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("columns", [50, 51])
@pytest.mark.parametrize("kind", ["int8", "int4", "int8_tensor"])
def test_levels_are_within_half_a_step_and_close_enough_to_use_them_all(kind, columns):
    matrices = random_matrices(3, 4, columns)
    stored, back, levels, over = {
        "int8": lambda h: (int8_rows(h), from_int8_rows(int8_rows(h)), 127, (2,)),
        "int4": lambda h: (int4_rows(h), from_int4_rows(int4_rows(h), columns), 7, (2,)),
        "int8_tensor": lambda h: (int8_tensors(h), from_int8_tensors(int8_tensors(h)), 255, (1, 2)),
    }[kind](matrices)
    width = matrices.amax(over) - matrices.amin(over) if kind == "int8_tensor" else matrices.abs().amax(over)
    torch.testing.assert_close(stored["scale"].flatten(), width.flatten() / levels)
    assert bool(((back - matrices).abs() <= 0.5000001 * stored["scale"]).all())


@pytest.mark.parametrize("columns", [14, 15])
def test_whole_numbers_survive_4_bits(columns):
    """Each of the fifteen levels, in either half of a byte, with a row of even or of odd length."""
    row = torch.arange(-7, 8)[:columns]
    matrices = torch.stack([row.roll(1), row, torch.zeros_like(row)]).unsqueeze(0).float()
    stored = int4_rows(matrices)
    assert stored["values"].dtype == torch.uint8 and stored["values"].shape == (1, 3, 8 - (columns == 14))
    torch.testing.assert_close(from_int4_rows(stored, columns), matrices, rtol=1e-6, atol=0)


def test_constant_blocks_survive_a_scale_for_each_tensor():
    """The range of a bias with one element is zero; dividing by it is what made NaN of every score."""
    for matrices in (torch.tensor([[[0.25]], [[-3.0]]]), torch.full((2, 3, 4), 1e-30), torch.zeros(1, 2, 2)):
        assert torch.equal(from_int8_tensors(int8_tensors(matrices)), matrices)


def test_an_8_bit_svd_is_near_the_svd():
    """Each direction's outer product l rᵀ is off by half a step of either side: at most max|l| · max|r| / 127 an entry."""
    matrices = random_matrices(3, 6, 5)
    exact = truncated_svd(matrices, 2)
    bound = (exact["left"].abs().amax(1) * exact["right"].abs().amax(2)).sum(1) / 127
    error = (from_int8_svd(int8_svd(matrices, 2)) - exact["left"] @ exact["right"]).abs().amax((1, 2))
    assert bool((error <= 1.000001 * bound).all()) and bool((error > 0.05 * bound).all())


@pytest.mark.parametrize("kind", ["float32", *LOSSY])
def test_bytes_are_those_that_a_gradient_takes(case, kind):
    *_, curvature, _, train = case
    train = train.whole()
    form = StoreFormat(kind, rank=3, dimension=64)
    stored = Compression(curvature, form).encode(train)
    assert all(len(value) == 12 for value in stored.values())
    shapes = [layer.shape for layer in curvature.layers.values()]
    assert stored_bytes(form, shapes) == sum(value[0].nbytes for value in stored.values())


def test_bytes_an_entry_are_those_of_the_table():
    shape = (32, 289)
    expected = {
        "float32": 4 * 32 * 289, "bfloat16": 2 * 32 * 289, "int8": 32 * 289 + 4 * 32, "int4": 32 * 145 + 4 * 32,
        "int8_tensor": 32 * 289 + 8, "svd": 4 * 3 * (32 + 289), "svd_int8": 3 * (32 + 289 + 8), "projection": 4 * 64,
    }  # fmt: skip
    assert {kind: stored_bytes(StoreFormat(kind, rank=3, dimension=64), [shape]) for kind in expected} == expected


def test_a_scale_for_each_tensor_is_in_the_basis_of_the_weights(case):
    """In the basis of the weights, where nothing is whitened, the levels are even; elsewhere they are mixed."""
    *_, curvature, _, train = case
    train = train.whole()
    stored = Compression(curvature, StoreFormat("int8_tensor")).encode(train)
    for name, layer in curvature.layers.items():
        plain = layer.from_eigenbasis(train[name])
        scale = stored[f"{name}/scale"].flatten()
        torch.testing.assert_close(scale, (plain.amax((1, 2)) - plain.amin((1, 2))) / 255, rtol=1e-5, atol=0)


def test_whitened_rows_lose_less_than_a_scale_for_each_tensor(case):
    exact = scores(case, 1e-6)
    rows, tensors = (
        float((scores(case, 1e-6, form=StoreFormat(kind, whitening=1e-6)) - exact).norm())
        for kind in ("int8", "int8_tensor")
    )
    assert rows < 0.1 * tensors


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
    curvature, queries, train = case[3], case[4].whole(), case[5].whole()
    inverses = Inverses([1e-6, 1e-2], ["ekfac", "kfac"])
    compression = Compression(curvature, StoreFormat("projection", dimension=32768, whitening=1e-4))
    stored = compression.encode(train)["projection"]
    for factor in preconditioned(queries, curvature, inverses):
        exact = sum(factor[name].flatten(1) @ train[name].flatten(1).T for name in factor)
        approximate = compression.dual(factor)["projection"] @ stored.T
        assert float((approximate - exact).norm() / exact.norm()) < 0.35


@pytest.mark.parametrize("kind", ["float32", *LOSSY])
@pytest.mark.parametrize("strided", [False, True])
def test_what_is_encoded_is_laid_out_as_it_will_be_read(case, kind, strided):
    """Strided views would take other kernels in memory than from a file."""
    _, _, _, curvature, _, train = case
    given = {name: (g.mT.contiguous().mT if strided else g) for name, g in train.whole().items()}
    encoded = Compression(curvature, StoreFormat(kind, rank=2, dimension=64)).encode(given)
    assert encoded and all(value.is_contiguous() for value in encoded.values())


@pytest.mark.parametrize("kind", LOSSY)
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
    with pytest.raises(di.errors.ArtifactError, match=f"format.kind is {kind} there, float32 asked"):
        di.influence(model, curvature, train, queries, measurement=measurement, store=tmp_path, draws=DRAWS)


def test_bad_formats_are_refused(case):
    for options, message in [
        ({"kind": "int3"}, "format='int3': give float32, bfloat16, int8, int4"),
        ({"rank": 0}, "rank=0"),
        ({"dimension": -1}, "dimension=-1"),
        ({"whitening": 0.0}, "whitening=0.0"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            StoreFormat(**options)
    with pytest.raises(ConfigurationError, match="query_format='projection'"):
        scores(case, query_form=StoreFormat("projection"))


@pytest.mark.parametrize("kind", ["float32", "int8", "int4", "int8_tensor", "svd_int8"])
def test_queries_may_come_in_shards(case, kind, monkeypatch):
    _, _, _, curvature, queries, train = case
    form, inverses = StoreFormat(kind, whitening=1e-4), Inverses([1e-4, 1e-2], ["ekfac", "kfac"])
    whole = damped_scores(queries.packed_as(curvature, form), train, curvature, inverses)
    monkeypatch.setattr(sets, "SHARD_BYTES", 1)
    packed = in_shards(queries, 2).packed_as(curvature, form)
    assert [rows for rows, _ in packed.held().shards()] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    parts = damped_scores(packed, in_shards(train, 5), curvature, inverses)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("kind", ["int8", "int4", "svd", "svd_int8"])
def test_packed_at_the_damping_gradients_are_the_preconditioned_ones(case, kind):
    """g/(Λ + λ) times √(Λ + λ) is g/√(Λ + λ): with λ₀ = λ it does not matter whether queries are packed before or after."""
    curvature, queries = case[3], case[4].whole()
    form = StoreFormat(kind, rank=1, whitening=1e-4)
    plain, divided = (Compression(curvature, form, preconditioned=flag) for flag in (False, True))
    left = plain.decode(plain.encode(queries))
    before = next(preconditioned(left, curvature, Inverses([1e-4])))
    after = divided.decode(divided.encode(next(preconditioned(queries, curvature, Inverses([1e-4])))))
    for name, gradients in after.items():
        step = (0.0 if kind == "svd" else 0.15) * float(gradients.abs().max())  # entries on the edge of two levels
        torch.testing.assert_close(before[name], gradients, rtol=1e-3, atol=step + 1e-4 * float(gradients.abs().max()))
        assert float((before[name] - gradients).norm() / gradients.norm()) < 1e-3


@pytest.mark.parametrize("kind", ["int8", "int4", "svd", "svd_int8"])
def test_queries_are_packed_once_in_their_store_and_in_memory(case, kind, tmp_path):
    model, train, queries, curvature, *_ = case
    shared = {"measurement": di.MeasurementConfig(draws=DRAWS), "draws": DRAWS, "damping": [1e-5, 1e-2]}
    form = StoreFormat(kind, rank=1, whitening=1e-4)
    asked, given = (
        gradients_of(model, curvature, data, Expectation(DRAWS, purpose)) for data, purpose in
        ((queries, MEASUREMENT_PURPOSE), (train, TRAIN_PURPOSE))
    )  # fmt: skip
    expected = damped_scores(asked.packed_as(curvature, form), given, curvature, Inverses([1e-5, 1e-2]))
    for folder in (None, tmp_path, tmp_path):
        found = di.influence(model, curvature, train, queries, query_format=form, query_store=folder, **shared)
        assert torch.equal(found, expected)
    (shard,) = tmp_path.glob("shard-*")
    sizes = [layer.shape for layer in curvature.layers.values()]
    assert shard.stat().st_size < 5 * stored_bytes(form, sizes) + 20_000
    with pytest.raises(di.errors.ArtifactError, match=f"format.kind is {kind} there, float32 asked"):
        gradients_of(model, curvature, queries, Expectation(DRAWS, MEASUREMENT_PURPOSE), store=tmp_path).whole()


def test_one_inverse_serves_every_damping_of_packed_queries(case):
    """Entries that were packed for a small damping serve a large one: the error falls with the scores."""
    for damping in (1e-8, 1e-6, 1e-4, 1e-2):
        exact = scores(case, damping)
        for kind, most in (("bfloat16", 0.01), ("int8", 0.02)):
            packed = scores(case, damping, query_form=StoreFormat(kind, whitening=1e-8))
            assert float((packed - exact).norm() / exact.norm()) < most, (damping, kind)


def test_projected_queries_need_no_format(case):
    _, _, _, curvature, queries, train = case
    given = train.packed_as(curvature, StoreFormat("projection", dimension=64))
    found = damped_scores(queries, given, curvature, Inverses([1e-6, 1e-2], ["kfac", "ekfac"]))
    duals = preconditioned(queries.whole(), curvature, Inverses([1e-6, 1e-2], ["kfac", "ekfac"]))
    stored = given.whole()["projection"]
    expected = torch.stack([given.compression.dual(dual)["projection"] @ stored.T for dual in duals]) / 12
    torch.testing.assert_close(found, expected.double(), rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_compressed_queries_rank_as_plain_ones_do(case):
    model, train, queries, curvature, *_ = case
    options = {"measurement": di.MeasurementConfig(draws=DRAWS), "draws": DRAWS, "damping": 1e-4}
    exact = di.influence(model, curvature, train, queries, **options)
    packed = di.influence(model, curvature, train, queries, query_format=StoreFormat("int8", whitening=1e-4), **options)
    assert rank_correlation(packed, exact) > 0.998
