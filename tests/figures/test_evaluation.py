import numpy as np
import pytest

from diffinf_lib import figures
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import constancy, signs


def test_changes_lie_at_their_prediction_and_the_title_counts_rises():
    predicted, real = np.array([[1.0, -2.0], [3.0, -4.0]]), np.array([[0.5, 0.6], [0.7, -0.8]])
    figure = figures.sign_scatter({"a": signs(predicted, real, bootstrap=20)}, label="ELBO")
    (axes,) = figure.axes
    points = axes.lines[0]
    np.testing.assert_allclose(points.get_xdata(), predicted.ravel())
    np.testing.assert_allclose(points.get_ydata(), real.ravel())
    assert axes.get_title() == "a\nrises: predicted 50 %, real 75 %"
    with pytest.raises(ConfigurationError, match="at least one"):
        figures.sign_scatter({})


def test_queries_come_in_order_with_one_spread_each_side():
    generator = np.random.default_rng(0)
    study = constancy(generator.normal(size=(6, 3, 4)) + np.array([3.0, 1.0, 4.0, 2.0]), bootstrap=20)
    axes = figures.constancy_spread({"held-out": study}, label="loss").axes[0]
    order = np.argsort(study.query_means)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), np.sort(study.query_means))
    for bars, spread in zip(axes.containers, (study.seed_spread, study.subset_spread), strict=True):
        ends = np.array(bars[2][0].get_segments())[:, :, 1]
        np.testing.assert_allclose((ends[:, 1] - ends[:, 0]) / 2, spread[order])


def test_one_seed_has_no_spread_between_seeds():
    study = constancy(np.random.default_rng(0).normal(size=(6, 1, 4)), bootstrap=20)
    (bars,) = figures.constancy_spread({"a": study}, label="loss").axes[0].containers
    assert bars.get_label() == "± s.d. between subsets"
    with pytest.raises(ConfigurationError, match="at least one"):
        figures.constancy_spread({}, label="loss")


def test_power_is_drawn_in_points_with_a_tick_for_each_number_of_subsets():
    curves = {"a": {1: [0.1, 0.05], 3: [0.08, 0.04]}, "b": {1: [0.02, 0.01]}}
    axes = figures.power_curves(curves, [16, 64]).axes[0]
    assert [line.get_label() for line in axes.lines] == ["a, 1 seed", "a, 3 seeds", "b, 1 seed"]
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [8, 4])
    assert axes.lines[0].get_color() == axes.lines[1].get_color() != axes.lines[2].get_color()
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["16", "64"]
    with pytest.raises(ConfigurationError, match="at least one pair"):
        figures.power_curves({}, [16])


def test_dots_of_a_query_lie_around_its_mean_and_add_up():
    values = np.random.default_rng(0).normal(size=(5, 3, 4)) + np.array([3.0, 1.0, 4.0, 2.0])
    above, below = figures.nested_dots({"loss": values}, query=2).axes
    np.testing.assert_allclose(np.sort(above.lines[0].get_xdata()), np.sort(values.mean((0, 1))))
    own = values[:, :, 0]  # the third of the queries in ascending order of their means
    dots = [line for line in below.lines if line.get_marker() == "o"]
    subsets, seeds, rest = (line.get_xdata() for line in dots)
    np.testing.assert_allclose(subsets, own.mean(1))
    np.testing.assert_allclose(seeds, own.mean(0))
    np.testing.assert_allclose(rest.reshape(5, 3) + subsets[:, None] + seeds - 2 * own.mean(), own)
    with pytest.raises(ConfigurationError, match="at least one"):
        figures.nested_dots({})
