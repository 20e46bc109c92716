"""Nothing that a run or a study kept is returned for another model, other images, other options or another ground truth."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import random_truth

import diffinf_lib as di
from diffinf_lib.runs import QUERY_SETS
from diffinf_lib.studies import Rung, Study
from diffinf_lib.studies.curvatures import CHOICES
from diffinf_lib.studies.solves import SolveCell

FOUR = di.DrawConfig(4)
PRESET = di.with_options(
    di.get_preset("smoke"),
    {"training.steps": 4, "training.keep_ema_at": (2, 4), "subsets.steps": 2, "further_measurements": (),
     "curvature.draws.count": 2, "gradient_draws.count": 4},
)  # fmt: skip

STUDIES = {
    di.studies.DrawsStudy: {"counts": [2], "rules": ["signal"]},
    di.studies.MethodsStudy: {"methods": ["ekfac", "trak"]},
    di.studies.CurvatureStudy: {"choices": CHOICES[1:2]},
    di.studies.CompressionStudy: {"formats": ["int4"]},
    di.studies.RemovalStudy: {"config": di.studies.RemovalConfig(queries=1, shares=(0.1,), seeds=1, random_sets=1)},
    di.studies.TimestepStudy: {"bins": 4, "subsets": 4, "seeds": 1},
    di.studies.MeasuringStudy: {"counts": [2], "reference": 4, "query_count": 3, "subsets": 3, "seeds": 1},
    di.studies.RectifyStudy: {"methods": ["ekfac", "pixel"]},
    di.studies.ProtocolStudy: {"counts": [2]},
    di.studies.OffersStudy: {"counts": [2]},
    di.studies.SolvesStudy: {"solves": [SolveCell(1, 1e-2, 2)], "asked": (("held-out", 1),)},
    di.studies.LadderStudy: {"rungs": [Rung("both", "", draws=FOUR, checkpoints=(0.5, 1.0))], "model_seeds": (0, 1)},
}
WITHOUT_TRUTHS = (
    di.studies.RemovalStudy, di.studies.TimestepStudy, di.studies.SolvesStudy, di.studies.MeasuringStudy,
)  # fmt: skip
SCORES_ALONE = (di.studies.OffersStudy,)  # no ground truth has a part in their arrays
JUDGED = [kind for kind in STUDIES if kind not in (*WITHOUT_TRUTHS, *SCORES_ALONE)]
STEPS = {
    "samples": lambda run: di.runs.generated_queries(run).images,
    "scores": lambda run: di.influence_scores(run, run.data.queries),
    "measurements": lambda run: torch.cat(list(di.runs.retrained_measurements(run, 0, 0).values())),
}


def flipped(images):
    """Other images under the same ids."""
    return replace(images, images=images.images.flip(-1))


CHANGES = {
    "training images": ({}, lambda data: replace(data, train=flipped(data.train))),
    "queries": ({}, lambda data: replace(data, queries=flipped(data.queries))),
    "network": ({"unet.flip_sin_to_cos": not PRESET.unet.flip_sin_to_cos}, lambda data: data),
    "options": ({"damping": 1e-3, "measurement.draws.count": 8, "sampling.steps": 4}, lambda data: data),
    "ground truth": ({}, lambda data: data),
}


def opened(folder, change=None):
    """A run; after a change in the same folder by force, with the model made anew."""
    options, data = CHANGES[change] if change else ({}, lambda data: data)
    run = di.open_run(di.with_options(PRESET, options), folder, progress=False, force=True)
    vars(run)["data"] = data(run.data)
    if change != "ground truth":
        run.discard("model")
    return run


def truths_of(run, change=None):
    truths = {
        name: random_truth(run, images, seed) for seed, (name, images) in enumerate(di.runs.query_sets(run).items())
    }
    if change == "ground truth":
        truths = {name: replace(truth, measurements=truth.measurements.flip(0)) for name, truth in truths.items()}
    return truths


def study_results(kind, run, truths):
    """Every kept cell of a study, and what its bundle holds."""
    if kind in (di.studies.MethodsStudy, di.studies.RectifyStudy):
        truths = {f"{name}/loss": truth for name, truth in truths.items()}
    if kind is di.studies.LadderStudy:  # it does the same to each set of queries, at length
        truths = {"held-out": truths["held-out"]}
    study = kind(run, **STUDIES[kind]) if kind in WITHOUT_TRUTHS else kind(run, truths, **STUDIES[kind])
    cells = [study.arrays(cell) for cell in study.shard()]
    return {"bundle": study.contents()[0], **{str(place): found for place, found in enumerate(cells)}}


def results(run, change=None):
    truths = truths_of(run, change)
    kinds = [kind for kind in STUDIES if change != "ground truth" or kind in JUDGED]
    found = {kind.__name__: study_results(kind, run, truths) for kind in kinds}
    return found | {name: {"kept": {name: step(run).numpy()}} for name, step in STEPS.items()}


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A folder with everything kept before any change, and what it held."""
    folder = tmp_path_factory.mktemp("before") / "run"
    return folder, results(opened(folder))


@pytest.fixture(scope="module", params=CHANGES)
def changed(request, before, tmp_path_factory):
    """What the same folder gives after a change, and what a fresh one gives."""
    change = request.param
    fresh = results(opened(tmp_path_factory.mktemp("fresh") / "run", change), change)
    return change, results(opened(before[0], change), change), fresh


def same(first, second):
    assert first.keys() == second.keys()
    for name, arrays in first.items():
        for key in arrays.keys() - {"seconds"}:
            np.testing.assert_array_equal(arrays[key], second[name][key], err_msg=f"{name}: {key}")


def test_every_study_is_tried():
    assert set(STUDIES) == set(Study.__subclasses__())


@pytest.mark.parametrize("name", [*(kind.__name__ for kind in STUDIES), *STEPS])
def test_what_was_kept_before_a_change_is_not_returned_after_it(name, before, changed):
    change, again, fresh = changed
    if name not in fresh:
        pytest.skip("no ground truth has a part in it")
    same(again[name], fresh[name])
    depends = name not in STEPS or change != "ground truth"
    unconcerned = {("samples", "queries"), ("MeasuringStudy", "options")}  # it has draws of its own, and here no scores
    depends = depends and (name, change) not in unconcerned
    if depends:
        with pytest.raises(AssertionError):
            same(before[1][name], fresh[name])


def test_going_back_finds_what_was_kept(before, changed):
    run = opened(before[0])
    same({"kept": {"scores": STEPS["scores"](run).numpy()}}, before[1]["scores"])


def test_labels_and_trajectories_belong_to_data():
    images, labels, ids = torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), torch.arange(2)
    states, guesses = torch.zeros(2, 4, 1, 2, 2), torch.zeros(2, 3, 1, 2, 2)
    sets = [
        di.ImageSet(images, labels, ids),
        di.ImageSet(images, 1 - labels, ids),
        di.ImageSet(images, labels, ids + 1),
    ]
    sets += [di.data.Trajectories(images, labels, ids, states + k, guesses + m) for k, m in ((0, 0), (1, 0), (0, 1))]
    assert len({one.digest for one in sets}) == len(sets)
    assert QUERY_SETS == ("held-out", "generated")


def test_a_ground_truth_is_what_it_holds():
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([torch.randperm(6, generator=generator) < 3 for _ in range(4)])
    truth = di.evaluation.GroundTruth(
        masks, torch.rand(4, 1, 2, dtype=torch.float64), torch.arange(6), torch.tensor([10, 11])
    )
    other = replace(truth, query_images=torch.zeros(2, 1, 2, 2))
    digests = {truth.digest, other.digest, truth.first_subsets(3).digest, replace(truth, masks=~masks).digest}
    assert len(digests) == 4 and truth.digest == replace(truth, provenance="elsewhere").digest
