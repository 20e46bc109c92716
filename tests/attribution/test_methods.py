"""The table of methods, and what a task charges for what methods read."""

import pytest
import torch
from cases import conv_denoiser, images

import diffinf_lib as di
from diffinf_lib.artifacts import project_root
from diffinf_lib.attribution.methods import Method
from diffinf_lib.errors import ConfigurationError

SCHEDULE = di.Process(num_train_timesteps=16, beta_end=0.3)
CURVATURE = di.CurvatureConfig(draws=di.DrawConfig(4))


@pytest.fixture
def task(tmp_path):
    model, train, queries = conv_denoiser(), images(6, 4), images(3, 4, seed=1)
    curvature = di.fit_curvature(model, train, CURVATURE)
    at = di.attribution.Checkpoint("final", model, curvature, curvature_draws=36, curvature_seconds=2.0)
    measurement = di.MeasurementConfig(draws=di.DrawConfig(8))
    return di.attribution.AttributionTask(at, train, queries, measurement, di.DrawConfig(12), folder=tmp_path / "g")


def test_rows_name_each_method_once_and_cite_what_the_book_lists():
    names, labels = [m.name for m in di.METHODS], [m.label for m in di.METHODS]
    assert len(set(names)) == len(names) and len(set(labels)) == len(labels)
    references = (project_root() / "book" / "references.bib").read_text()
    for method in di.METHODS:
        assert method.default in method.grid and list(method.grid) == sorted(method.grid)
        assert bool(method.option) == (len(method.grid) > 1 or method.name == "neumann"), method.name
        assert method.requires in ("", "checkpoints", "ensemble", "trajectories", "clip")
        assert not method.paper or f"{{{method.paper}," in references, method.paper


def test_a_task_s_influence_is_influence(task):
    expected = di.influence(
        task.final.model, task.final.curvature, task.train, task.queries, measurement=task.measurement, draws=task.draws,
        damping=[1e-6, 1e-3],
    )  # fmt: skip
    torch.testing.assert_close(di.get_method("ekfac")(task, [1e-6, 1e-3]), expected, rtol=1e-9, atol=0)


def test_a_method_pays_for_everything_it_reads_whoever_paid_first(task):
    own = 6 * 12 + 3 * 8  # gradients of training images and queries
    costs = {}
    for name in ("gradient-dot", "ekfac", "gradient-cosine", "kfac", "d-trak", "pixel"):
        _, costs[name] = task.costed(lambda n=name: di.get_method(n)(task))
    assert {name: cost.draws for name, cost in costs.items()} == {
        "gradient-dot": own, "ekfac": own + 36, "gradient-cosine": own, "kfac": own + 36, "d-trak": own, "pixel": 0,
    }  # fmt: skip
    assert costs["kfac"].seconds > 2.0  # the curvature's own, though it was fitted before


def test_without_a_folder_gradients_are_made_whenever_they_are_read(task):
    stored = di.get_method("trak")(task, [0.1])
    task.folder = None
    torch.testing.assert_close(di.get_method("trak")(task, [0.1]), stored, rtol=1e-9, atol=0)


def test_the_ggn_s_first_step_points_where_ekfac_does(task):
    """After one step of conjugate gradients each query's scores are EK-FAC's times a number."""
    first, last = di.get_method("cg")(task, [1.0, 6.0])
    ratio = first / di.get_method("ekfac")(task, 1e-6)[0]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=0)
    assert not torch.allclose(last, first)


def test_what_is_missing_is_said(task):
    for name, message in [
        ("tracin", "checkpoints: this task has none"),
        ("ekfac-ensemble", "ensemble: this task has no models"),
        ("clip", "clip: no model given"),
        ("journey-trak", "give Trajectories"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            di.get_method(name)(task)
    with pytest.raises(ConfigurationError, match="damping=-1.0"):
        di.get_method("trak")(task, -1.0)
    with pytest.raises(ConfigurationError, match="default 2.0 is not in its grid"):
        Method("x", "x", "", lambda task, options: torch.zeros(1), grid=(1.0,), default=2.0)
