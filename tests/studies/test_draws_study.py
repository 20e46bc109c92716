"""The draws study on the smoke preset: its cells are what influence gives, they are kept, and the bundle holds them all."""

import numpy as np
import pytest
import torch

import diffinf_lib as di
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.studies import draws


@pytest.fixture
def study(tmp_path):
    run = di.open_run(di.get_preset("smoke"), tmp_path / "run", progress=False)
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([torch.randperm(24, generator=generator) < 12 for _ in range(5)])
    measurements = torch.rand(5, 2, 6, generator=generator, dtype=torch.float64)
    queries = run.data.queries
    truth = di.evaluation.GroundTruth(masks, measurements, run.data.train.ids, queries.ids, queries.images)
    return di.studies.DrawsStudy(run, {"held-out": truth})


def test_a_cell_is_the_lds_of_influence_with_its_draws(study):
    cell = di.studies.DrawsCell("signal, antithetic, shared", 4, seed=0)
    truth, preset = study.truths["held-out"], study.run.preset
    run = study.run
    scores = di.influence(
        di.runs.full_model(run).model, di.runs.curvature_of_run(run), run.data.train, truth.queries,
        measurement=preset.measurement,
        draws=di.DrawConfig(4, timestep_rule="signal", shared=True), damping=preset.damping,
    )  # fmt: skip
    torch.testing.assert_close(study.scores(cell)["held-out"], scores, rtol=1e-5, atol=1e-6 * float(scores.abs().max()))
    np.testing.assert_allclose(study.lds(cell)["held-out"], di.lds(scores, truth).per_query, atol=1e-12)
    other = study.scores(di.studies.DrawsCell("signal, antithetic, shared", 4, seed=1))["held-out"]
    assert not torch.allclose(other, scores)


def test_cells_are_kept_and_bundled(study, tmp_path, monkeypatch):
    options = {"counts": [2, 4], "seeds": {2: 2, 4: 1}, "rules": ["uniform", "signal"]}
    study = di.studies.DrawsStudy(study.run, study.truths, **options)
    assert len(list(study.shard())) == 6
    folder = study.bundle("smoke-draws", tmp_path / "results")
    monkeypatch.setattr(draws.DrawsStudy, "scores", lambda *_: pytest.fail("a kept cell was computed again"))
    again = di.studies.DrawsStudy(study.run, study.truths, **options).bundle("again", tmp_path / "results")
    made, second = (di.load_bundle(path.name, root=path.parent) for path in (folder, again))
    values = made.arrays["held-out/lds"]
    assert values.shape == (2, 2, 2, 6)
    assert np.isnan(values[:, 1, 1]).all() and np.isfinite(values[:, 0]).all() and np.isfinite(values[:, 1, 0]).all()
    np.testing.assert_array_equal(values, second.arrays["held-out/lds"])
    np.testing.assert_allclose(values[1, 1, 0], study.lds(di.studies.DrawsCell("signal", 4, 0))["held-out"], rtol=1e-6)


def test_an_unknown_rule_is_refused(study):
    with pytest.raises(ConfigurationError, match="rule='best': give one of uniform, stratified"):
        di.studies.DrawsStudy(study.run, study.truths, rules=["best"])
