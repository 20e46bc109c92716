"""Reports of models that denoise latents: scores of the latents of what people see, by the model's own autoencoder."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from annotations import unchecked
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DModel,
    VQModel,
)
from made_data import save_autoencoder
from PIL import Image

import diffinf_lib as di
from diffinf_lib.autoencoder import Autoencoder, read_autoencoder
from diffinf_lib.cli import main
from diffinf_lib.errors import ArtifactError
from diffinf_lib.loading import read_model
from diffinf_lib.pictures import data_uri
from diffinf_lib.planner.encoding import AutoencoderCount
from diffinf_lib.report import options, plan
from diffinf_lib.report.page import SIDE

COUNT, PIXELS = 8, 24
QUICK = {
    "draws": 4,
    "curvature": di.CurvatureConfig(draws=di.DrawConfig(2)),
    "measurement": di.MeasurementConfig(draws=di.DrawConfig(4)),
    "damping": 1e-2,
}


def network(channels=4, **options):
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=6, in_channels=channels, out_channels=channels, layers_per_block=1, block_out_channels=(8,),
        norm_num_groups=4, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A latent pipeline whose autoencoder takes sides to a quarter, the network alone, photos with a copy, and two queries."""
    root = tmp_path_factory.mktemp("latent")
    scheduler = DDPMScheduler(clip_sample=False)
    DDPMPipeline(network(), scheduler).save_pretrained(root / "ldm")
    save_autoencoder(root / "ldm")
    DDPMPipeline(network(), scheduler).save_pretrained(root / "alone")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT + 2, PIXELS, PIXELS, 3), dtype=np.uint8)
    pixels[5] = pixels[3]
    for n, array in enumerate(pixels):
        folder = root / "photos" / "ab"[n % 2] if n < COUNT else root / "asked"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{n}.png")
    return root


def attributed(root, out, model="ldm", queries="asked", **changed):
    given = root / model if isinstance(model, str) else model
    return di.attribute(given, root / "photos", None if queries is None else root / queries, out, **QUICK | changed)


@pytest.fixture(scope="module")
def report(root, tmp_path_factory):
    return attributed(root, tmp_path_factory.mktemp("report") / "out")


def by_hand(folder, named):
    """The means that diffusers' own autoencoder gives, in the units that its pipelines denoise."""
    coder = AutoencoderKL.from_pretrained(folder / "vae").eval()
    config, images = coder.config, named.images
    with torch.no_grad():
        means = coder.encode(images.images).latent_dist.mean
    latents = (means - (config.shift_factor or 0.0)) * config.scaling_factor
    rows = (
        latents.contiguous()
    )  # as they are kept: an eigenbasis of few draws shows the rounding of another order of sums
    return di.ImageSet(rows, images.labels, images.ids)


def influence(model, train, queries):
    curvature = di.fit_curvature(model, train, QUICK["curvature"])
    return di.influence(
        model, curvature, train, queries, measurement=QUICK["measurement"], draws=options.options_for(2, draws=4).draws,
        damping=[QUICK["damping"]], train_format=options.STORE,
    )  # fmt: skip


def same(found, expected, within=1e-3):
    torch.testing.assert_close(found, expected, rtol=within, atol=within * float(expected.abs().max()))


def test_scores_are_those_of_images_encoded_by_hand(root, report):
    train, queries = (by_hand(root / "ldm", named) for named in (report.train, report.queries))
    model = di.Denoiser(network(), DDPMScheduler(clip_sample=False)).eval()
    expected = influence(model, train, queries)
    same(report.scores, expected)
    halved = di.ImageSet(train.images / 2, train.labels, train.ids)
    assert float((influence(model, halved, queries) - expected).abs().max()) > 0.05 * float(expected.abs().max())


def test_people_see_pixels(root, report):
    assert report.train.images.shape == (3, PIXELS, PIXELS) and report.queries.images.shape == (3, PIXELS, PIXELS)
    read = di.read_image_folder(root / "photos").images
    assert torch.equal(report.train.images.images, read.images) and torch.equal(report.train.images.ids, read.ids)
    page = report.page.read_text()
    assert all(data_uri(image, SIDE) in page for image in read.images)
    assert f"{PIXELS} × {PIXELS} pixels, 3 channels" in page and "the means of their latents, 4 × 6 × 6 numbers" in page
    apart = (report.queries.images.images[:, None] - read.images[None]).double().square().flatten(2).mean(2).sqrt() / 2
    same(report.pixel_distances, apart, 1e-6)
    (group,) = [group for group in report.findings.copies if group.by == "pixels"]
    assert [report.train.names[n] for n in group.members] == ["b/3.png", "b/5.png"]


def test_nobody_is_told_to_encode(root, tmp_path, recwarn):
    attributed(root, tmp_path)
    assert not [warning for warning in recwarn if "latent" in str(warning.message)]


def test_generated_latents_are_shown_decoded(root, tmp_path, monkeypatch):
    report = attributed(root, tmp_path, queries=None, generate=2)
    latents = report.queries.latents
    assert latents is not None and latents.shape == (4, 6, 6) and report.queries.images.shape == (3, PIXELS, PIXELS)
    coder = AutoencoderKL.from_pretrained(root / "ldm" / "vae").eval()
    with torch.no_grad():
        pictures = coder.decode(latents.images / 0.5 + 0.1).sample.clamp(-1, 1)
    same(report.queries.images.images, pictures)
    with Image.open(tmp_path / "samples" / "sample-0001.png") as picture:
        assert picture.size == (PIXELS, PIXELS)
    model = di.Denoiser(network(), DDPMScheduler(clip_sample=False)).eval()
    same(report.scores, influence(model, by_hand(root / "ldm", report.train), latents))
    for name in ("diffinf_lib.report.job.sample", "diffinf_lib.report.job.decoded"):
        monkeypatch.setattr(name, None)
    again = attributed(root, tmp_path, queries=None, generate=2)
    assert torch.equal(again.queries.images.images, report.queries.images.images)


def test_a_report_killed_after_the_encoding_goes_on(root, report, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("diffinf_lib.report.job.fit_curvature", killed)
        with pytest.raises(KeyboardInterrupt):
            attributed(root, tmp_path)
    monkeypatch.setattr(Autoencoder, "means", None)  # nothing is encoded again
    assert torch.equal(attributed(root, tmp_path).scores, report.scores)
    assert attributed(root, tmp_path).train.latents is None  # they are not needed any more


def test_an_encoding_that_was_killed_goes_on_and_a_damaged_one_is_redone(root, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "ENCODED_AT_ONCE", 4)
    expected = attributed(root, tmp_path / "whole").scores
    encode, seen = Autoencoder.means, []

    def watched(self, images, *, until=None):
        if until is not None and len(seen) == until:
            raise KeyboardInterrupt
        seen.append(len(images))
        return encode(self, images)

    with monkeypatch.context() as patched:
        patched.setattr(Autoencoder, "means", lambda self, images: watched(self, images, until=1))
        with pytest.raises(KeyboardInterrupt):
            attributed(root, tmp_path / "killed")
    monkeypatch.setattr(Autoencoder, "means", watched)
    assert torch.equal(attributed(root, tmp_path / "killed").scores, expected)
    assert seen == [4, 4, 2]  # the first four, the others, the queries
    rows = tmp_path / "killed" / "latents" / "train" / "rows.npy"
    content = bytearray(rows.read_bytes())
    content[-3] ^= 1
    rows.write_bytes(content)
    shutil.rmtree(tmp_path / "killed" / "scores")
    with pytest.warns(UserWarning, match="rows.npy missing or damaged; the stage is redone"):
        assert torch.equal(attributed(root, tmp_path / "killed").scores, expected)
    assert seen[3:] == [4, 4]


def test_another_autoencoder_is_another_report(root, report, tmp_path):
    shutil.copytree(root / "ldm", tmp_path / "moved")
    shutil.copytree(report.folder, tmp_path / "out")
    assert torch.equal(attributed(root, tmp_path / "out", tmp_path / "moved").scores, report.scores)
    weights = tmp_path / "moved" / "vae"
    coder = AutoencoderKL.from_pretrained(weights)
    with torch.no_grad():
        coder.encoder.conv_out.bias += 0.3
    coder.save_pretrained(weights)
    before = (tmp_path / "out" / "latents" / "queries" / "rows.npy").read_bytes()
    with pytest.raises(ArtifactError, match="autoencoder is [0-9a-f]{16} there, [0-9a-f]{16} asked.*--force"):
        attributed(root, tmp_path / "out", tmp_path / "moved")
    forced = attributed(root, tmp_path / "out", tmp_path / "moved", force=True)
    assert before != (tmp_path / "out" / "latents" / "queries" / "rows.npy").read_bytes()
    assert float((forced.scores - report.scores).abs().max()) > 0.01 * float(report.scores.abs().max())
    same(forced.scores, attributed(root, tmp_path / "fresh", autoencoder=weights).scores)


def test_other_queries_and_options_encode_no_training_image_again(root, report, tmp_path, monkeypatch):
    shutil.copytree(report.folder, tmp_path / "out")
    encode, seen = Autoencoder.means, []
    monkeypatch.setattr(Autoencoder, "means", lambda self, images: seen.append(len(images)) or encode(self, images))
    attributed(root, tmp_path / "out", seed=1, force=True)
    assert not seen
    attributed(root, tmp_path / "out", queries="photos", seed=1, force=True)
    assert seen == [COUNT]


def test_a_network_alone_takes_the_autoencoder_that_is_given(root, report, tmp_path, capsys):
    model = di.Denoiser(network(), DDPMScheduler(clip_sample=False), encoder="vae")
    same(attributed(root, tmp_path / "model", model, autoencoder=str(root / "ldm")).scores, report.scores)
    words = [str(root / name) for name in ("alone", "photos", "asked")]
    words += ["--draws", "4", "--out", str(tmp_path / "cli"), "--autoencoder", str(root / "ldm" / "vae")]
    assert main(["attribute", *words]) == 0
    said = capsys.readouterr().err
    assert re.search(r"^latents +\S+ ", said, re.MULTILINE) and re.search(r"^query latents +\S+ ", said, re.MULTILINE)
    made = json.loads((tmp_path / "cli" / "manifest.json").read_text())
    assert {"latents", "query latents"} <= made["measured_seconds"].keys() & made["planned_seconds"].keys()


def test_a_network_that_is_told_classes(root, tmp_path):
    torch.manual_seed(0)
    told = network(num_class_embeds=2)
    DDPMPipeline(told, DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "classes")
    shutil.copytree(root / "ldm" / "vae", tmp_path / "classes" / "vae")
    report = attributed(root, tmp_path / "out", tmp_path / "classes", queries="photos")
    model = di.Denoiser(told, DDPMScheduler(clip_sample=False)).eval()
    train = by_hand(root / "ldm", report.train)
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    same(report.scores, influence(model, train, train))


@pytest.mark.filterwarnings("ignore:.*embeddings are left out")
def test_a_transformer_as_diffusers_keeps_it(root, tmp_path):
    """A DiT with its autoencoder: two classes, a variance beside each number, layers that are called twice."""
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8, num_layers=1, sample_size=6, patch_size=2,
        num_embeds_ada_norm=2, norm_num_groups=1,
    )  # fmt: skip
    for parameter in made.parameters():  # some are made as zeros, and nothing would pass through them
        torch.nn.init.normal_(parameter, std=0.2)
    coder = AutoencoderKL.from_pretrained(root / "ldm" / "vae")
    DiTPipeline(made, coder, DDIMScheduler(clip_sample=False)).save_pretrained(tmp_path / "dit")
    report = attributed(root, tmp_path / "out", tmp_path / "dit", queries="photos")
    train = by_hand(tmp_path / "dit", report.train)
    same(report.scores, influence(read_model(tmp_path / "dit"), train, train))
    assert train.shape == (4, 6, 6) and report.scores.std() > 0


def test_image_size_is_in_pixels(root, tmp_path):
    report = attributed(root, tmp_path, image_size=16)
    assert report.train.images.shape == (3, 16, 16)
    assert np.load(tmp_path / "latents" / "train" / "rows.npy").shape == (1, COUNT, 4, 4, 4)


def test_the_encoding_is_planned(root, report, tmp_path, monkeypatch):
    coder = read_autoencoder(root / "ldm", "cpu")
    options_here = options.options_for(COUNT, **QUICK)
    model = di.Denoiser(network(), DDPMScheduler())
    job = plan.JobPlan(model, (3, PIXELS, PIXELS), COUNT, 2, options_here, "cpu", coder)
    found = job.estimate(job.sizes(tmp_path))
    for name, folder in (("latents", "train"), ("query latents", "queries")):
        size = (report.folder / "latents" / folder / "rows.npy").stat().st_size
        assert found[name].disk_bytes == size - 128 and found[name].seconds > 0  # the header of the file
    more = plan.JobPlan(model, (3, PIXELS, PIXELS), 5 * COUNT, 2, options_here, "cpu", coder)
    assert more.estimate(more.sizes(tmp_path))["latents"].flops == 5 * found["latents"].flops
    count = AutoencoderCount(coder.network.config, (3, PIXELS, PIXELS))
    one, two = (count.peak_bytes(count.encode_pass, images) for images in (1, 2))
    monkeypatch.setattr(
        plan, "free_memory", lambda _: (one + 4.2 * (two - one)) * plan.CPU_WORKSPACE / plan.MEMORY_SHARE
    )
    assert job.sizes(tmp_path).encode_batch == 4


def test_flops_of_encoding_by_hand():
    """One level without attention: two convolutions of a block and their shortcut's like, counted from their weights."""
    coder = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2, mid_block_add_attention=False)
    products = sum(
        module.weight.numel()
        for part in (coder.encoder, coder.quant_conv)
        for module in part.modules()
        if isinstance(module, torch.nn.Conv2d)
    )
    assert AutoencoderCount(coder.config, (3, 8, 8)).encoding == 2 * 64 * products


def broken(root, folder, kind):
    """A copy of the latent pipeline in which something is wrong with the autoencoder."""
    shutil.copytree(root / "ldm", folder)
    if kind == "no weights":
        (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    if kind == "not there":
        shutil.rmtree(folder / "vae")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderKL"]}))
    if kind == "VQModel":
        shutil.rmtree(folder / "vae")
        VQModel(block_out_channels=(4,), norm_num_groups=2, latent_channels=4).save_pretrained(folder / "vqvae")
    if kind == "channels":
        AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=3).save_pretrained(folder / "vae")
    return folder


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("no weights", "vae: no safetensors weights there; it needs diffusion_pytorch_model.safetensors"),
        (
            "not there",
            r"model=.*pipeline: .* that its vae makes .*no vae/config.json; put it there, or give autoencoder=",
        ),
        (
            "VQModel",
            "model=.*pipeline: .* its vqvae makes of images, a VQModel, and only an AutoencoderKL is read",
        ),
        ("channels", "autoencoder=.*vae: its latents have 3 channels, the network takes 4; give the autoencoder that"),
    ],
)
def test_a_pipeline_with_an_unfit_autoencoder_is_refused(root, tmp_path, kind, match):
    folder = broken(root, tmp_path / "pipeline", kind)
    refused(root, tmp_path, match, model=folder)
    if kind == "VQModel":  # what is given goes before what is there
        assert attributed(root, tmp_path / "out", folder, autoencoder=root / "ldm").train.latents is not None


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"model": "alone"}, r"model: it takes 4 channels, .*autoencoder=PATH \(--autoencoder PATH\)"),
        (
            {"model": di.Denoiser(network(), DDPMScheduler(), encoder="vae")},
            r"its vae makes of images; .*--autoencoder PATH",
        ),
        ({"image_size": 18}, "image_size=18: the network and its autoencoder take multiples of 4"),
        (
            {"autoencoder": "/nowhere"},
            "autoencoder=/nowhere: there is no such folder; give its folder, that of a pipeline",
        ),
        ({"autoencoder": "photos"}, "autoencoder=.*photos: no config.json of an AutoencoderKL there"),
        ({"autoencoder": "ldm/unet"}, "autoencoder=.*unet: it is a UNet2DModel, and only an AutoencoderKL is read"),
        ({"autoencoder": 3}, "autoencoder: a int is no path; give a folder or a hub id"),
        ({"out": "ldm/vae", "model": "alone", "autoencoder": "ldm/vae"}, "that is the autoencoder's folder"),
    ],
)
def test_what_makes_no_sense_is_refused(root, tmp_path, given, match):
    folders = {name: root / value for name, value in given.items() if isinstance(value, str) and value[0] != "/"}
    refused(root, tmp_path, match, **given | folders)


def refused(root, tmp_path, match, **given):
    out, model = given.pop("out", tmp_path / "out"), given.pop("model", "ldm")
    with unchecked(), pytest.raises(di.DiffinfError, match=match) as caught:
        attributed(root, out, model, **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not (out / "index.html").exists()
