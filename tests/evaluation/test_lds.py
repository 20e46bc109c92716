import numpy as np
import pytest
import scipy.stats
import torch
from annotations import unchecked
from simulated import simulated, truth_of

import diffinf_lib as di
from diffinf_lib.errors import ArtifactError, ConfigurationError, DataError
from diffinf_lib.evaluation import predicted_changes, spearman


def test_lds_is_the_mean_spearman_over_queries():
    scores, truth = simulated()
    noisy = scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    expected = []
    for q in range(8):
        predicted = [sum(float(noisy[q, n]) for n in range(30) if not truth.masks[k, n]) for k in range(40)]
        expected.append(scipy.stats.spearmanr(predicted, truth.measurements[:, :, q].mean(1)).statistic)
    result = di.lds(noisy, truth)
    np.testing.assert_allclose(result.per_query, expected, rtol=1e-10)
    assert result.mean == pytest.approx(np.mean(expected))
    assert result.interval[0] < result.mean < result.interval[1]


def test_signs_matter():
    scores, truth = simulated(noise=0.0)
    assert di.lds(scores, truth).mean == pytest.approx(1.0)
    assert di.lds(-scores, truth).mean == pytest.approx(-1.0)


def test_the_ceiling_is_one_seed_against_the_others():
    _, truth = simulated(seeds=2)
    pairs = [scipy.stats.spearmanr(*truth.measurements[:, :, q].T).statistic for q in range(8)]
    assert di.ceiling(truth) == pytest.approx(np.mean(pairs))
    _, single = simulated(seeds=1)
    assert np.isnan(di.lds(np.zeros((8, 30)), single).ceiling)


def test_random_scores_have_an_interval_around_zero():
    _, truth = simulated(subsets=60, queries=20)
    low, high = di.lds(di.attribution.random_scores(20, 30), truth).interval
    assert low < 0 < high


def test_the_interval_covers_the_value_of_a_large_ground_truth():
    """Ground truths of 30 subsets cut from one of 3,000: the interval of each should hold the large one's value."""
    scores, large = simulated(subsets=3000, queries=6, noise=1.5)
    guess = scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
    value = spearman(predicted_changes(guess, large), large.measurements.mean(1).T.numpy()).mean()
    hits = 0
    for part in range(60):
        low, high = di.lds(guess, large.select(torch.arange(50 * part, 50 * part + 30)), bootstrap=200).interval
        hits += low <= value <= high
    # nominal 95%, and more, since the queries are the same ones every time
    assert hits >= 52


def test_disattenuation_recovers_the_lds_of_measurements_without_noise():
    scores, truth = simulated(subsets=600, seeds=4, noise=1.5)
    guess = scores + torch.randn(scores.shape, generator=torch.Generator().manual_seed(2))
    result = di.lds(guess, truth, bootstrap=2)
    clean = (scores @ (~truth.masks).double().T).T.unsqueeze(1)
    expected = di.lds(guess, truth_of(truth.masks, clean), bootstrap=2).mean
    assert result.disattenuated == pytest.approx(expected, abs=0.03)
    assert result.mean < expected - 0.1
    assert result.disattenuated == pytest.approx(result.mean / result.reliability**0.5)


def test_there_is_nothing_to_disattenuate_by_with_one_seed_or_seeds_that_disagree():
    scores, truth = simulated(seeds=1)
    assert np.isnan(di.lds(scores, truth).disattenuated)
    opposite = torch.cat([truth.measurements, -truth.measurements], dim=1)
    assert np.isnan(di.lds(scores, truth_of(truth.masks, opposite)).disattenuated)


def test_a_result_prints_in_one_short_line():
    text = str(di.lds(*simulated()))
    assert "disattenuated" in text and "ceiling" in text and "\n" not in text and len(text) <= 100


def test_paired_differences_share_their_resamples():
    scores, truth = simulated()
    same, interval = di.paired_difference(scores, scores, truth)
    assert same == 0 and interval == (0, 0)
    noisy = scores + 2 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))
    difference, (low, high) = di.paired_difference(scores, noisy, truth)
    assert difference == pytest.approx(di.lds(scores, truth).mean - di.lds(noisy, truth).mean)
    assert 0 < low < difference < high


def test_bad_input_is_refused():
    scores, truth = simulated()
    with pytest.raises(ConfigurationError, match=r"\(30, 8\): this ground truth needs \[Q, N\] = \(8, 30\)"):
        di.lds(scores.T, truth)
    with pytest.raises(DataError, match="NaN"):
        di.lds(scores.masked_fill(scores > 2, float("nan")), truth)
    with pytest.raises(ConfigurationError, match="subsets=41: the ground truth holds 40"):
        truth.first_subsets(41)
    with pytest.raises(ConfigurationError, match="3 subsets: too few"):
        di.lds(scores, truth.first_subsets(3))
    parts = (truth.masks, truth.measurements, truth.train_ids, truth.query_ids)
    for position, wrong, message in [
        (0, truth.masks.double(), "give bool"),
        (0, truth.masks[:-1], "M differs"),
        (0, torch.ones_like(truth.masks), "keeps all images"),
        (1, truth.measurements[0], "give \\[M, K, Q\\]"),
        (2, truth.train_ids[1:], "N differs"),
        (3, truth.query_ids[1:], "Q differs"),
    ]:
        changed = list(parts)
        changed[position] = wrong
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            di.evaluation.GroundTruth(*changed)
    with pytest.raises(DataError, match="NaN"):
        di.evaluation.GroundTruth(truth.masks, truth.measurements * float("nan"), truth.train_ids, truth.query_ids)


def test_parts_of_a_ground_truth_hold_one_entry_for_each_query():
    _, truth = simulated()
    for field, name in (("query_images", "query images"), ("full_measurements", "full measurements")):
        with unchecked(), pytest.raises(ConfigurationError, match=f"{name} of 7 queries, measurements of 8"):
            truth_of(truth.masks, truth.measurements, **{field: torch.zeros(7)})


def test_queries_among_the_training_images_are_flagged_in_one_line():
    _, truth = simulated()
    ids = truth.query_ids.clone()
    ids[[1, 5]] = torch.tensor([3, 29])
    with pytest.warns(UserWarning, match=r"queries 3, 29 are training images \(2 of 8\)") as caught:
        di.evaluation.GroundTruth(truth.masks, truth.measurements, truth.train_ids, ids)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    with pytest.warns(UserWarning, match=r"queries 0, 1, 2, … are training images \(8 of 8\)"):
        di.evaluation.GroundTruth(truth.masks, truth.measurements, truth.train_ids, torch.arange(8))


def test_constant_measurements_are_flagged_and_score_nothing():
    scores, truth = simulated()
    measured = truth.measurements.clone()
    measured[:, :, 2] = 0.5
    with pytest.warns(UserWarning, match=r"query 1002 are the same"):
        flagged = truth_of(truth.masks, measured)
    assert di.lds(scores, flagged).per_query[2] == 0


def test_an_unknown_set_of_queries_is_refused(tmp_path):
    di.artifacts.write_bundle(
        "g-ground-truth", {"masks": np.ones((2, 2), bool), "held-out/ids": np.arange(2)}, {}, {}, root=tmp_path
    )
    with pytest.raises(ConfigurationError, match="bundle g-ground-truth has held-out"):
        di.load_ground_truth("g-ground-truth", "sampled", root=tmp_path)
    with pytest.raises(ArtifactError, match="there are: g-ground-truth; make one with `diffinf reproduce PRESET`"):
        di.load_ground_truth("h", root=tmp_path)


def test_an_interval_from_few_subsets_is_flagged():
    scores, truth = simulated(subsets=10)
    with pytest.warns(UserWarning, match="7 subsets: the interval of an LDS from so few is too narrow; take 8 or more"):
        di.lds(scores, truth.first_subsets(7))
    with pytest.raises(ConfigurationError, match="subsets=0: the ground truth holds 10; ask for 1 to 10"):
        truth.first_subsets(0)
