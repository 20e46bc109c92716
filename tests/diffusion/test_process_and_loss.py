import json
import warnings
from dataclasses import asdict, replace

import pytest
import torch
from annotations import unchecked
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from diffinf_lib.configuration import MEASUREMENT_PURPOSE, DrawConfig, MeasurementConfig, Process
from diffinf_lib.configuration.process import PREDICTION_TYPES
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, example_draws, per_draw_loss
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.measurements import measure
from diffinf_lib.sampling import sample


class Scaled(torch.nn.Module):
    """ε_θ(x_t, t) = w x_t, small enough to do by hand."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, noisy, timesteps):
        return self.weight * noisy


def test_alphas_are_the_product_of_one_minus_beta():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    expected = torch.cumprod(1 - betas, 0)
    torch.testing.assert_close(Process().alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-9)


def test_noising_agrees_with_diffusers():
    images, noise, steps = torch.randn(5, 1, 4, 4), torch.randn(5, 1, 4, 4), torch.tensor([0, 1, 500, 998, 999])
    expected = Process().scheduler().add_noise(images, noise, steps)
    torch.testing.assert_close(Process().noisy(images, steps, noise), expected)


FLOWS = [
    FlowMatchEulerDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    FlowMatchHeunDiscreteScheduler(),
]
ZERO = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
SCHEDULERS = [
    DDPMScheduler(), DDPMScheduler(beta_schedule="squaredcos_cap_v2"), DDPMScheduler(beta_schedule="laplace"),
    DDPMScheduler(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3), DDPMScheduler(prediction_type="sample"),
    DDIMScheduler(**ZERO), DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    PNDMScheduler(prediction_type="v_prediction"), DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    UniPCMultistepScheduler(), EulerDiscreteScheduler(), LMSDiscreteScheduler(beta_schedule="scaled_linear"),
]  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda s: type(s).__name__)
def test_any_scheduler_s_process_is_read(scheduler):
    process = Process.of(scheduler)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(process.alphas_cumprod, expected, rtol=1e-4, atol=1e-6)
    assert PREDICTION_TYPES[process.target] == scheduler.config.prediction_type
    assert process.num_train_timesteps == len(expected)
    assert Process.of(process.scheduler()) == process  # what is written is read again
    steps = torch.tensor([0, 1, process.num_train_timesteps - 1])
    images, noise = torch.randn(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    if isinstance(scheduler, (DDPMScheduler, DDIMScheduler)):
        torch.testing.assert_close(
            process.noisy(images, steps, noise), scheduler.add_noise(images, noise, steps), rtol=1e-5, atol=1e-5
        )


def test_a_zero_that_a_scheduler_steps_around_is_still_a_zero():
    process = Process.of(EulerDiscreteScheduler(**ZERO))
    assert process == replace(Process.of(DDIMScheduler(**ZERO)), clip_sample=process.clip_sample)
    assert process.coefficients.signal[-1] == 0


@pytest.mark.parametrize("scheduler", FLOWS, ids=lambda s: f"{type(s).__name__}-{s.config.shift}")
def test_a_flow_s_states_are_those_that_its_training_draws(scheduler):
    process = Process.of(scheduler)
    ours = process.coefficients.noise
    torch.testing.assert_close(ours.float(), scheduler.sigmas.flip(0), rtol=1e-5, atol=1e-6)
    images, noise, steps = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.tensor([10, 999])
    sigma = ours.float()[steps].view(-1, 1, 1, 1)
    torch.testing.assert_close(process.noisy(images, steps, noise), (1 - sigma) * images + sigma * noise)
    torch.testing.assert_close(process.target_of(images, steps, noise), noise - images)
    torch.testing.assert_close(process.times[steps], 1000 * ours[steps])  # the network is told T σ


@pytest.mark.parametrize("options", [
    {}, {"target": "image"}, {"target": "v"}, {"target": "v", "zero_terminal_snr": True}, {"target": "velocity"},
])  # fmt: skip
def test_image_and_noise_come_back_from_state_and_target(options):
    process, steps = Process(**options), torch.tensor([0, 400, 999])
    images, noise = torch.randn(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    noisy, target = process.noisy(images, steps, noise), process.target_of(images, steps, noise)
    image, found = process.solved(noisy, target, steps)
    torch.testing.assert_close(image, images, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, noise, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["v", "image"])
def test_targets_are_those_of_diffusers(kind):
    scheduler = DDPMScheduler(prediction_type=PREDICTION_TYPES[kind])
    process, steps = Process.of(scheduler), torch.tensor([3, 700])
    images, noise = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    expected = scheduler.get_velocity(images, noise, steps) if kind == "v" else images
    torch.testing.assert_close(process.target_of(images, steps, noise), expected)


def test_noise_that_says_nothing_of_the_image_is_refused():
    process = Process(zero_terminal_snr=True)
    state = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ConfigurationError, match="such a model is trained with target='v'"):
        process.solved(state, state, torch.tensor([999]))


def test_an_output_of_another_shape_is_refused():
    images = ImageSet(torch.zeros(1, 3, 2, 2), torch.zeros(1).long(), torch.zeros(1).long())
    for channels in (1, 2, 4, 9):
        network = torch.nn.Conv2d(3, channels, 1)
        network.forward = lambda noisy, timesteps, of=network: torch.nn.Conv2d.forward(of, noisy)
        with pytest.raises(ConfigurationError, match=rf"Conv2d: its output is .*{channels}, 2, 2\) for states"):
            measure(Denoiser(network, Process()), images)


def test_of_a_learned_variance_the_mean_is_the_output():
    network = torch.nn.Conv2d(3, 6, 1)
    network.forward = lambda noisy, timesteps: torch.nn.Conv2d.forward(network, noisy)
    noisy = torch.randn(2, 3, 2, 2)
    assert torch.equal(Denoiser(network, Process())(noisy, torch.tensor([0, 1])), network(noisy, None)[:, :3])


def test_scaled_linear_is_linear_in_the_square_root():
    process = Process(0.00085, 0.012, "scaled_linear")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(process.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), rtol=1e-4, atol=1e-9)


def test_per_draw_loss_by_hand():
    images, noise = torch.full((1, 1, 1, 2), 1.0).double(), torch.tensor([[[[2.0, 0.0]]]]).double()
    kept = float(Process().alphas_cumprod[300])
    noisy = [kept**0.5 + (1 - kept) ** 0.5 * 2, kept**0.5]
    expected = ((2 - 3 * noisy[0]) ** 2 + (0 - 3 * noisy[1]) ** 2) / 2
    actual = per_draw_loss(Denoiser(Scaled(3.0), Process()), images, torch.tensor([300]), noise)
    torch.testing.assert_close(actual, torch.tensor([expected]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("batch_size", [1, 5, 8, 64])
def test_the_measured_loss_is_the_mean_over_the_draws(batch_size):
    config, data = DrawConfig(8), ImageSet(torch.randn(3, 1, 4, 4), torch.zeros(3).long(), torch.tensor([4, 0, 11]))
    expected = []
    for image, example_id in zip(data.images.double(), data.ids, strict=True):
        draws = example_draws(
            int(example_id), (1, 4, 4), config, seed=0, purpose=MEASUREMENT_PURPOSE, process=Process()
        )
        losses = per_draw_loss(
            Denoiser(Scaled(0.5), Process()), image.expand(8, -1, -1, -1), draws.timesteps, draws.noise.double()
        )
        expected.append(losses.mean())
    actual = measure(Denoiser(Scaled(0.5), Process()), data, MeasurementConfig(draws=config), batch_size=batch_size)
    torch.testing.assert_close(actual, torch.stack(expected).detach(), rtol=1e-12, atol=0)


SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
PROCESSES = [
    Process(beta_schedule=schedule, target=target, zero_terminal_snr=zero, num_train_timesteps=timesteps, clip_sample=clip)
    for schedule in SCHEDULES
    for target in ("noise", "image", "v")
    for zero in (False, True)
    for timesteps, clip in ((12, 1.0), (1000, None), (2, 2.5))
] + [
    *(Process(num_train_timesteps=12, target="velocity", flow_shift=shift) for shift in (1.0, 3.0)),
    Process(0.00085, 0.012, "scaled_linear"), Process(0.001, 0.3, "sigmoid", num_train_timesteps=50),
    *(Process(num_train_timesteps=3, trained_betas=(0.1, 0.2, last), target="v") for last in (0.3, 1.0)),
    Process(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.3), zero_terminal_snr=True, target="v"),
]  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_process_is_what_it_was_after_it_was_written(process, tmp_path):
    scheduler = process.scheduler()
    assert Process.of(scheduler) == process
    scheduler.save_pretrained(tmp_path)
    assert Process.read(tmp_path) == process
    assert Process(**json.loads(json.dumps(asdict(process)))) == process


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_every_way_of_sampling_gives_images_or_is_refused(process):
    model = Denoiser(Scaled(0.5).float(), process)
    for method in ("ddpm", "ddim", "euler"):
        for steps in {1, 2, min(12, process.num_train_timesteps)}:
            solvable = bool((process.coefficients.determinant != 0).all())
            if method in process.samplers and solvable:
                assert sample(model, 2, (1, 2, 2), method=method, steps=steps).isfinite().all()
                continue
            with pytest.raises(ConfigurationError, match="is sampled by|noise says nothing"):
                sample(model, 2, (1, 2, 2), method=method, steps=steps)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "velocity", "beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' with target='velocity': it would say"),
        ({"target": "velocity", "zero_terminal_snr": True}, "zero_terminal_snr=True with target='velocity'"),
        ({"target": "velocity", "clip_sample": 0.5}, "clip_sample=0.5 with target='velocity'"),
        ({"target": "velocity", "beta_end": 0.1}, "beta_end=0.1 with target='velocity'"),
        ({"target": "velocity", "num_train_timesteps": 1, "trained_betas": (0.1,)}, "^trained_betas with target='velocity'"),
        ({"flow_shift": 3.0}, "flow_shift=3.0 with target='noise'"),
        ({"num_train_timesteps": 1, "trained_betas": (0.1,), "beta_start": 0.001}, "beta_start=0.001 with trained_betas"),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.001}, "beta_start=0.001 with beta_schedule='squaredcos"),
        ({"num_train_timesteps": 2, "trained_betas": (1.0, 0.5)}, "trained_betas: only the last can be 1"),
        ({"num_train_timesteps": 1, "zero_terminal_snr": True, "target": "v"}, "num_train_timesteps=1 with zero_terminal_snr"),
    ],
)  # fmt: skip
def test_options_that_say_nothing_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Process(**options)


def test_options_that_diffusers_writes_and_does_not_use_are_read_away():
    cosine = DDPMScheduler(beta_schedule="squaredcos_cap_v2", beta_start=0.00085, beta_end=0.012)
    assert Process.of(cosine) == Process(beta_schedule="squaredcos_cap_v2")
    trained = DDPMScheduler(3, trained_betas=[0.1, 0.2, 0.3], beta_schedule="scaled_linear", beta_start=0.00085)
    assert Process.of(trained) == Process(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.3))


def test_bad_schedules_are_refused():
    with pytest.raises(ConfigurationError, match="beta_start"):
        Process(beta_start=0.1, beta_end=0.01)
    with pytest.raises(ConfigurationError, match="num_train_timesteps=0"):
        Process(num_train_timesteps=0)
    with pytest.raises(ConfigurationError, match="method"):
        Process().scheduler("euler")


@pytest.mark.parametrize("kind", [DDPMScheduler, Process])
def test_a_class_in_place_of_a_scheduler_is_told(kind):
    with pytest.raises(ConfigurationError, match=rf"process={kind.__name__}: that is a class; .* {kind.__name__}\(\)"):
        Denoiser(Scaled(0.5), kind)


@pytest.mark.parametrize("steps", [2.5, "8", 0, 1001])
def test_steps_are_whole_numbers(steps):
    with unchecked(), pytest.raises(ConfigurationError, match=f"steps={steps!r}: give a whole number from 1 to 1000"):
        Process().check_sampler("ddim", steps)


def test_options_of_sampling_that_are_not_followed_are_said():
    for scheduler, said in [
        (DDPMScheduler(variance_type="fixed_large"), "variance_type='fixed_large'"),
        (DDIMScheduler(thresholding=True), "thresholding=True"),
        (DDPMScheduler(variance_type="fixed_large_log", thresholding=True), "'fixed_large_log' and thresholding=True"),
    ]:
        with pytest.warns(UserWarning, match=f"samples made here do not follow .*{said}"):
            assert Process.of(scheduler).target == "noise"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Process.of(DDPMScheduler(variance_type="learned_range"))
        Process.of(DDIMScheduler())
