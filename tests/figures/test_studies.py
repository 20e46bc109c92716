import matplotlib.figure
import numpy as np
import pytest

from diffinf_lib import figures
from diffinf_lib.errors import ConfigurationError


def test_intervals_draw_each_value_between_its_ends():
    groups = {"held-out": {"a": (0.5, (0.4, 0.7)), "b": (0.2, (0.1, 0.3))}, "generated": {"b": (0.1, (0.0, 0.2))}}
    figure = figures.intervals(groups, ceilings={"held-out": 0.8})
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["a", "b"]
    first = axes.containers[0]
    np.testing.assert_allclose(first[0].get_xdata(), [50, 20])
    np.testing.assert_allclose(np.array(first[2][0].get_segments())[:, :, 0], [[40, 70], [10, 30]])
    # the second group's only row lies beside the row of its name
    assert abs(axes.containers[1][0].get_ydata()[0] - 1) < 0.3
    assert 80 in [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    with pytest.raises(ConfigurationError, match="at least one group"):
        figures.intervals({})


def test_option_curves_share_a_logarithmic_axis():
    lines = {"x": ([1e-8, 1e-6], [70, 60]), "y": ([1e-8, 1e-6], [50, 55])}
    figure = figures.option_curves({"held-out": lines, "generated": lines}, ceilings={"held-out": 0.77})
    assert len(figure.axes) == 2 and all(axes.get_xscale() == "log" for axes in figure.axes)
    np.testing.assert_allclose(figure.axes[1].lines[1].get_ydata(), [50, 55])


def test_heat_maps_frame_the_best_of_each_column():
    matrix = [[10, 20, 5], [30, 15, 25]]
    figure = figures.heat_map({"t": matrix}, ["p", "q"], ["1", "2", "3"], row="scores", column="measured")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["10", "20", "5", "30", "15", "25"]
    frames = sorted((patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches)
    assert frames == [(0, 1), (1, 0), (2, 1)]
    with pytest.raises(ConfigurationError, match="give 2 rows and 3 columns"):
        figures.heat_map({"t": [[1, 2]]}, ["p", "q"], ["1", "2", "3"], row="scores", column="measured")


def test_one_quantity_against_another():
    figure = figures.against({"a": ([1, 10], [2, 3]), "b": ([1, 5], [1, 1])}, horizontal="h", vertical="v",
                             logarithmic=True, lines=True)  # fmt: skip
    axes = figure.axes[0]
    assert isinstance(figure, matplotlib.figure.Figure) and axes.get_xscale() == "log"
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [2, 3])
    assert figures.against({"a": ([0, 1], [0, 2])}, horizontal="h", vertical="v", diagonal=True).axes[0].lines[1]


def test_jobs_stand_beyond_all_that_they_wait_for():
    after = {"model": [], "a": ["model"], "b": ["model"], "whole": ["a", "b"], "study": ["whole", "model"]}
    figure = figures.job_graph(after)
    (axes,) = figure.axes
    place = {text.get_text(): text.get_position() for text in axes.texts}
    assert set(place) == set(after) and len(axes.lines) == sum(map(len, after.values()))
    for job, before in after.items():
        assert all(place[name][0] < place[job][0] for name in before)
    assert place["a"][0] == place["b"][0] and place["a"][1] != place["b"][1]
    assert "model; then a, b; then whole; then study" in figure.alt
    with pytest.raises(ConfigurationError, match="b: waits for c, which is not among the jobs before it"):
        figures.job_graph({"a": [], "b": ["c"]})
    with pytest.raises(ConfigurationError, match="at least one job"):
        figures.job_graph({})
