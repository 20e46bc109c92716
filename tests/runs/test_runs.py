"""A run holds what it has made, knows its folder and its images by any spelling, and keeps nothing without its identity."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

import diffinf_lib as di
from diffinf_lib import training
from diffinf_lib.artifacts import manifest, read_json, resolved
from diffinf_lib.cli import main
from diffinf_lib.errors import ArtifactError
from diffinf_lib.runs import Run, run as run_module

PRESET = di.with_options(
    di.get_preset("smoke"), {"training.steps": 2, "subsets.steps": 2, "training.keep_ema_at": (2,)}
)


def test_the_model_is_entered_once_however_many_models_are_retrained(tmp_path, monkeypatch):
    entered, fits = [], []
    train, fit = training.train, di.fit_curvature
    monkeypatch.setattr(
        run_module, "train", lambda *args, **kw: (entered.append(kw["out"].name), train(*args, **kw))[1]
    )
    monkeypatch.setattr(
        "diffinf_lib.runs.attribution.fit_curvature", lambda *args, **kw: (fits.append(1), fit(*args, **kw))[1]
    )
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    assert len(list(di.runs.ground_truth_shard(run))) == 8
    di.influence_scores(run, run.data.queries)
    di.runs.baseline_scores(run, di.runs.generated_queries(run))
    assert entered == ["model"] and len(fits) == 1
    before = di.runs.full_model(run)
    assert di.runs.full_model(run) is before
    run.discard("model")
    assert di.runs.full_model(run) is not before and entered.count("model") == 2


def test_a_run_is_shown_in_a_few_lines(tmp_path):
    run = di.open_run(PRESET, tmp_path / "run", seed=3, device="cpu", progress=False)
    for name in ("scores", "curvature", "logs"):
        run.path(name).mkdir()
    assert repr(run).splitlines() == [
        f"run of {PRESET.name}: {PRESET.summary}", f"  folder: {tmp_path / 'run'}", "  seed 3, on cpu",
        "  stages there: curvature, scores",
    ]  # fmt: skip


def test_what_is_kept_always_names_model_images_and_seed(tmp_path):
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    kept = run.kept("scores", "mine", what=1)
    assert kept.identity.keys() == {"what", "model", "data", "seed"}
    assert run.kept("scores", "mine", what=1, model="another", data="", seed=7) == kept  # nobody leaves them out
    assert kept.folder.parent == run.path("scores") and kept.folder.name.startswith("mine-") and not kept.finished
    others = [
        replace(run, seed=1),
        di.open_run(di.with_options(PRESET, {"training.steps": 3}), tmp_path / "b", progress=False),
    ]
    folders = {kept.folder.name, run.kept("scores", "mine", what=2).folder.name}
    run.discard("model")  # it was trained with the seed of the run
    folders |= {other.kept("scores", "mine", what=1).folder.name for other in others}
    assert len(folders) == 4


def test_a_network_of_other_options_is_not_read_for_this_one(tmp_path):
    """The options do not show in the weights it begins with."""
    other = replace(PRESET.unet, flip_sin_to_cos=not PRESET.unet.flip_sin_to_cos)
    first, second = (di.build_unet(unet).state_dict() for unet in (PRESET.unet, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    di.runs.full_model(di.open_run(PRESET, tmp_path, progress=False))
    changed = di.open_run(replace(PRESET, unet=other), tmp_path, progress=False, force=True)
    with pytest.raises(ArtifactError, match="initial_model.config.flip_sin_to_cos is True there, False asked"):
        di.runs.full_model(changed)


OTHER_PROCESSOR = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
TRAINS = """
import sys
import diffinf_lib as di
preset = di.with_options(di.get_preset("smoke"), {"training.steps": 2, "subsets.steps": 2, "training.keep_ema_at": (2,)})
run = di.open_run(preset, sys.argv[1], progress=False)
print(run.model_identity["weights"])
"""


def test_a_run_folder_goes_on_on_another_processor(tmp_path, monkeypatch):
    """Processors differ in the last bits of the weights that a seed draws; what they trained is read all the same."""
    command = [sys.executable, "-W", "ignore", "-c", TRAINS, str(tmp_path)]
    there = subprocess.run(command, env=os.environ | OTHER_PROCESSOR, capture_output=True, text=True)
    assert there.returncode == 0, there.stderr
    monkeypatch.setattr("diffinf_lib.training.stages._run", lambda *args: pytest.fail("trained again"))
    found = di.open_run(PRESET, tmp_path, progress=False).model_identity["weights"]
    assert there.stdout.strip() == found


def test_only_weights_that_are_still_as_drawn_are_told_by_their_seed():
    model = di.build_model(PRESET.unet, PRESET.process, seed=4)
    assert model.starting_identity == model.identity | {"weights": "drawn with seed 4"}
    assert di.build_model(PRESET.unet, PRESET.process, seed=5).starting_identity["weights"] == "drawn with seed 5"
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    assert model.starting_identity == model.identity
    given = di.Denoiser(model.network, PRESET.process)
    assert given.starting_identity == given.identity


def test_one_place_has_one_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for i in range(8):
        Image.new("L", (8, 8), 30 * i).save(tmp_path / "images" / f"{i}.png")
    spellings = ["images", "images/", "./images", "~/images", "link", str(tmp_path / "images")]
    for images in spellings:
        dataset = replace(PRESET.dataset, name=f"folder:{images}", classes=None, train_size=6, query_size=2)
        run = di.open_run(replace(PRESET, dataset=dataset), "mine/", progress=False)
        assert run.folder == tmp_path / "mine"
        with manifest.stage(run.path("model"), {}, name="model"):  # from now on the folder belongs to its configuration
            pass
    assert {resolved(spelling) for spelling in spellings} == {tmp_path / "images"}
    assert read_json(tmp_path / "mine" / "config.json")["preset"]["dataset"]["name"] == f"folder:{tmp_path / 'images'}"


def test_commands_find_what_studies_kept(tmp_path, capsys):
    words = ["--run", str(tmp_path / "run"), "--quiet", *(f"--set=training.{o}" for o in ("steps=2", "keep_ema_at=2"))]
    assert main(["scores", "smoke", *words, "--set", "subsets.steps=2"]) == 0
    run = di.open_run(PRESET, tmp_path / "run", progress=False)
    assert isinstance(run, Run) and len(list(run.path("scores").glob("*/scores.npz"))) == 1
    di.influence_scores(run, run.data.queries)
    di.runs.query_gradients(run, run.data.queries).whole()
    assert [path.name.split("-")[0] for path in sorted(run.path("gradients").glob("[!.]*"))] == ["measurement", "train"]
    assert len(list(run.path("scores").glob("*/scores.npz"))) == 1
