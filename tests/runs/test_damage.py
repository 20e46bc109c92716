"""Damaged files of a run: each is named, what it belongs to is made again, and everything ends with the bits of before.

Which kinds of files there are is read off a finished run folder, so that no new kind is left out. A file that is cut short, has
one bit flipped, or is of a run with another seed lies in turn in the place of each.
"""

import re
import shutil
import warnings
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
from annotations import unchecked
from chaos.kills import contents, differences
from damage import HARMS

import diffinf_lib as di
from diffinf_lib.artifacts import read_json
from diffinf_lib.configuration import SamplingConfig
from diffinf_lib.curvature import fit_curvature, passes
from diffinf_lib.errors import ArtifactError
from diffinf_lib.gradients import sets, store
from diffinf_lib.runs import attribution, ground_truth, retrained_model
from diffinf_lib.runs.model import generated_trajectories
from diffinf_lib.studies.timesteps import TimestepStudy
from diffinf_lib.training import Trainer

PRESET = replace(
    di.with_options(
        di.get_preset("smoke"),
        {
            "dataset.train_size": 8, "dataset.query_size": 2, "training.steps": 4, "training.checkpoint_every": 2,
            "training.keep_ema_at": (1, 4), "subsets.count": 2, "subsets.seeds": 1, "subsets.steps": 3,
            "measurement.draws.count": 8, "curvature.draws.count": 2, "gradient_draws.count": 4,
        },
    ),
    process=di.Process(num_train_timesteps=6, beta_end=0.5),
    sampling=SamplingConfig(count=2, steps=6),
    further_measurements=(di.MeasurementConfig("trajectory_log_prob", draws=di.DrawConfig(2)),),
)  # fmt: skip
FORGETS = replace(PRESET, store_budget=0.0)
TRUSTED = "retrained/together-cpu.json"
"""One of another run says as well how many models are fastest together."""


MANIFEST, CONFIG = "manifest.json", "config.json"
NAMED = 3
"""Files of a stage that its warning names."""


class Killed(BaseException):
    """Ends a stage in the middle."""


@contextmanager
def small():
    """Everything in several parts, each kept at once, and no time measured."""
    in_parts = {"batch_size": 4, "checkpoint_seconds": 0.0}
    with unchecked(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "SHARD_BYTES", 1)
        patch.setattr(
            attribution, "fit_curvature", lambda *given, **options: fit_curvature(*given, **options | in_parts)
        )
        patch.setattr(ground_truth, "step_seconds", lambda *_: {1: 1.0, 4: 0.95})
        yield patch


def opened(root, seed=0):
    return di.open_run(PRESET, root / "run", seed=seed, progress=False)


def all_scores(run):
    """With training gradients that are kept, and with such as are not."""
    return [di.runs.scores_of_sets(one, [run.data.queries]) for one in (run, replace(run, preset=FORGETS))]


def everything(root, seed=0):
    """All stages of a run, as they would be asked for again."""
    with small():
        run = opened(root, seed)
        generated_trajectories(run)
        for pair in di.runs.ground_truth_shard(run, together=None):
            retrained_model(run, *pair)
        di.runs.ground_truth_bundle(run, "g", root=root)
        di.runs.train_gradients(run).whole()
        di.runs.query_gradients(run, run.data.queries).whole()
        all_scores(run)
        list(TimestepStudy(run, bins=2, subsets=1).shard())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two finished runs, by their seed."""
    roots = [tmp_path_factory.mktemp(f"seed-{seed}") for seed in range(2)]
    for seed, root in enumerate(roots):
        everything(root, seed)
    return roots


def kind(path, root):
    """What a file is, whatever run it is of."""
    name = re.sub(r"[0-9a-f]{12}", "*", path.relative_to(root).as_posix())
    return re.sub(r"\d+", "#", name)


def kinds(root):
    """One file of each kind below a folder; hidden ones are locks."""
    found = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")):
        found.setdefault(kind(path, root), path)
    return found


def is_named(path, messages):
    """Whether a message names a file by its path, or by that of its stage and its own within it."""
    return any(
        str(path) in message or (f"{folder}: " in message and path.relative_to(folder).as_posix() in message)
        for message in messages for folder in path.parents
    )  # fmt: skip


def told(call, *arguments):
    """The warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(*arguments)
    return [str(warning.message) for warning in caught]


def rounds(root):
    """Files of every kind in turn: manifests, whose damage hides that of the rest; then of each stage as many as it names."""
    found = {}
    for path in kinds(root).values():
        owner = next((folder for folder in path.parents if (folder / MANIFEST).exists()), root)
        found.setdefault(MANIFEST if path.name == MANIFEST else owner, []).append(path.relative_to(root))
    manifests, rest = found.pop(MANIFEST), found.values()
    starts = range(0, max(map(len, rest)), NAMED)
    return [manifests, *([name for names in rest for name in names[start : start + NAMED]] for start in starts)]


def damage(root, other, names, harm, number):
    """Damage files, in one of the ways of a harm; those that are not what they were."""
    counterparts, damaged = kinds(other), []
    for name in names:
        path, content = root / name, (root / name).read_bytes()
        ways = list(HARMS[harm](content, counterparts[kind(path, root)].read_bytes()))
        path.write_bytes(ways[number % len(ways)])
        damaged += [path] if path.read_bytes() != content else []
    return damaged


@pytest.mark.parametrize("harm", HARMS)
def test_of_a_finished_run_what_is_damaged_is_made_again(finished, tmp_path, harm):
    whole, other = finished
    for number, names in enumerate(rounds(whole / "run")):
        if harm == "swapped":
            names = [name for name in names if name.name != MANIFEST and name.as_posix() not in (CONFIG, TRUSTED)]
        root = shutil.copytree(whole, tmp_path / str(number))
        damaged = damage(root / "run", other / "run", names, harm, number)
        assert damaged or not names, "all files of this round are alike in both runs; it shows nothing"
        messages = told(everything, root)
        assert [path for path in damaged if not is_named(path, messages)] == []
        assert not differences(contents(root), contents(whole))
        shutil.rmtree(root)


def test_what_says_that_it_is_of_another_run_is_refused(finished, tmp_path):
    """A configuration or a manifest that is whole is believed: the folder may be that of another run, and is left alone."""
    whole, other = finished
    root, counterparts = shutil.copytree(whole, tmp_path / "run"), kinds(other / "run")
    for name in (CONFIG, f"model/{MANIFEST}", f"gradients/train-gradients-*/{MANIFEST}"):
        path = kinds(root / "run")[name]
        content = path.read_bytes()
        path.write_bytes(counterparts[name].read_bytes())
        with pytest.raises(ArtifactError, match=f"^{path.parent}: made by another configuration: "):
            everything(root)
        path.write_bytes(content)
    assert not told(everything, root) and not differences(contents(root), contents(whole))


def test_a_damaged_configuration_lets_no_other_run_in(finished, tmp_path):
    root = shutil.copytree(finished[0], tmp_path / "run")
    config = root / "run" / CONFIG
    config.write_text(config.read_text().replace('"name": "smoke"', '"name": "smoky"'))
    before = contents(root)
    for other in ({"training.learning_rate": 0.5}, {"dataset.seed": 1}, {"unet.freq_shift": 1}):
        with (
            pytest.raises(ArtifactError, match="model: made by another configuration: "),
            pytest.warns(match="damaged"),
        ):
            di.open_run(di.with_options(PRESET, other), root / "run", progress=False)
    with pytest.raises(ArtifactError, match="seed is 0 there, 1 asked"), pytest.warns(match="damaged"):
        opened(root, seed=1)
    assert not differences(contents(root), before)
    assert is_named(config, told(everything, root)) and not differences(contents(root), contents(finished[0]))


@pytest.mark.parametrize("harm", ["damaged", "gone"])
def test_measured_models_are_needed_no_more(finished, tmp_path, harm):
    """Their weights may be deleted for room: nothing is trained for the sake of the record."""
    root = shutil.copytree(finished[0], tmp_path / "run")
    place, other = sorted((root / "run" / "retrained").glob("k*/"))
    if harm == "gone":
        shutil.rmtree(place)
    else:
        (place / MANIFEST).write_bytes(b"{")
    with small() as patch:
        patch.setattr(Trainer, "advance", lambda *_: pytest.fail("trained"))
        run = opened(root)
        assert len(list(di.runs.ground_truth_shard(run))) == 2
        with pytest.warns(match="records of 1 of 2 trainings are gone"):
            made = di.load_bundle(di.runs.ground_truth_bundle(run, "again", root=root).name, root=root)
    whole = di.load_bundle("g", root=root)
    assert made.arrays.keys() == whole.arrays.keys()
    assert all((made.arrays[name] == whole.arrays[name]).all() for name in whole.arrays)
    seconds = read_json(other / MANIFEST)["measured"]["wall_seconds"]
    assert made.metrics["training_seconds"] == pytest.approx(2 * seconds, abs=0.06)


def at_call(number, function):
    """A function that is killed when it is called for that time."""
    calls = count(1)

    def killed(*given, **options):
        if next(calls) == number:
            raise Killed
        return function(*given, **options)

    return killed


STAGES = {
    "model": (["model"], Trainer, "advance", 4, lambda run: run.model),
    "ground truth": (["retrained/k*", "measurements"], Trainer, "advance", 3,
                     lambda run: list(di.runs.ground_truth_shard(run))),
    "curvature": (["curvature"], passes, "label_vectors", 7, di.runs.curvature_of_run),
    "gradients": (["gradients/train*"], store, "gradients_in_eigenbasis", 6, lambda run: di.runs.train_gradients(run).whole()),
    "scores": (["scores"], store, "gradients_in_eigenbasis", 4, all_scores),
}  # fmt: skip
"""Where the files of a stage lie, what it is in the middle of when it is killed, and how it is asked for."""


def asked_again(root, name, seed=0):
    with small():
        STAGES[name][-1](opened(root, seed))


@pytest.fixture(scope="module", params=STAGES)
def killed(request, finished, tmp_path_factory):
    """A stage that was killed in its middle, in both runs."""
    below, module, function, number, _ = STAGES[request.param]
    roots = [shutil.copytree(root, tmp_path_factory.mktemp(request.param) / "root") for root in finished]
    for seed, root in enumerate(roots):
        for folder in [folder for pattern in below for folder in (root / "run").glob(pattern)]:
            shutil.rmtree(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, function, at_call(number, getattr(module, function)))
            with pytest.raises(Killed):
                asked_again(root, request.param, seed)
    return request.param, roots


def parts(name, root, harm):
    """Files of a killed stage: what it goes on from, and then averages of before that; two rounds at most."""
    below = {path for pattern in STAGES[name][0] for path in (root / "run").glob(pattern)}
    found = [path for path in kinds(root / "run").values() if below & {*path.parents}]
    files = [path.relative_to(root / "run") for path in found if harm != "swapped" or path.name != MANIFEST]
    averages = [path for path in files if "ema" in path.parts]
    return [group for group in ([path for path in files if path not in averages], averages[-NAMED:]) if group]


@pytest.mark.parametrize("harm", HARMS)
def test_a_killed_stage_does_not_go_on_from_what_is_damaged(killed, finished, tmp_path, harm):
    name, (broken, other) = killed
    for number, names in enumerate(parts(name, broken, harm)):
        root = shutil.copytree(broken, tmp_path / str(number))
        damaged = damage(root / "run", other / "run", names, harm, number)
        assert any(path.name != MANIFEST for path in damaged), "nothing is kept of it; the test shows nothing"
        messages = told(asked_again, root, name)
        assert [path for path in damaged if not is_named(path, messages)] == []
        assert not differences(contents(root), contents(finished[0]))
        shutil.rmtree(root)
