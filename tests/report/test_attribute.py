"""One command from a pipeline folder and a folder of files to a report; killed, refused, asked again."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from annotations import unchecked
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import diffinf_lib as di
from diffinf_lib.artifacts import file_digest
from diffinf_lib.cli import main
from diffinf_lib.errors import ArtifactError
from diffinf_lib.report import options, plan
from diffinf_lib.report.encoding import image_shape

FILES = ("index.html", "scores.csv", "scores.npz", "findings.csv")
QUICK = {
    "draws": 8,
    "curvature": di.CurvatureConfig(draws=di.DrawConfig(2)),
    "measurement": di.MeasurementConfig(draws=di.DrawConfig(8)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A pipeline as diffusers writes it, 14 training files in two classes, one of them a copy, and three queries."""
    root = tmp_path_factory.mktemp("sources")
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False,
    )  # fmt: skip
    DDPMPipeline(network, DDPMScheduler(num_train_timesteps=1000)).save_pretrained(root / "pipeline")
    pixels = np.random.default_rng(0).integers(0, 256, (17, 8, 8), dtype=np.uint8)
    pixels[5] = pixels[3]
    for n in range(14):
        (root / "photos" / "ab"[n % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[n]).save(root / "photos" / "ab"[n % 2] / f"{n:02d}.png")
    (root / "asked").mkdir()
    for n in range(14, 17):
        Image.fromarray(pixels[n]).save(root / "asked" / f"{n}.png")
    return root


def attributed(sources, out, **changed):
    given = QUICK | changed
    queries = None if given.get("generate") else sources / "asked"
    return di.attribute(sources / "pipeline", sources / "photos", queries, out, **given)


@pytest.fixture(scope="module")
def report(sources, tmp_path_factory):
    return attributed(sources, tmp_path_factory.mktemp("report"))


def test_scores_are_those_of_influence(sources, report):
    """The same model, images, draws and store by hand."""
    model = di.load_model(sources / "pipeline")
    train, asked = (
        di.read_image_folder(sources / name, image_size=8, channels=1).images for name in ("photos", "asked")
    )
    curvature = di.fit_curvature(model, train, QUICK["curvature"])
    scores = di.influence(
        model, curvature, train, asked, measurement=QUICK["measurement"], draws=options.options_for(14, draws=8).draws,
        damping=[1e-6], train_format=options.STORE,
    )  # fmt: skip
    torch.testing.assert_close(report.scores, scores, rtol=1e-4, atol=1e-6 * float(scores.abs().max()))
    own = di.influence(
        model, curvature, train, train, draws=options.options_for(14, draws=8).draws, damping=1e-6, train_format=options.STORE,
        measurement=QUICK["measurement"],
    )  # fmt: skip
    assert own.shape == (14, 14) and (report.self_influence > 0).all()


@pytest.mark.parametrize("approximation", ["kfac", "diagonal", "identity"])
def test_scores_are_of_the_curvature_that_is_asked_for(sources, report, tmp_path, approximation):
    config = di.CurvatureConfig(approximation, draws=di.DrawConfig(2))
    found = attributed(sources, tmp_path, curvature=config)
    model, (train, asked) = di.load_model(sources / "pipeline"), (report.train.images, report.queries.images)
    scores = di.influence(
        model, di.fit_curvature(model, train, config), train, asked, approximation=approximation, damping=[1e-6],
        measurement=QUICK["measurement"], draws=options.options_for(14, draws=8).draws, train_format=options.STORE,
    )  # fmt: skip
    torch.testing.assert_close(found.scores, scores, rtol=1e-4, atol=1e-6 * float(scores.abs().max()))
    assert not torch.allclose(found.scores, report.scores, rtol=0.05)


def test_what_is_left_for_people_and_programs(report):
    assert report.train.names[0] == "a/00.png" and len(report.train) == 14 and report.train.class_names == ("a", "b")
    assert [group.members for group in report.findings.copies] == [
        tuple(map(report.train.names.index, ("b/03.png", "b/05.png")))
    ]
    manifest = json.loads((report.folder / "manifest.json").read_text())
    assert manifest["files"] == {name: file_digest(report.folder / name) for name in FILES}
    assert {"curvature", "train gradients", "query gradients", "scores"} <= manifest["measured_seconds"].keys()
    assert manifest["asked"]["options"]["dampings"] == [1e-6] and manifest["environment"]["versions"]["torch"]
    arrays = np.load(report.folder / "scores.npz")
    assert arrays["scores"].shape == (1, 3, 14) and list(arrays["queries"]) == ["14.png", "15.png", "16.png"]


def test_the_same_call_computes_nothing_again(sources, report, monkeypatch):
    monkeypatch.setattr("diffinf_lib.report.job.fit_curvature", None)
    before = {name: file_digest(report.folder / name) for name in FILES}
    assert torch.equal(attributed(sources, report.folder).scores, report.scores)
    assert {name: file_digest(report.folder / name) for name in FILES} == before


def test_other_options_are_refused_by_name_and_taken_with_force(sources, tmp_path):
    first = attributed(sources, tmp_path)
    with pytest.raises(ArtifactError, match=r"options.dampings is \[1e-06\] there, \[0.0001\] asked.*--force"):
        attributed(sources, tmp_path, damping=1e-4)
    made = (tmp_path / "curvature" / "curvature.safetensors").stat().st_mtime_ns
    second = attributed(sources, tmp_path, damping=1e-4, force=True)
    assert (tmp_path / "curvature" / "curvature.safetensors").stat().st_mtime_ns == made  # depends on no damping
    assert not torch.equal(first.scores, second.scores)
    torch.testing.assert_close(second.scores, attributed(sources, tmp_path / "fresh", damping=1e-4).scores)


def test_nothing_of_the_users_is_deleted(sources, tmp_path, capsys):
    """Neither queries where a report keeps its own samples, nor a folder that is no report's."""
    (tmp_path / "samples").mkdir()
    mine = tmp_path / "samples" / "mine.png"
    mine.write_bytes((sources / "asked" / "14.png").read_bytes())
    with pytest.raises(di.DiffinfError, match="lies where the report keeps its samples"):
        di.attribute(sources / "pipeline", sources / "photos", tmp_path / "samples", tmp_path, **QUICK)
    attributed(sources, tmp_path)
    attributed(sources, tmp_path, damping=1e-4, force=True)
    assert mine.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"a": 1}')
    with pytest.raises(ArtifactError, match="its config.json is not a report's"):
        attributed(sources, tmp_path / "other")


def test_a_file_given_twice_is_one_query(sources, tmp_path):
    asked = sources / "asked"
    twice = [asked / "15.png", asked / "14.png", asked / ".." / "asked" / "15.png"]
    report = di.attribute(sources / "pipeline", sources / "photos", twice, tmp_path, **QUICK)
    assert report.queries.names == ("15.png", "14.png") and report.scores.shape == (1, 2, 14)
    note = "given more than once, kept once: 15.png"
    assert note in json.loads((tmp_path / "manifest.json").read_text())["notes"] and note in report.page.read_text()
    with pytest.raises(di.DiffinfError, match="asked: that is a folder; give one folder alone, or files"):
        di.read_image_folder([asked, asked / "14.png"])


def test_other_queries_are_kept_as_they_fit(sources, tmp_path, monkeypatch):
    """More queries than the memory holds are packed, whatever an earlier call of the folder had; the rest stays as it was."""
    attributed(sources, tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    monkeypatch.setattr(plan, "HELD_BYTES", 0)
    di.attribute(sources / "pipeline", sources / "photos", sources / "asked" / "14.png", tmp_path, force=True, **QUICK)
    after = json.loads((tmp_path / "config.json").read_text())
    assert (before["sizes"]["pack_queries"], after["sizes"]["pack_queries"]) == (False, True)
    assert after["sizes"] == before["sizes"] | {"pack_queries": True}


def test_files_to_explain_may_stand_after_options(sources, tmp_path, capsys):
    words = [
        "attribute",
        str(sources / "pipeline"),
        str(sources / "photos"),
        "--out",
        str(tmp_path / "r"),
        "--draws",
        "8",
    ]
    assert main([*words, str(sources / "asked" / "14.png"), str(sources / "asked" / "15.png")]) == 0
    assert {row.split(",")[0] for row in (tmp_path / "r" / "scores.csv").read_text().splitlines()[1:]} == {
        "14.png",
        "15.png",
    }


def test_without_a_store_and_with_sketches(sources, report, tmp_path, monkeypatch):
    """What a large job does gives the same scores to the store's precision, and finds the same copies."""
    monkeypatch.setattr(plan, "STORE_SHARE", 0.0)
    monkeypatch.setattr(plan, "HELD_BYTES", 0)
    monkeypatch.setattr(plan, "SKETCH", 256)
    monkeypatch.setattr("diffinf_lib.gradients.sets.SHARD_IMAGES", 4)
    monkeypatch.setattr("diffinf_lib.gradients.sets.SHARD_BYTES", 4)
    large = attributed(sources, tmp_path)
    assert not (tmp_path / "gradients" / "train").exists() and not (tmp_path / "scores" / "pieces").exists()
    torch.testing.assert_close(large.scores, report.scores, rtol=0.05, atol=0.02 * float(report.scores.abs().max()))
    torch.testing.assert_close(large.self_influence, report.self_influence, rtol=0.05, atol=0.0)
    assert large.findings.copies == report.findings.copies


def test_generated_queries(sources, tmp_path):
    report = attributed(sources, tmp_path, generate=2)
    assert report.queries.names == ("sample-0000.png", "sample-0001.png") and report.scores.shape == (1, 2, 14)
    with Image.open(tmp_path / "samples" / "sample-0001.png") as picture:
        assert picture.size == (8, 8)


def test_classes_are_counted_as_training_tools_count_them(tmp_path):
    """Plain order of the folders' names, not 1, 2, 10; a network that is told classes has it on the page."""
    from torchvision.datasets import ImageFolder

    for name in ("1", "10", "2", "B", "a"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(2):
            Image.new("L", (8, 8), 20 * (len(name) + n) + ord(name[0])).save(tmp_path / "photos" / name / f"{n}.png")
    network = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, num_class_embeds=5,
    )  # fmt: skip
    model = di.Denoiser(network, DDPMScheduler())
    report = di.attribute(model, tmp_path / "photos", tmp_path / "photos", tmp_path / "out", **QUICK)
    theirs = ImageFolder(tmp_path / "photos")
    ours = {name: int(label) for name, label in zip(report.train.names, report.train.images.labels, strict=True)}
    root = str(tmp_path / "photos") + "/"
    assert ours == {path.removeprefix(root): label for path, label in theirs.samples}
    made = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert made["classes"] == theirs.classes == ["1", "10", "2", "B", "a"]
    assert "0 1, 1 10, 2 2, 3 B, 4 a" in report.page.read_text()


def test_one_class_is_not_worth_a_word(sources, report, tmp_path):
    assert "14 training images of 2 classes" in str(report)
    one = di.attribute(sources / "pipeline", sources / "photos" / "a", sources / "asked", tmp_path, **QUICK)
    assert "7 training images\n" in str(one)


def test_the_plan_is_said_before_the_work(sources, tmp_path, capsys):
    attributed(sources, tmp_path, progress=True)
    said = capsys.readouterr().err
    assert "14 training images, 3 queries: about" in said and "train gradients" in said


def test_a_batch_fits_the_memory_it_is_given():
    class Count:
        def peak_bytes(self, run, draws):
            return 100 + 10 * draws

    with unchecked():
        assert [plan.fitting_batch(Count(), None, 256, memory, 1.0) for memory in (1e9, 1000.0, 1.0)] == [256, 64, 1]


def test_draws_of_the_curvature_are_spread_over_the_images():
    assert [options.curvature_for(count).draws.count for count in (10, 200, 1000, 50_000)] == [60, 46, 10, 4]


def test_the_network_says_which_images_it_takes(sources):
    assert image_shape(di.load_model(sources / "pipeline")) == (1, 8, 8)
    assert image_shape(di.load_model(sources / "pipeline"), 16) == (1, 16, 16)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pipeline", "nowhere", "asked"), "images=.*nowhere: there is no such folder or file"),
        (("pipeline", "photos", "nowhere"), "queries=.*nowhere: there is no such folder or file"),
        (("pipeline", "photos"), "queries: give a folder or files to explain, or generate=16"),
        (("pipeline", "photos", "asked", "--generate", "3"), "one of the two"),
        (("nowhere", "photos", "asked"), "nowhere"),
        (("pipeline", "photos", "asked", "--out", "photos/report"), "it lies inside .*photos"),
        (("pipeline", "photos", "asked", "--damping", "-1"), "damping=-1.0"),
        (("pipeline", "photos", "asked", "--measurement=likes"), "measurement='likes'"),
        (("pipeline", "photos", "asked", "--draws", "7"), "draws=7"),
        (("pipeline", "photos", "asked", "--device=tpu"), "device='tpu'"),
        (
            ("pipeline", "photos", "asked", "--device=cuda:99"),
            "device='cuda:99': there is no such device here; give cpu",
        ),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(sources, tmp_path, capsys, words, message):
    paths = [str(sources / word) if word.isidentifier() or "/" in word else word for word in words]
    started = time.monotonic()
    with unchecked():
        assert main(["attribute", "--out", str(tmp_path / "out"), "--quiet", *paths]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffinf:")]
    assert re.search(message, line)
    assert time.monotonic() - started < 20 and not (tmp_path / "out").exists()


@pytest.mark.chaos
def test_a_killed_report_goes_on_to_the_same_scores(sources, tmp_path):
    """SIGKILL once the first gradients are there; the same command ends with the scores of one that was left alone."""

    def command(out):
        words = ["attribute", *(str(sources / name) for name in ("pipeline", "photos", "asked")), "--out", str(out)]
        return [sys.executable, "-m", "diffinf_lib", *words, "--threads", "1", "--quiet", "--draws", "16"]

    environment = os.environ | {"OMP_NUM_THREADS": "1", "DIFFINF_OFFLINE": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, timeout=300, capture_output=True)
    killed = subprocess.Popen(
        command(tmp_path / "killed"), env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while killed.poll() is None and not list((tmp_path / "killed").glob("curvature/*.safetensors")):
        time.sleep(0.005)
    assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "index.html").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, env=environment, timeout=300, capture_output=True)
    for name in ("scores.csv", "scores.npz", "findings.csv"):
        assert file_digest(tmp_path / "killed" / name) == file_digest(tmp_path / "whole" / name)
