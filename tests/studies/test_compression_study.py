"""The compression study on the smoke preset: a format's scores are those of its gradients, kept once, and bundled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import diffinf_lib as di
from diffinf_lib.attribution.scoring import preconditioned
from diffinf_lib.compression import Compression
from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.studies import compression
from diffinf_lib.studies.compression import FORMATS, USES, CompressionStudy, pearson


def truth_of(run, queries, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.stack([torch.randperm(24, generator=generator) < 12 for _ in range(6)])
    measurements = torch.rand(6, 2, len(queries), generator=generator, dtype=torch.float64)
    return di.evaluation.GroundTruth(masks, measurements, run.data.train.ids, queries.ids, queries.images)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    run = di.open_run(di.get_preset("smoke"), tmp_path_factory.mktemp("compression") / "run", progress=False)
    queries = run.data.queries
    few = di.ImageSet(queries.images[:4].flip(-1), queries.labels[:4], queries.ids[:4] + 100)
    return CompressionStudy(run, {"held-out": truth_of(run, queries, 0), "flipped": truth_of(run, few, 1)})


@pytest.mark.parametrize("label", ["int8", "svd, rank 4, int8", "int8 a tensor, not whitened", "projection to 1,024"])
def test_packed_training_gradients_score_as_influence_does_with_the_format(study, label):
    preset = study.run.preset
    found = study.scores(study.form(label))["training gradients"]
    for name, truth in study.truths.items():
        scores = di.influence(
            di.runs.full_model(study.run).model, study.curvature, study.run.data.train, truth.queries,
            measurement=preset.measurement, draws=preset.gradient_draws, damping=preset.damping, train_format=study.form(label),
        )  # fmt: skip
        torch.testing.assert_close(found[name], scores, rtol=1e-4, atol=1e-5 * float(scores.abs().max()))


@pytest.mark.parametrize("label", ["int4", "svd, rank 2"])
def test_packed_queries_are_preconditioned_ones(study, label):
    form, train, asked = study.form(label), study.train, study.query_gradients.whole()
    packed = Compression(study.curvature, form, preconditioned=True)
    queries = packed.decode(packed.encode(next(preconditioned(asked, study.curvature, study.inverses))))
    found = study.scores(form)
    for use, gradients in (("queries", train), ("both", train.packed_as(study.curvature, form))):
        given = gradients.whole()
        expected = sum(torch.einsum("qoi,noi->qn", queries[name], given[name]).double() for name in given) / 24
        scores = torch.cat([found[use][name] for name in study.truths])
        torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
        assert not torch.allclose(scores, torch.cat(list(study.exact.values())), rtol=0.01)


def test_results_are_the_lds_and_the_correlations(study):
    found, scores = study.results("svd, rank 1"), study.scores(study.form("svd, rank 1"))
    for name, truth in study.truths.items():
        for index, use in enumerate(USES):
            expected = di.lds(scores[use][name], truth)
            difference, interval = di.paired_difference(scores[use][name], study.exact[name], truth)
            np.testing.assert_allclose(found[f"{name}/lds"][index], expected.per_query, atol=1e-12)
            np.testing.assert_allclose(found[f"{name}/difference"][index], [difference, *interval], atol=1e-12)
            for key, by_scipy in (("rank_correlation", spearmanr), ("correlation", pearsonr)):
                pairs = zip(scores[use][name], study.exact[name], strict=True)
                correlations = [by_scipy(packed, exact).statistic for packed, exact in pairs]
                np.testing.assert_allclose(found[f"{name}/{key}"][index], correlations, atol=1e-9)
                assert 0 < np.mean(correlations) < 0.99999


def test_pearson_is_scipys():
    first, second = np.random.default_rng(0).normal(size=(2, 5, 30))
    expected = [pearsonr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(pearson(first, second), expected, rtol=1e-12)
    assert pearson(np.ones((1, 3)), first[:1, :3]) == 0


def test_formats_are_kept_and_bundled(study, tmp_path, monkeypatch):
    labels = ["float32", "int8", "svd, rank 1", "projection to 256"]
    first, later = (CompressionStudy(study.run, study.truths, formats=labels) for _ in range(2))
    assert list(first.shard()) == labels
    for name in ("train_gradients", "query_gradients"):
        monkeypatch.setattr(compression, name, lambda *_: pytest.fail("a kept format was computed again"))
    assert list(later.shard()) == labels
    made, again = (di.load_bundle(s.bundle(n, tmp_path).name, root=tmp_path) for s, n in ((first, "a"), (later, "b")))
    for key, values in made.arrays.items():
        np.testing.assert_array_equal(values, again.arrays[key])
    lds, difference = made.arrays["held-out/lds"], made.arrays["flipped/difference"]
    assert lds.shape == (4, 3, 6) and difference.shape == (4, 3, 3)
    assert np.isnan(lds[3, 1]).all() and np.isfinite(lds[:3]).all() and np.isfinite(lds[3, [0, 2]]).all()
    np.testing.assert_allclose(made.arrays["held-out/rank_correlation"][0], 1, atol=1e-3)
    np.testing.assert_array_equal(made.arrays["flipped/difference"][0, 0], 0)
    means = made.metrics["means"]
    assert means["held-out/lds"][3][1] is None
    np.testing.assert_allclose(means["held-out/lds"][1], lds[1].mean(-1), rtol=1e-6)
    assert made.metrics["bytes"][0] == 1 and 0.25 < made.metrics["bytes"][1] < 0.35
    assert made.arrays["bytes"][3] == 4 * 256


def test_every_format_of_the_study_is_one(study):
    sizes = {label: study.stored_bytes(label) / study.stored_bytes("float32") for label in FORMATS}
    assert sizes["int4"] < sizes["int8"] < sizes["bfloat16"] == 0.5
    assert sizes["svd, rank 4, int8"] < 0.4 * sizes["svd, rank 4"]
    assert study.form("int8").whitening == study.run.preset.damping
    with pytest.raises(ConfigurationError, match="format='int2': give one of float32; bfloat16; int8; int4"):
        study.form("int2")


def test_runs_that_pack_and_foreign_ground_truths_are_refused(study):
    preset = replace(study.run.preset, store_format=di.StoreFormat("int8"))
    with pytest.raises(ConfigurationError, match=r"store_format=int8: .* give store_format.kind=float32"):
        CompressionStudy(replace(study.run, preset=preset), study.truths)
    foreign = replace(study.truths["flipped"], train_ids=study.run.data.train.ids + 1)
    with pytest.raises(DataError, match="ground truth of flipped: its training images are not those of this run"):
        CompressionStudy(study.run, {"flipped": foreign})
