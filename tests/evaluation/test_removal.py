import numpy as np
import pytest
from annotations import unchecked

from diffinf_lib.errors import ConfigurationError, DataError
from diffinf_lib.evaluation import removal_outcome


def experiment(generator, queries=12, seeds=2, sets=3, *, shift=1.0, shared=0.3, noise=0.5):
    """Retrained measurements: top removal raises them by `shift` on average; a seed shifts all its models."""
    level = 5 + generator.normal(size=(queries, 1, 1))
    effect = shift + 0.3 * generator.normal(size=(queries, 1, 1))
    seed_shift = shared * generator.normal(size=(1, 1, seeds))

    def retrained(change, count):
        return level + change + seed_shift + noise * generator.normal(size=(queries, count, seeds))

    full = retrained(0.0, 1)[:, 0]
    return {"top": retrained(effect, 1)[:, 0], "random": retrained(0.2, sets), "bottom": retrained(-0.1, 1)}, full


def test_changes_are_means_against_the_full_models():
    conditions, full = experiment(np.random.default_rng(0))
    outcome = removal_outcome(conditions, full)
    for name, values in conditions.items():
        expected = values.reshape(12, -1).mean(1) - full.mean(1)
        np.testing.assert_allclose(outcome.changes[name].per_query, expected)
        assert outcome.changes[name].mean == pytest.approx(expected.mean())
        assert outcome.changes[name].positive == (expected > 0).mean()
        assert outcome.relative[name] == pytest.approx(expected.mean() / full.mean())
    assert list(outcome.differences) == ["top − random", "top − bottom", "random − bottom"]
    difference = outcome.differences["top − random"]
    np.testing.assert_allclose(difference.per_query, conditions["top"].mean(1) - conditions["random"].mean((1, 2)))
    assert difference.interval[0] > 0
    assert len(str(outcome).splitlines()) == 6


def test_what_conditions_share_cancels_in_their_differences():
    """Noise of the full models and of seeds is in every change and in no difference."""
    generator = np.random.default_rng(0)
    conditions, full = experiment(generator, noise=0.0, shared=5.0)
    outcome = removal_outcome(conditions, full + 3 * generator.normal(size=full.shape))
    width = {name: np.ptp(change.interval) for name, change in (outcome.changes | outcome.differences).items()}
    assert width["top"] > 1
    assert width["top − random"] < 0.5
    assert width["random − bottom"] == pytest.approx(0)


def test_a_known_change_without_noise_is_found_exactly():
    full = np.arange(6.0).reshape(3, 2)
    outcome = removal_outcome({"top": full + 2, "random": np.stack([full, full + 1], axis=1)}, full)
    assert outcome.changes["top"].mean == pytest.approx(2)
    assert outcome.changes["top"].interval == pytest.approx((2, 2))
    assert outcome.changes["random"].mean == pytest.approx(0.5)


def test_changes_themselves_are_taken_as_they_are():
    """Distances between pictures have no full model to be held against: the same as against zeros, and relative to nothing."""
    conditions, _ = experiment(np.random.default_rng(0))
    outcome = removal_outcome(conditions, None)
    against = removal_outcome(conditions, np.zeros((12, 1)) + 1)
    for name, change in outcome.changes.items():
        assert change.mean == pytest.approx(against.changes[name].mean + 1) == conditions[name].mean()
        assert change.interval == pytest.approx(tuple(end + 1 for end in against.changes[name].interval))
    assert outcome.relative == {}


def test_measurements_below_zero_keep_the_sign_of_the_relative_change():
    full = np.full((3, 2), -4.0)
    assert removal_outcome({"top": full - 1}, full).relative["top"] == -0.25


def test_intervals_cover():
    """At least nominal: what is random by query and by seed is drawn on both axes. 95% of 300, less 3 standard errors."""
    generator, hits = np.random.default_rng(0), {"top": 0, "top − random": 0}
    truths = {"top": 1.0, "top − random": 0.8}
    for _ in range(300):
        outcome = removal_outcome(*experiment(generator, seeds=4), bootstrap=300)
        for name, value in truths.items():
            low, high = (outcome.changes | outcome.differences)[name].interval
            hits[name] += low <= value <= high
    assert min(hits.values()) >= 274


def test_seeds_may_differ_in_number_from_the_full_models():
    conditions, full = experiment(np.random.default_rng(0), seeds=1)
    outcome = removal_outcome(conditions, np.concatenate([full, full + 1, full + 2], axis=1))
    assert outcome.changes["top"].mean == pytest.approx(conditions["top"].mean() - full.mean() - 1)


def test_bad_input_is_refused():
    conditions, full = experiment(np.random.default_rng(0))
    for changed, whole, message in [
        ({}, full, "there are none"),
        ({"top": conditions["top"][:5]}, full, "top: 5 queries, but the full models have 12"),
        ({"top": conditions["top"][0]}, full, r"top: measurements of shape \(2,\); give \[Q, K\] or \[Q, sets, K\]"),
        (conditions, full[:, 0], r"full: measurements of shape \(12,\); give \[Q, K\]"),
    ]:
        with unchecked(), pytest.raises(ConfigurationError, match=message):
            removal_outcome(changed, whole)
    with pytest.raises(DataError, match="random: some measurements are NaN"):
        removal_outcome({"random": np.nan * conditions["random"]}, full)
