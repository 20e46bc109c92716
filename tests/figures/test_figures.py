import numpy as np
import pytest
import torch
from cases import images

import diffinf_lib as di
from diffinf_lib import figures
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation import LDSResult

TRAIN, QUERIES = images(10, 4), images(3, 4, seed=1)
SCORES = torch.linspace(-1, 1, 30).reshape(3, 10).flip(1).double()


def result(mean):
    return LDSResult(mean, (mean - 0.02, mean + 0.03), 0.01, 0.75, 0.86, np.array([mean]))


def pictures(figure):
    return [image for axes in figure.axes for image in axes.get_images()]


def test_training_curve_shows_every_loss_and_its_mean():
    figure = figures.training_curve(np.arange(1.0, 101.0), smooth=10)
    raw, mean = figure.axes[0].get_lines()
    assert raw.get_ydata().tolist() == list(range(1, 101))
    assert mean.get_ydata()[0] == pytest.approx(5.5) and mean.get_xdata()[0] == 10


def test_image_grid_shows_each_image_once_with_its_values():
    figure = figures.image_grid(TRAIN.images, columns=4, titles=[str(i) for i in range(10)])
    shown = pictures(figure)
    assert len(shown) == 10 and len(figure.axes) == 12
    np.testing.assert_allclose(shown[3].get_array(), (TRAIN.images[3, 0] + 1) / 2, rtol=1e-6)
    with pytest.raises(ConfigurationError):
        figures.image_grid(TRAIN.images[:0])
    assert pictures(figures.image_grid(torch.zeros(1, 3, 4, 4)))[0].get_array().shape == (4, 4, 3)


def test_lds_bars_are_as_long_as_the_means():
    figure = figures.lds_bars({"EK-FAC": result(0.6), "random": result(-0.01)})
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([60, -1])
    assert [text.get_text() for text in axes.texts] == ["60.0", "-1.0"]
    assert "75.0" in axes.get_legend().get_texts()[0].get_text()


def test_top_influence_shows_the_ranked_images():
    figure = figures.top_influence(TRAIN, QUERIES, SCORES, query=1, count=3)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    order = SCORES[1].sort(descending=True).values
    expected = [*order[:3], *order.flip(0)[:3], *sorted(SCORES[1], key=abs)[:3]]
    titles.remove("query")
    assert titles == [f"{value:+.1e}" for value in expected]
    assert len(pictures(figure)) == 10
    with pytest.raises(ConfigurationError, match="query=3: give 0 to 2"):
        figures.top_influence(TRAIN, QUERIES, SCORES, query=3)


def test_predictions_are_drawn_against_measurements():
    masks = torch.eye(10, dtype=torch.bool)
    measured = torch.randn(10, 2, 3, dtype=torch.float64)
    truth = di.evaluation.GroundTruth(masks, measured, TRAIN.ids, QUERIES.ids)
    figure = figures.predicted_against_measured(SCORES, truth, query=2)
    points = figure.axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], (SCORES[2].sum() - SCORES[2]).numpy())
    np.testing.assert_allclose(points[:, 1], measured[:, :, 2].mean(1))


def test_noising_goes_from_image_to_noise():
    noise = torch.randn(1, 4, 4)
    shown = pictures(figures.noising_strip(TRAIN.images[0], noise, [0, 999]))
    np.testing.assert_allclose(shown[0].get_array(), (TRAIN.images[0, 0] + 1) / 2, atol=0.05)
    np.testing.assert_allclose(shown[1].get_array(), ((noise[0] + 1) / 2).clamp(0, 1), atol=0.05)


def test_draws_curves_show_each_rule_and_seed():
    lds = np.arange(2 * 3 * 2 * 4, dtype=float).reshape(2, 3, 2, 4) / 100
    lds[:, 2, 1] = np.nan  # the last number of draws had one seed only
    figure = figures.draws_curves(lds, [8, 16, 32], ["uniform", "signal"], ceiling=0.7)
    seeds, means, *_ = figure.axes[0].get_lines()
    np.testing.assert_allclose(means.get_ydata(), 100 * np.nanmean(lds[0].mean(-1), axis=1))
    assert np.isfinite(seeds.get_ydata()).sum() == 5
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["uniform", "signal"]
    with pytest.raises(ConfigurationError, match="give \\[rules, counts, seeds, Q\\]"):
        figures.draws_curves(lds, [8, 16], ["uniform", "signal"])


def test_growth_curves_show_seconds_and_memory():
    def part(n, peak):
        return {"seconds": n / 10, "peak_bytes": peak * 2**20}

    records = [
        {"size": {"images": n}, "measured": {"fit": part(n, 2), "gradients and scores": part(2 * n, n)}}
        for n in (10, 100)
    ]
    seconds, memory = figures.growth_curves({"images": records}).axes
    for axes, expected in ((seconds, ([1, 10], [2, 20])), (memory, ([2, 2], [10, 100]))):
        for line, values in zip(axes.get_lines(), expected, strict=True):
            np.testing.assert_allclose(line.get_ydata(), values)
    assert memory.get_ylim()[0] == 0 and memory.get_ylim()[1] > 100  # nothing is cut off
