"""Models of other people, as they leave them: read with their meaning, attributed as autograd does, or refused in a line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import diffusers
import peft
import pytest
import torch
from annotations import unchecked
from cases import by_definition
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file

from diffinf_lib.attribution import influence
from diffinf_lib.configuration import (
    MEASUREMENT_PURPOSE,
    DrawConfig,
    Expectation,
    MeasurementConfig,
    Process,
    TrainingConfig,
)
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, example_draws
from diffinf_lib.errors import ArtifactError, ConfigurationError, DiffinfError
from diffinf_lib.gradients import gradients_of
from diffinf_lib.loading import load_model, save_model
from diffinf_lib.measurements import measure
from diffinf_lib.models import build_model
from diffinf_lib.presets import get_preset
from diffinf_lib.sampling import sample
from diffinf_lib.training import train

WEIGHTS = "diffusion_pytorch_model.safetensors"
SMALL = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 4}
OLD_ATTENTION = {"attention_head_dim": None}
CIFAR10 = SMALL | OLD_ATTENTION | {  # google/ddpm-cifar10-32
    "block_out_channels": (8, 8, 8), "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "downsample_padding": 0, "flip_sin_to_cos": False,
    "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
CHURCH = CIFAR10 | {  # google/ddpm-church-256 and ddpm-celebahq-256: deep, attention in one narrow block
    "block_out_channels": (4, 4, 8, 8), "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}  # fmt: skip
BUTTERFLIES = SMALL | {  # the training example of diffusers
    "block_out_channels": (8, 8, 16), "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}  # fmt: skip
LATENT = SMALL | {  # the UNet of CompVis/ldm-celebahq-256
    "block_out_channels": (8, 16), "attention_head_dim": 8, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "norm_eps": 1e-6,
}  # fmt: skip
ADM = SMALL | {  # Dhariwal & Nichol 2021 as diffusers builds it: residual samplers, scale-shift, classes, learned variance
    "out_channels": 6, "block_out_channels": (8, 8), "attention_head_dim": 4, "num_class_embeds": 5,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), "resnet_time_scale_shift": "scale_shift",
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}  # fmt: skip

FLOW = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
LATENT_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
PUBLIC = {
    "ddpm-cifar10-32": (CIFAR10, DDPMScheduler()),
    "ddpm-church-256": (CHURCH, DDPMScheduler(variance_type="fixed_small")),
    "ddpm-celebahq-256": (CHURCH | {"layers_per_block": 2}, DDIMScheduler()),
    "butterflies": (BUTTERFLIES, DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
    "ldm-unet": (LATENT, DDIMScheduler(**LATENT_BETAS)),
    "adm": (ADM, DDPMScheduler(variance_type="learned_range")),
    "class-conditional": (BUTTERFLIES | {"num_class_embeds": 5}, PNDMScheduler()),
    "v": (BUTTERFLIES, DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")),
    "sample": (BUTTERFLIES, DDPMScheduler(prediction_type="sample")),
    "zero-snr": (BUTTERFLIES, DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)),
    "flow": (BUTTERFLIES, FLOW),
}


def network(config, seed=0):
    torch.manual_seed(seed)
    return UNet2DModel(**config)


def saved(folder, config, scheduler):
    """As a diffusers training loop leaves it."""
    made = network(config)
    DDPMPipeline(made, scheduler).save_pretrained(folder)
    return made


def images(count, classes=5, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return ImageSet(pixels, torch.arange(count) % classes, torch.arange(count) + 100 * seed)


def by_hand(made, scheduler, image, label, draws):
    """The loss of one image by diffusers' own functions: what its training scripts write."""
    pixels, noise = image.double().expand(len(draws.timesteps), -1, -1, -1), draws.noise.double()
    if scheduler is FLOW:
        share = (draws.timesteps.double() + 1) / 1000
        sigma = (3 * share / (1 + 2 * share)).view(-1, 1, 1, 1)  # scheduler.sigmas, which are float32
        noisy, target, time = (1 - sigma) * pixels + sigma * noise, noise - pixels, 1000 * sigma.flatten()
    else:
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        noisy, time = scheduler.add_noise(pixels, noise, draws.timesteps), draws.timesteps
        kind = scheduler.config.prediction_type
        velocity = DDPMScheduler.get_velocity
        target = {"epsilon": lambda: noise, "sample": lambda: pixels,
                  "v_prediction": lambda: velocity(scheduler, pixels, noise, draws.timesteps)}[kind]()  # fmt: skip
    told = {"class_labels": label.expand(len(time))} if made.config.num_class_embeds else {}
    output = made(noisy, time, **told).sample[:, :3]
    return (target - output).square().mean((1, 2, 3)).mean()


@pytest.mark.parametrize("name", PUBLIC)
def test_public_configurations_mean_what_their_training_meant(tmp_path, name):
    config, scheduler = PUBLIC[name]
    made = saved(tmp_path, config, scheduler).double().eval()
    model = load_model(tmp_path).double()
    data, draws = images(2), DrawConfig(4, noise_rule="independent")
    drawn = [
        example_draws(int(i), (3, 8, 8), draws, seed=0, purpose=MEASUREMENT_PURPOSE, process=model.process)
        for i in data.ids
    ]
    losses = torch.stack([by_hand(made, scheduler, *one) for one in zip(data.images, data.labels, drawn, strict=True)])
    torch.testing.assert_close(measure(model, data, MeasurementConfig(draws=draws)), losses.detach(), rtol=1e-5, atol=0)
    layers = [layer for layer in made.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]
    expected = torch.autograd.grad(losses[0], [layer.weight for layer in layers])
    curvature = fit_curvature(model, data, by_definition(DrawConfig(2), approximation="identity", exact_labels=False))
    found = gradients_of(model, curvature, data, Expectation(draws, MEASUREMENT_PURPOSE)).whole()
    assert len(found) == len(layers)
    scale = max(float(gradient.abs().max()) for gradient in expected)
    for gradient, matrix in zip(expected, found.values(), strict=True):
        torch.testing.assert_close(
            matrix[0, :, : gradient[0].numel()], gradient.flatten(1), rtol=1e-5, atol=1e-6 * scale
        )


@pytest.mark.parametrize("name", ["adm", "v", "flow"])
def test_they_are_attributed_and_sampled(tmp_path, name):
    saved(tmp_path, *PUBLIC[name])
    model, data, draws = load_model(tmp_path), images(4), DrawConfig(4)
    curvature = fit_curvature(model, data, by_definition(draws, exact_labels=False))
    scores = influence(model, curvature, data, images(2, seed=1), draws=draws, query_draws=draws)
    assert scores.shape == (2, 4) and scores.isfinite().all()
    labels = [0, 1] if model.condition_names else None
    samples = sample(model, 2, (3, 8, 8), steps=3, labels=labels)
    assert samples.isfinite().all() and samples.shape == (2, 3, 8, 8)


def test_a_model_comes_back(tmp_path):
    process = Process(target="v", beta_schedule="squaredcos_cap_v2", num_train_timesteps=50)
    model = build_model(get_preset("smoke").unet, process)
    save_model(model, tmp_path)
    back = load_model(tmp_path)
    assert not back.training and back.identity == model.identity
    assert not list(tmp_path.rglob("*.bin"))
    assert isinstance(DDPMPipeline.from_pretrained(tmp_path).scheduler, DDPMScheduler)


def test_every_kind_of_folder_is_found(tmp_path):
    saved(tmp_path / "pipeline", BUTTERFLIES, DDPMScheduler(prediction_type="sample"))
    expected = load_model(tmp_path / "pipeline").identity
    assert load_model(tmp_path / "pipeline" / "unet").identity == expected  # its scheduler stands beside it
    shutil.copytree(tmp_path / "pipeline" / "unet", tmp_path / "bare")
    with pytest.raises(ConfigurationError, match=r"no scheduler_config.json .* give process="):
        load_model(tmp_path / "bare")
    assert load_model(tmp_path / "bare", DDPMScheduler(prediction_type="sample")).identity == expected
    shutil.copy(tmp_path / "pipeline" / "scheduler" / "scheduler_config.json", tmp_path / "bare")
    assert load_model(str(tmp_path / "bare")).identity == expected


def test_a_half_precision_variant_is_read_in_full(tmp_path):
    DDPMPipeline(network(BUTTERFLIES).half(), DDPMScheduler()).save_pretrained(tmp_path, variant="fp16")
    model = load_model(tmp_path)
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.network.conv_in.weight, network(BUTTERFLIES).conv_in.weight.half().float())


def test_sharded_weights_are_read(tmp_path):
    network(BUTTERFLIES).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path, DDPMScheduler()).network
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), network(BUTTERFLIES).parameters(), strict=True))


def refused(folder, match, kind=ArtifactError):
    with unchecked(), pytest.raises(kind, match=match) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def rewritten(folder, change):
    weights = load_file(folder / "unet" / WEIGHTS)
    save_file(change(weights), folder / "unet" / WEIGHTS)


@pytest.mark.parametrize(("change", "match"), [
    (lambda w: {k: v for k, v in w.items() if k != "conv_in.weight"}, r"misses 1 tensor\(s\), such as conv_in.weight"),
    (lambda w: w | {"extra.weight": w["conv_in.weight"].clone()}, r"holds, beside what it needs, 1 tensor\(s\), such as extra"),
    (lambda w: {f"module.{k}": v for k, v in w.items()}, r"begin with 'module\.', a wrapper's: save the network inside it"),
    (lambda w: {f"_orig_mod.{k}": v for k, v in w.items()}, r"begin with '_orig_mod\.', a wrapper's"),
    (lambda w: w | {"conv_in.weight": w["conv_in.weight"][:4]}, r"conv_in.weight is \(4, 3, 3, 3\), not \(8, 3, 3, 3\)"),
])  # fmt: skip
def test_weights_that_are_not_all_there_are_refused(tmp_path, change, match):
    saved(tmp_path, BUTTERFLIES, DDPMScheduler())
    rewritten(tmp_path, change)
    refused(tmp_path, match)


def test_folders_without_usable_weights_are_refused(tmp_path):
    saved(tmp_path / "a", BUTTERFLIES, DDPMScheduler())
    weights = tmp_path / "a" / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(tmp_path / "a", "damaged")
    weights.unlink()
    refused(tmp_path / "a", "no safetensors weights there; it needs")
    (weights.parent / "diffusion_pytorch_model.bin").write_bytes(b"")
    refused(tmp_path / "a", r"diffusion_pytorch_model.bin is pickle, which may run code .* safe_serialization=True")
    (tmp_path / "b").mkdir()
    refused(tmp_path / "b", "neither config.json nor unet/config.json")
    refused(tmp_path / "c", "there is no such folder")
    refused(tmp_path / "a" / "model_index.json", "that is a file")
    refused("", "there is no such folder|neither config.json")


def test_what_cannot_be_a_model_is_refused(tmp_path):
    refused("x" * 300, "there is no such folder")
    refused(None, "model: a NoneType is no path; give a folder or a hub id", ConfigurationError)
    refused(network(BUTTERFLIES), "model: a UNet2DModel is no path; .* di.Denoiser", ConfigurationError)
    saved(tmp_path, BUTTERFLIES, DDPMScheduler())
    with pytest.raises(ConfigurationError, match="no_class=3: this network is not told classes; leave it out"):
        load_model(tmp_path, no_class=3)
    with pytest.raises(ConfigurationError, match="device='cuda:99': there is no such device here; give cpu"):
        load_model(tmp_path, device="cuda:99")
    with pytest.raises(ConfigurationError, match="str: its process is not understood"):
        load_model(tmp_path, "ddpm")


def test_a_warning_points_at_who_asked(tmp_path):
    saved(tmp_path, *PUBLIC["adm"])
    script = (
        "import warnings, diffinf_lib as di\nwith warnings.catch_warnings(record=True) as caught:\n"
        f"    warnings.simplefilter('always'); di.load_model({str(tmp_path)!r})\n"
        "print([warning.filename for warning in caught if 'predicts variances' in str(warning.message)])"
    )  # in a process of its own: where annotations are checked, the check stands between
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "['<string>']\n"


def test_a_name_that_is_no_folder_is_told_without_asking_a_hub():
    refused("nobody/no-such-model", "nothing of that name was downloaded before, and DIFFINF_OFFLINE=1 forbids asking")
    refused("./missing", "there is no such folder")
    refused("~nosuchuser/x", "there is no such folder")
    refused("a/b/c", "there is no such folder")


def test_networks_that_must_be_told_more_are_refused(tmp_path):
    text = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, cross_attention_dim=8, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    text.save_pretrained(tmp_path / "text")
    DDPMScheduler().save_pretrained(tmp_path / "text")
    refused(tmp_path / "text", "must be told encoder_hidden_states", ConfigurationError)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    DDPMScheduler().save_pretrained(tmp_path / "vae")
    refused(tmp_path / "vae", "a AutoencoderKL takes no timestep", ConfigurationError)
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    refused(
        tmp_path / "vae",
        "FluxTransformer2DModel takes encoder_hidden_states, .* before the timestep",
        ConfigurationError,
    )
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    (tmp_path / "text" / "config.json").write_text(json.dumps(config | {"_class_name": "MyNetwork"}))
    refused(tmp_path / "text", "'MyNetwork', which is no network of diffusers", ConfigurationError)


def test_a_transformer_of_classes_is_read(tmp_path):
    torch.manual_seed(0)
    made = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=6, num_layers=1, sample_size=8,
        patch_size=2, num_embeds_ada_norm=5, norm_num_groups=1,
    )  # fmt: skip
    made.save_pretrained(tmp_path / "transformer")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    model, data = load_model(tmp_path), images(2)
    assert model.classes == 5 and model.condition_names == ("class_labels",)
    assert measure(model, data, MeasurementConfig(draws=DrawConfig(4))).isfinite().all()


def latent(folder, *, index):
    """A pipeline with an autoencoder; its index is what diffusers writes, and may have been left out."""
    saved(folder, LATENT, DDIMScheduler())
    if index:
        told = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(told | {"first_stage": ["diffusers", "VQModel"]}))
    else:
        (folder / "model_index.json").unlink()
        AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(folder / "vae")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("part", ["", "unet"])
def test_a_latent_pipeline_says_so_and_its_network_is_known_by_what_stands_beside_it(tmp_path, part, index):
    latent(tmp_path, index=index)
    name = "first_stage" if index else "vae"
    with pytest.warns(UserWarning, match=f"a latent model, it denoises what its {name} makes of images"):
        assert load_model(tmp_path / part).encoder == name


def test_a_pipeline_of_pixels_has_no_encoder(tmp_path, recwarn):
    saved(tmp_path / "a", LATENT, DDIMScheduler())
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")  # of something else
    told = json.loads((tmp_path / "a" / "model_index.json").read_text())
    (tmp_path / "a" / "model_index.json").write_text(json.dumps(told | {"vae": [None, None]}))
    assert load_model(tmp_path / "a").encoder is None and load_model(tmp_path / "a" / "unet").encoder is None
    assert not [warning for warning in recwarn if "latent" in str(warning.message)]


def test_schedulers_that_are_not_understood_are_refused(tmp_path):
    saved(tmp_path, BUTTERFLIES, DDPMScheduler())
    with pytest.raises(ConfigurationError, match="ScoreSdeVeScheduler: its process is not understood"):
        load_model(tmp_path, diffusers.ScoreSdeVeScheduler())
    config = tmp_path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"epsilon"', '"score"'))
    refused(tmp_path, "prediction_type='score'|prediction_type given as score", DiffinfError)


def test_a_network_without_its_process_is_refused_wherever_it_is_given():
    bare, data = network(BUTTERFLIES), images(2)
    for use in (
        lambda: measure(bare, data), lambda: fit_curvature(bare, data), lambda: train(bare, data, TrainingConfig()),
        lambda: sample(bare, 1, (3, 8, 8)),
    ):  # fmt: skip
        with (
            unchecked(),
            pytest.raises(ConfigurationError, match=r"UNet2DModel does not say what it predicts.*di.Denoiser"),
        ):
            use()


def test_labels_that_a_network_does_not_know_are_refused():
    model = Denoiser(network(BUTTERFLIES | {"num_class_embeds": 5}), DDPMScheduler())
    strange = ImageSet(images(2).images, torch.tensor([1, 7]), torch.arange(2))
    with pytest.raises(ConfigurationError, match=r"1 of 2 images have none of the network's 5 classes \(label 7\)"):
        measure(model, strange)
    with pytest.raises(ConfigurationError, match="told one of 5 classes; give one a sample"):
        sample(model, 2, (3, 8, 8), steps=2)
    with pytest.raises(ConfigurationError, match="labels: this network is not told classes"):
        sample(Denoiser(network(BUTTERFLIES), Process()), 2, (3, 8, 8), steps=2, labels=[0, 1])


def test_dropped_conditions_are_part_of_a_draw():
    made = network(BUTTERFLIES | {"num_class_embeds": 5}).double().eval()
    model, data = Denoiser(made, DDPMScheduler(), no_class=4), images(3, classes=4)
    draws = DrawConfig(40, drop_condition=0.3, noise_rule="independent")
    (batch,) = Expectation(draws, "x").batches(model, data, 120)
    (told,) = Expectation(replace(draws, drop_condition=0.0), "x").batches(model, data, 120)
    assert torch.equal(batch.state, told.state) and torch.equal(batch.timesteps, told.timesteps)
    dropped = batch.conditions["class_labels"] == 4
    assert 20 < int(dropped.sum()) < 55
    assert torch.equal(batch.conditions["class_labels"][~dropped], told.conditions["class_labels"][~dropped])
    measured = measure(model, data, MeasurementConfig(draws=draws))
    parts = list(Expectation(draws, MEASUREMENT_PURPOSE).batches(model, data, 40))
    for value, part in zip(measured, parts, strict=True):
        labels = part.conditions["class_labels"]
        expected = (part.noise - made(part.state, part.timesteps, labels).sample).square().mean().detach()
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    with pytest.raises(ConfigurationError, match=r"drop_condition=0.3: this network has no label for no class"):
        measure(Denoiser(made, DDPMScheduler()), data, MeasurementConfig(draws=draws))
    with pytest.raises(ConfigurationError, match="no_class=5: give a label from 0 to 4"):
        Denoiser(made, DDPMScheduler(), no_class=5)


def test_training_can_drop_conditions(tmp_path):
    config = TrainingConfig(steps=3, batch_size=4, warmup_fraction=0, horizontal_flip=False, drop_condition=0.5)
    start = {"num_class_embeds": 5} | BUTTERFLIES
    made = Denoiser(network(start | {"num_class_embeds": 5}), DDPMScheduler(), no_class=4)
    trained = train(made, images(4, classes=4), config, out=tmp_path, progress=False).model
    assert trained.no_class == 4
    before = network(start | {"num_class_embeds": 5}).class_embedding.weight
    moved = (made.network.class_embedding.weight - before).abs().sum(1) > 1e-6
    assert bool(moved[4])  # the label for no class was seen
    with pytest.raises(ConfigurationError, match="no label for no class"):
        train(Denoiser(network(BUTTERFLIES), Process()), images(2), config)


def test_what_a_model_is_names_more_than_its_weights():
    made = network(BUTTERFLIES)
    other = network(BUTTERFLIES | {"flip_sin_to_cos": False})
    other.load_state_dict(made.state_dict())
    assert Denoiser(made, Process()).identity != Denoiser(other, Process()).identity
    assert Denoiser(made, Process()).identity != Denoiser(made, Process(target="v")).identity
    assert Denoiser(made, Process()).identity == Denoiser(network(BUTTERFLIES), Process()).identity


def test_training_into_a_folder_is_refused_where_the_folder_could_not_give_it_back(tmp_path):
    own = Denoiser(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)), DDPMScheduler())
    config = TrainingConfig(steps=1, batch_size=2)
    with pytest.raises(ConfigurationError, match="Sequential is no network of diffusers.*train without out="):
        train(own, images(2), config, out=tmp_path / "own", progress=False)
    with pytest.raises(ConfigurationError, match="Sequential is no network of diffusers"):
        save_model(own, tmp_path / "own")
    adapted = Denoiser(peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, target_modules=["conv1"]), network(BUTTERFLIES)), DDPMScheduler())  # fmt: skip
    with pytest.raises(ConfigurationError, match="merge adapters first"):
        save_model(adapted, tmp_path / "adapted")
    assert not list(tmp_path.iterdir())
    frozen = Denoiser(network(BUTTERFLIES).requires_grad_(False), DDPMScheduler())
    with pytest.raises(ConfigurationError, match="no parameter of the network is trainable"):
        train(frozen, images(2), config, progress=False)
    train(Denoiser(network(BUTTERFLIES), DDPMScheduler()), images(2), config, out=tmp_path / "a", progress=False)
    frozen.network.conv_out.requires_grad_(True)
    with pytest.raises(ArtifactError, match="made by another configuration: frozen"):
        train(frozen, images(2), config, out=tmp_path / "a", progress=False)


def test_settings_and_buffers_of_a_network_of_ones_own_are_part_of_what_it_is():
    def made(factor, buffer):
        own = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1))
        torch.nn.init.ones_(own[0].weight)
        torch.nn.init.zeros_(own[0].bias)
        own.factor, own.config = factor, object()  # a configuration of its own kind, which nothing here reads
        own.register_buffer("kept", torch.tensor(buffer), persistent=False)
        return Denoiser(own, Process()).identity

    assert made(1.0, 2.0) == made(1.0, 2.0)
    assert made(1.0, 2.0) != made(3.0, 2.0) and made(1.0, 2.0) != made(1.0, 3.0)


def test_times_that_are_not_timesteps_are_refused():
    for scheduler in (
        diffusers.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"),
        FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    ):
        with pytest.raises(ConfigurationError, match="tells the network another time than is understood"):
            Process.of(scheduler)


def test_dropout_and_the_callers_autocast_have_no_part_in_what_is_measured_and_sampled():
    model, data = Denoiser(network(BUTTERFLIES | {"dropout": 0.5}), DDPMScheduler()), images(2)
    config = MeasurementConfig(draws=DrawConfig(4))
    quiet, drawn = measure(model.eval(), data, config), sample(model, 1, (3, 8, 8), steps=2)
    model.train()
    assert torch.equal(measure(model, data, config), quiet) and model.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(measure(model, data, config), quiet)
        assert torch.equal(sample(model, 1, (3, 8, 8), steps=2), drawn)
