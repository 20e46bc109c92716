"""A denoiser says in one line what it lacks: its process, images that fit, a network that is called as networks are."""

import copy
import json
import subprocess
import sys

import diffusers
import peft
import pytest
import torch
from torch import nn

from diffinf_lib.configuration import (
    CurvatureConfig,
    DrawConfig,
    LikelihoodConfig,
    MeasurementConfig,
    Process,
    TrainingConfig,
    UNetConfig,
)
from diffinf_lib.curvature import fit_curvature
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.likelihood import log_likelihood
from diffinf_lib.measurements import measure
from diffinf_lib.models import build_model
from diffinf_lib.sampling import sample
from diffinf_lib.training import train

DRAWS = DrawConfig(2)
PROCESS = Process(num_train_timesteps=10)


def images(*shape):
    return ImageSet(torch.rand(*shape) * 2 - 1, torch.zeros(shape[0], dtype=torch.int64), torch.arange(shape[0]))


DOORS = {
    "measure": lambda model, data: measure(model, data, MeasurementConfig(draws=DRAWS)),
    "fit": lambda model, data: fit_curvature(model, data, CurvatureConfig(draws=DRAWS)),
    "train": lambda model, data: train(model, data, TrainingConfig(steps=1, batch_size=2), progress=False),
    "sample": lambda model, data: sample(model, 1, data.shape, steps=2),
    "likelihood": lambda model, data: log_likelihood(model, data, LikelihoodConfig(steps=2, draws=1), levels=17),
}


def transformer():
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, num_layers=1, sample_size=8, patch_size=2,
        num_embeds_ada_norm=5, norm_num_groups=1,
    )  # fmt: skip


def linear():
    return nn.Linear(8, 8)  # over the last dimension


class Timed(nn.Module):
    """Any module, told the time."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, noisy, time):
        return self.module(noisy)


def test_a_process_has_no_default():
    with pytest.raises(TypeError, match="process"):
        Denoiser(Timed(linear()))
    with pytest.raises(ConfigurationError, match="NoneType: its process is not understood here; give a scheduler"):
        Denoiser(Timed(linear()), None)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 3, 8, 8), r"images of \(3, 8, 8\): they have 3 channel\(s\), the network takes 1"),
        (
            (2, 1, 7, 7),
            r"images of \(1, 7, 7\): UNet2DModel does not take them \(built with in_channels=1, sample_size=8\)",
        ),
    ],
)
def test_images_that_a_network_cannot_take_are_refused_at_every_door(door, shape, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        DOORS[door](build_model(UNetConfig(), PROCESS), images(*shape))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("network", "shape", "said"),
    [
        (transformer, (2, 3, 9, 9), r"its output is \(2, 3, 8, 8\) for states \(2, 3, 9, 9\)"),
        (transformer, (2, 1, 8, 8), "they have 1 channel"),
        (lambda: Timed(linear()), (2, 1, 4, 4), r"images of \(1, 4, 4\): Timed does not take them: .*shapes.*give images"),
        (lambda: Timed(nn.Conv2d(3, 3, 1)), (2, 1, 4, 4), r"Timed does not take them: .*to have 3 channels"),
        (lambda: Timed(nn.Conv2d(1, 1, 9)), (2, 1, 4, 4), "Timed does not take them: .*Kernel size"),
        (lambda: Timed(nn.Conv2d(1, 1, 3)), (2, 1, 4, 4), r"its output is \(2, 1, 2, 2\) for states \(2, 1, 4, 4\)"),
        (lambda: Timed(nn.Flatten(0)), (2, 1, 4, 4), r"its output is \(32,\) for states"),
    ],
)  # fmt: skip
def test_any_network_names_the_images_that_it_does_not_take(network, shape, said):
    model, time = Denoiser(network(), PROCESS), torch.zeros(shape[0], dtype=torch.long)
    with pytest.raises(ConfigurationError, match=said):
        model(torch.zeros(shape), time, class_labels=time)


def test_errors_of_a_networks_own_stay_what_they_are():
    class Broken(nn.Module):
        def forward(self, noisy, time):
            raise self.error

    model = Denoiser(Broken(), PROCESS)
    for error in (
        RuntimeError("nothing works"),
        TypeError("of shapes"),
        torch.OutOfMemoryError("a tensor of that size"),
    ):
        model.network.error = error
        with pytest.raises(type(error), match=str(error)) as caught:
            model(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long))
        assert caught.value is error


class Returning(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, noisy, time):
        return self.made(noisy)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda x: (x, x), "Returning: it returned a tuple of 2, which does not say what the prediction is"),
        (lambda x: {"sample": x}, "it returned a dict"),
        (lambda x: None, "it returned a NoneType"),
    ],
)
def test_outputs_that_say_nothing_are_refused(made, said):
    with pytest.raises(ConfigurationError, match=said):
        Denoiser(Returning(made), PROCESS)(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("made", [
    lambda x: 2 * x, lambda x: (2 * x,), lambda x: diffusers.models.unets.unet_2d.UNet2DOutput(sample=2 * x),
])  # fmt: skip
def test_outputs_of_every_usual_form_are_taken(made):
    state = torch.rand(2, 1, 2, 2)
    found = Denoiser(Returning(made), PROCESS)(state, torch.zeros(2, dtype=torch.long))
    assert torch.equal(found, 2 * state)


def test_a_network_that_is_not_called_with_state_and_time_is_told_so():
    class WithClass(nn.Module):
        def forward(self, noisy, time, label):
            return noisy

    state, time = torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.long)
    with pytest.raises(
        ConfigurationError, match=r"Sequential: it is called as network\(state, time\), which its forward"
    ):
        Denoiser(nn.Sequential(linear()), PROCESS)(state, time)
    with pytest.raises(
        ConfigurationError,
        match=r"class_labels=\), which .* \(missing a required argument: 'label'\)",
    ):
        Denoiser(WithClass(), PROCESS, classes=2)(state, time, class_labels=time)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda network: Wrapped(network)], ids=["DataParallel", "wrapper"])
@pytest.mark.parametrize("door", ["measure", "train", "sample"])
def test_a_wrapper_that_hides_the_classes_of_its_network_is_told_so(wrap, door):
    network = build(diffusers.UNet2DModel, num_class_embeds=3)
    with pytest.raises(
        ConfigurationError, match=r"told the class of each image.*network inside.*classes=3\)"
    ) as caught:
        DOORS[door](Denoiser(wrap(network), PROCESS), images(2, 1, 8, 8))
    assert "\n" not in str(caught.value)
    told = Denoiser(nn.DataParallel(network), PROCESS, classes=3)
    assert measure(told, images(2, 1, 8, 8), MeasurementConfig(draws=DRAWS)).isfinite().all()


def test_a_network_without_parameters_is_measured_and_sampled_and_has_nothing_to_attribute():
    model, data = Denoiser(Returning(lambda x: 0.5 * x), PROCESS), images(2, 1, 4, 4)
    assert model.device.type == "cpu" and model.dtype == torch.float32
    assert measure(model, data, MeasurementConfig(draws=DRAWS)).isfinite().all()
    assert sample(model, 1, (1, 4, 4), steps=2).isfinite().all()
    with pytest.raises(ConfigurationError, match="no Conv2d or Linear layer to fit a curvature to"):
        fit_curvature(model, data, CurvatureConfig(draws=DRAWS))
    with pytest.raises(ConfigurationError, match="no parameter of the network is trainable"):
        train(model, data, TrainingConfig(steps=1), progress=False)
    model.network.register_buffer("kept", torch.ones(1))
    assert model.double().dtype == torch.float64


def test_a_compiled_model_is_whole():
    """Telling of shapes breaks no graph: what is compiled is one piece; tried where no annotation is checked."""
    script = (
        "import torch, diffinf_lib as di; model = di.build_model(di.configuration.UNetConfig(), di.Process());"
        "counted = torch._dynamo.explain(model)(torch.rand(2, 1, 8, 8), torch.tensor([1, 2]));"
        "assert counted.graph_break_count == 0"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


class Scaled(diffusers.UNet2DModel):
    """A network of diffusers with a setting of one's own, which its configuration does not name."""

    def __init__(self, **options):
        super().__init__(**options)
        self._scale = 1.0

    def forward(self, noisy, time):
        return self._scale * super().forward(noisy, time).sample


def build(kind, **options):
    torch.manual_seed(0)
    return kind(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False,
        **options,
    )  # fmt: skip


def scaled():
    return build(Scaled)


def with_adapters(alpha=4):
    network = build(diffusers.UNet2DModel)
    torch.manual_seed(1)
    return peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, lora_alpha=alpha, target_modules=["conv1"], init_lora_weights=False), network
    )


def louder(network):
    for module in network.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.scaling["default"] = 8.0


def without_adapters(network):
    for module in network.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.enable_adapters(False)


def other_times(network):
    network.time_proj.flip_sin_to_cos = not network.time_proj.flip_sin_to_cos


def twice(network):
    network._scale = 2.0


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, noisy, time):
        return self.inner(noisy, time)


@pytest.mark.parametrize(
    ("make", "change"),
    [(with_adapters, louder), (with_adapters, without_adapters), (scaled, other_times), (scaled, twice)],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_changes_the_output_changes_what_a_model_is(make, change, wrapped):
    """Settings of a module count beside the configuration that a network was built from, inside a wrapper too."""
    state, time = torch.ones(1, 1, 8, 8), torch.tensor([5])
    networks = [make(), make()]
    before, again = (Denoiser(Wrapped(network) if wrapped else network, PROCESS) for network in networks)
    assert before.identity == again.identity
    change(networks[1])
    assert not torch.equal(before(state, time), again(state, time))
    assert before.identity != again.identity


def test_adapters_of_another_strength_are_another_model():
    assert Denoiser(with_adapters(4), PROCESS).identity != Denoiser(with_adapters(16), PROCESS).identity


class Options(nn.Module):
    """Settings of every form that one may keep."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.level, self.parts = torch.tensor(factor), {"factor": [factor, torch.tensor(factor)], "made": object()}
        self.gradient_checkpointing = False

    def forward(self, noisy, time):
        return self.weight * self.level * noisy


def test_what_a_model_is_depends_neither_on_the_process_nor_on_the_device():
    first, second = Denoiser(Options(), PROCESS), Denoiser(Options(), PROCESS)
    assert first.identity == second.identity
    assert "0x" not in json.dumps(first.identity["settings"])
    adapted = json.dumps(Denoiser(with_adapters(), PROCESS).identity["settings"])
    assert "lora_alpha" in adapted and "base_model_name_or_path" not in adapted and "peft_version" not in adapted
    second.network.gradient_checkpointing = True  # spares memory, changes no output
    assert first.eval().identity == second.train().identity
    assert first.identity != Denoiser(Options(3.0), PROCESS).identity


def test_a_plain_network_is_told_by_its_configuration_alone(tmp_path):
    """So that what is kept of it outlives a version of diffusers with more settings."""
    network = build(diffusers.UNet2DModel)
    model = Denoiser(network, PROCESS)
    assert "settings" not in model.identity
    network.save_pretrained(tmp_path)
    back = diffusers.UNet2DModel.from_pretrained(tmp_path)
    assert Denoiser(back, PROCESS).identity == model.identity == Denoiser(copy.deepcopy(network), PROCESS).identity
