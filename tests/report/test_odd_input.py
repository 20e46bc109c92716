"""What a practitioner may do wrong, or oddly, with one command: it is done right and said, or refused in one line."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from annotations import unchecked
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image

import diffinf_lib as di
from diffinf_lib.cli import main

QUICK = {
    "draws": 2,
    "curvature": di.CurvatureConfig(draws=di.DrawConfig(2)),
    "measurement": di.MeasurementConfig(draws=di.DrawConfig(2)),
}


def network(channels=1, **options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8,),
        norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, **options,
    )  # fmt: skip


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def saved(folder, *arrays, kind="png", **options):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(
            folder / f"{number}.{kind}", **options
        )
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("odd")
    for name, channels in (("grey", 1), ("colour", 3)):
        DDPMPipeline(network(channels), DDPMScheduler()).save_pretrained(root / name)
    saved(root / "photos", *pixels(4, 8, 8))
    saved(root / "rgb", *pixels(4, 8, 8, 3))
    saved(root / "asked", *pixels(2, 8, 8, seed=1))
    return root


def told(report):
    return " / ".join([*report.train.notes, *report.queries.notes])


def test_grey_and_colour_are_brought_to_what_the_network_takes_and_said(root, tmp_path, capsys):
    grey = di.attribute(root / "colour", root / "photos", root / "rgb" / "0.png", tmp_path / "a", **QUICK)
    assert "4 of 4 images are grey, read as RGB" in told(grey) and "in colour" not in told(grey)
    colour = di.attribute(root / "grey", root / "rgb", root / "asked", tmp_path / "b", progress=True, **QUICK)
    assert "note: 4 of 4 images are stored in colour, read as grey" in capsys.readouterr().err
    assert "4 of 4 images are stored in colour, read as grey" in told(colour)
    assert "stored in colour, read as grey" in colour.page.read_text()


def test_images_that_are_cut_or_enlarged_are_said(root, tmp_path):
    saved(tmp_path / "small", *pixels(2, 1, 1), pixels(6, 12), pixels(9, 9))
    report = di.attribute(root / "grey", tmp_path / "small", root / "asked", tmp_path / "out", **QUICK)
    assert "3 of 4 images are smaller than asked for and were enlarged" in told(report)
    assert "1 of 4 images are not square; their central square is read (2.png)" in told(report)


def test_files_of_every_kind(root, tmp_path):
    """Several frames, CMYK, names that break lines or are no text, and a picture that is all black."""
    frames = [Image.fromarray(array) for array in pixels(3, 8, 8)]
    for number, kind in enumerate(("gif", "tiff", "webp")):
        (tmp_path / "all").mkdir(exist_ok=True)
        frames[0].save(tmp_path / "all" / f"m{number}.{kind}", save_all=True, append_images=frames[1:])
    Image.fromarray(pixels(8, 8, 4), "CMYK").save(tmp_path / "all" / "c.jpg")
    Image.new("L", (8, 8)).save(tmp_path / "all" / "black.png")
    strange = ["new\nline.png", "tab\t.png", "emoji 🎈.png", "x" * 245 + ".png", "=1+1.png", 'q"<b>.png']
    for number, name in enumerate(strange):
        Image.fromarray(pixels(8, 8, seed=number + 5)).save(tmp_path / "all" / name)
    Image.fromarray(pixels(8, 8, seed=30)).save(os.fsencode(tmp_path / "all") + b"/\xff.png")
    report = di.attribute(root / "grey", tmp_path / "all", tmp_path / "all", tmp_path / "out", **QUICK)
    assert report.scores.shape == (1, 12, 12) and report.scores.isfinite().all()
    assert "3 of 12 images hold several frames or pages; the first is read" in told(report)
    text = report.page.read_text()
    assert "new\\nline.png" in text and "<b>.png" not in text and "new\nline" not in text
    assert len(str(report).splitlines()) == 6


def test_files_are_not_taken_for_the_latents_that_a_model_denoises(root, tmp_path, capsys):
    """Latents of three channels look like RGB; only what stands beside the network tells."""
    DDPMPipeline(network(3), DDPMScheduler()).save_pretrained(tmp_path / "ldm")
    (tmp_path / "ldm" / "vqvae").mkdir()
    (tmp_path / "ldm" / "vqvae" / "config.json").write_text('{"_class_name": "VQModel"}')
    for source in (tmp_path / "ldm", tmp_path / "ldm" / "unet"):
        with pytest.raises(di.DiffinfError, match="its vqvae makes of images, a VQModel, .*encode .*di.influence"):
            di.attribute(source, root / "rgb", root / "asked", tmp_path / "out", **QUICK)
        with pytest.raises(di.DiffinfError, match="latents that its vqvae makes of images; .*--autoencoder PATH"):
            di.attribute(di.load_model(source), root / "rgb", root / "asked", tmp_path / "out", **QUICK)
    code = main(["attribute", str(source), str(root / "rgb"), str(root / "asked"), "--out", str(tmp_path / "out")])
    refusal = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diffinf: ")]
    assert code == 2 and len(refusal) == 1 and "latents" in refusal[0] and not (tmp_path / "out").exists()


def test_queries_that_are_training_images_and_images_all_alike(root, tmp_path):
    report = di.attribute(root / "grey", root / "photos", root / "photos" / "1.png", tmp_path / "a", **QUICK)
    assert "It is pixel for pixel the training image <bdi>1.png</bdi>" in report.page.read_text()
    saved(tmp_path / "same", *[pixels(8, 8)] * 3)
    alike = di.attribute(root / "grey", tmp_path / "same", root / "asked", tmp_path / "b", **QUICK)
    assert alike.findings.copies[0].members == (0, 1, 2) and alike.scores.isfinite().all()


def test_modes_and_types_of_a_model_have_no_part_in_scores(root, tmp_path):
    model = di.Denoiser(network(dropout=0.5), DDPMScheduler())
    quiet = di.attribute(model.eval(), root / "photos", root / "asked", tmp_path / "a", **QUICK)
    with torch.inference_mode():
        noisy = di.attribute(model.train(), root / "photos", root / "asked", tmp_path / "b", **QUICK)
    assert torch.equal(quiet.scores, noisy.scores) and model.training
    DDPMPipeline(network().bfloat16(), DDPMScheduler()).save_pretrained(tmp_path / "bf16")
    half = di.attribute(tmp_path / "bf16", root / "photos", root / "asked", tmp_path / "c", damping=0, **QUICK)
    assert half.scores.isfinite().all()


def refused(root, tmp_path, match, model="grey", images="photos", queries="asked", out=None, **options):
    given = [root / part if isinstance(part, str) else part for part in (model, images, queries)]
    with unchecked(), pytest.raises(di.DiffinfError, match=match) as caught:
        di.attribute(*given, out or tmp_path / "out", **QUICK | options)
    assert "\n" not in str(caught.value)
    assert out or not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(("options", "match"), [
    ({"images": "grey"}, "grey: no images in there"),
    ({"model": "photos"}, "neither config.json nor unet/config.json"),
    ({"model": None}, "model: NoneType does not say what it predicts"),
    ({"model": network()}, r"model: UNet2DModel does not say what it predicts.*di.Denoiser\(network, scheduler\)"),
    ({"model": di.Denoiser(network(), DDPMScheduler()).requires_grad_(False)}, "is trainable"),
    ({"images": None}, "images: a NoneType is no path"),
    ({"images": torch.zeros(2, 1, 8, 8)}, "images: a Tensor is no path; give a folder or files, or score tensors with"),
    ({"queries": [3]}, "queries: a int is no path"),
    ({"queries": []}, "queries: give a folder or files to explain"),
    ({"images": ["photos"]}, "images=photos: there is no such folder or file"),
    ({"draws": 0}, "draws=0: give a positive whole number"),
    ({"draws": 1 << 50}, "draws=1125899906842624: the noise of one image takes .* of memory, .* are free; give fewer"),
    ({"damping": -1}, "damping=-1: give a number >= 0"),
    ({"damping": "x"}, "damping='x': give a number >= 0"),
    ({"damping": [1e-8, True]}, "damping=True: give"),
    ({"damping": []}, "damping: give at least one number"),
    ({"image_size": "8"}, "image_size='8': give a positive whole number or None"),
    ({"image_size": 8.0}, "image_size=8.0: give"),
    ({"image_size": 0}, "image_size=0: give"),
    ({"seed": 1.5}, "seed=1.5: give a whole number"),
    ({"queries": None, "generate": 1.5}, "generate=1.5: give a whole number >= 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(root, tmp_path, options, match):
    refused(root, tmp_path, match, **options)


class OfOnesOwn(torch.nn.Module):
    """A network whose `config` is no mapping."""

    def __init__(self, config):
        super().__init__()
        torch.manual_seed(0)
        self.config, self.layer = config, torch.nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, noisy, time):
        return self.layer(noisy)


@pytest.mark.parametrize("config", [SimpleNamespace(sample_size=8), "name", None, 3])
def test_a_network_may_call_anything_its_config(root, tmp_path, config):
    model = di.Denoiser(OfOnesOwn(config), DDPMScheduler())
    refused(root, tmp_path, "image_size: the network's configuration names no sample_size; give one", model=model)
    report = di.attribute(model, root / "rgb", root / "asked", tmp_path / "out", image_size=8, **QUICK)
    assert report.scores.isfinite().all() and report.scores.shape[-2:] == (2, 4)


def test_archives_and_files_that_are_no_images_are_refused(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        file.write(root / "photos" / "0.png")
    refused(
        root, tmp_path, "photos.zip: that is an archive; unpack it and give the folder", images=tmp_path / "photos.zip"
    )
    refused(root, tmp_path, "that is a file; give the folder that holds", model=tmp_path / "photos.zip")
    whole = (root / "photos" / "0.png").read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / "x.png").write_bytes(content)
        refused(root, tmp_path, "x.png: cannot be read as an image", images=tmp_path / "bad")
    (tmp_path / "bad" / "x.png").unlink()
    (tmp_path / "bad" / "x.png").symlink_to("/nowhere")
    refused(root, tmp_path, "x.png: cannot be read", images=tmp_path / "bad")


def test_a_report_is_written_over_nothing_of_other_peoples(root, tmp_path):
    before = {path: path.read_bytes() for path in (root / "grey").rglob("*") if path.is_file()}
    refused(root, tmp_path, "that is the model's folder, and the report's files would spoil it", out=root / "grey")
    refused(root, tmp_path, "it lies inside", out=root / "photos" / "report")
    assert {path: path.read_bytes() for path in (root / "grey").rglob("*") if path.is_file()} == before
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    refused(root, tmp_path, "site: it holds index.html of something else; give another folder", out=tmp_path / "site")
    refused(root, tmp_path, "of something else", out=tmp_path / "site", force=True)
    assert (tmp_path / "site" / "index.html").read_text() == "mine"
    (tmp_path / "file").write_text("")
    refused(root, tmp_path, "out=.*file: cannot write there", out=tmp_path / "file")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_may_not_be_written(root, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    refused(root, tmp_path, "cannot write there", out=tmp_path / "closed" / "out")


def command(root, out, *words):
    paths = [str(root / name) for name in ("grey", "photos", "asked")]
    return [
        sys.executable,
        "-m",
        "diffinf_lib",
        "attribute",
        *paths,
        "--out",
        str(out),
        "--quiet",
        "--draws",
        "8",
        *words,
    ]


def test_two_at_once_in_one_folder_and_one_that_is_interrupted(root, tmp_path):
    """Of two, one works and the other reads what it left; ctrl-C is one line, and the same command goes on."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command(root, tmp_path / "both"), **piped) for _ in range(2)]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background would not hear of it
    stopped = subprocess.Popen(command(root, tmp_path / "stopped"), **piped, preexec_fn=heard)
    while stopped.poll() is None and not (tmp_path / "stopped" / "config.json").exists():
        time.sleep(0.01)
    stopped.send_signal(signal.SIGINT)
    assert "diffinf: interrupted; the same command goes on from here" in stopped.communicate(timeout=120)[1]
    assert stopped.returncode == 130
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert main(command(root, tmp_path / "stopped")[3:]) == 0
    for name in ("scores.csv", "findings.csv"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "both" / name).read_bytes()
