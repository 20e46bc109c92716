"""The protocol study on the smoke preset: evenly spaced timesteps for images and queries, and λ reported both ways."""

import numpy as np
import pytest
import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.attribution.methods import get_method
from diffinf_lib.errors import ConfigurationError


@pytest.fixture(scope="module")
def study(run):
    truth = random_truth(run, run.data.queries, 0)
    return di.studies.ProtocolStudy(run, {"held-out": truth}, counts=[2, 5])


def test_images_and_queries_take_the_same_evenly_spaced_timesteps(study, run):
    cell = di.studies.ProtocolCell("d-trak", "held-out", 5)
    assert cell.draws == di.DrawConfig(5, timestep_rule="grid", noise_rule="independent")
    task = di.runs.task_of_run(run, run.data.queries)
    task.draws = task.query_draws = cell.draws
    method = get_method("d-trak")
    expected = method(task, [method.default])[0]
    found = torch.from_numpy(study.arrays(cell)["scores"])[method.grid.index(method.default)]
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    passes = study.arrays(cell)["draws"].sum()
    assert passes == 5 * (len(run.data.train) + len(run.data.queries))


def test_the_bundle_says_what_choosing_on_the_reported_models_gains(study, tmp_path):
    made = di.load_bundle(study_bundle(study, tmp_path), root=tmp_path)
    values = made.arrays["held-out/lds"]
    assert values.shape[:2] == (2, 2) and np.isfinite(values).all()
    for row in made.metrics["results"]:
        place = ["trak", "d-trak"].index(row["method"]), [2, 5].index(row["timesteps"])
        per_option = values[place].mean(-1)
        grid = get_method(row["method"]).grid
        assert row["best"] == pytest.approx(per_option.max(), abs=1e-6)
        assert row["best_option"] == grid[int(per_option.argmax())] and row["best"] >= row["lds"]


def study_bundle(study, folder):
    assert len(list(study.shard())) == 4
    return study.bundle("protocol", folder).name


def test_methods_of_other_grids_are_refused(study):
    with pytest.raises(ConfigurationError, match="give methods with as many"):
        di.studies.ProtocolStudy(study.run, study.truths, methods=["trak", "random"])
