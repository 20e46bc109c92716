"""Rates: FLOPs a second of each kind of work, measured on the machine at hand in a few seconds, or given for another one."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from diffinf_lib.artifacts import read_tensors, write_tensors
from diffinf_lib.configuration import DrawConfig, Expectation
from diffinf_lib.curvature import curvature_layers
from diffinf_lib.curvature.layers import layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_values
from diffinf_lib.models import build_model
from diffinf_lib.planner.network import NetworkCount
from diffinf_lib.presets import Preset

READING = 4e9
"""Bytes a second that another machine is taken to read: an NVMe disk, or memory that is not pinned over PCIe."""
MOST_FLOPS = 2e11
"""A calibration pass is cut to a batch of about this many FLOPs: seconds on two cores."""
READ_BYTES = 1 << 24
"""Bytes that are read to see how fast reading is."""


@dataclass(frozen=True)
class Rates:
    """FLOPs a second.

    Attributes:
        forward, training, gradient: of the preset's own network, forward alone, an optimizer step, and gradients of one
            example's draws.
        products: of large matrix products.
        decomposition: of eigendecompositions, counted as 9 d³ (Golub & Van Loan 2013, section 8.3).
        reading: bytes a second of kept gradients, from the disk or the host's memory to the device.
    """

    forward: float
    training: float
    gradient: float
    products: float
    decomposition: float
    reading: float = READING

    @staticmethod
    def uniform(flops_per_second: float) -> "Rates":
        """One rate for everything, such as 20e12 for an A100 in TF32; eigendecompositions at a fiftieth of it."""
        rate = flops_per_second
        return Rates(rate, rate, rate, rate, rate / 50)


def seconds_of(work: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of a few timings, after one that does not count."""
    taken = []
    for _ in range(repeats + 1):
        _wait()
        started = time.perf_counter()
        work()
        _wait()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured_rates(preset: Preset, count: NetworkCount, device: str) -> Rates:
    """Rates of this machine with the preset's own network, at the batch sizes of its stages."""
    model = build_model(preset.unet, preset.process).to(device)
    draws = {"forward": 512, "training": preset.training.batch_size, "gradient": min(preset.gradient_draws.count, 256)}
    return rates_of(model, count, device, draws)


def rates_of(model: Denoiser, count: NetworkCount, device: str, draws: Mapping[str, int]) -> Rates:
    """Rates of this machine with a model.

    Args:
        draws: a batch of each kind of pass, at most; a kind that is left out is not measured, and its rate is infinite.
    """
    calibration = _Calibration(model, count, device)
    rates = dict.fromkeys(("forward", "training", "gradient"), math.inf)
    for name, wanted in draws.items():
        flops = count.forward if name == "forward" else count.gradient
        batch = calibration.batch(flops, wanted)
        rates[name] = flops * batch / seconds_of(getattr(calibration, name)(batch))
    side, size = 1024, 256
    square, symmetric = torch.randn(side, side, device=device), torch.eye(size, device=device).double()
    return Rates(
        **rates,
        products=2 * side**3 / seconds_of(lambda: square @ square),
        decomposition=9 * size**3 / seconds_of(lambda: torch.linalg.eigh(symmetric + square[:size, :size].double())),
        reading=_reading(device),
    )


def _reading(device: str) -> float:
    """Bytes a second of a tensor's way from a file, which the system has at hand, to the device."""
    with tempfile.TemporaryDirectory() as folder:
        path, content = Path(folder) / "read.safetensors", {"read": torch.zeros(READ_BYTES, dtype=torch.uint8)}
        write_tensors(path, content)
        return READ_BYTES / seconds_of(lambda: read_tensors(path)["read"].to(device).sum())


class _Calibration:
    """The passes of the stages, each as a function of the number of draws that returns what is to be timed."""

    def __init__(self, model: Denoiser, count: NetworkCount, device: str):
        self.model, self.shape, self.device = model, count.shape, device

    def batch(self, flops: float, wanted: int) -> int:
        return max(1, min(wanted, int(MOST_FLOPS / flops)))

    def draws(self, count: int) -> DrawBatch:
        """One batch of draws of one image."""
        image = ImageSet(torch.zeros(1, *self.shape), torch.tensor([0]), torch.tensor([0]))
        rule = DrawConfig(count, noise_rule="independent")
        return next(Expectation(rule, "calibration").batches(self.model, image, count))

    def forward(self, count: int) -> Callable[[], object]:
        batch = self.draws(count)

        @torch.no_grad()
        def work() -> object:
            return self.model.predict(batch)

        return work

    def training(self, count: int) -> Callable[[], object]:
        batch = self.draws(count)
        parameters = list(self.model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=0.0, fused=self.model.device.type in ("cuda", "cpu"))
        from diffusers.training_utils import EMAModel

        average = EMAModel(parameters, foreach=True)

        def work() -> None:
            optimizer.zero_grad(set_to_none=True)
            objective_values(self.model, batch).mean().backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.step(parameters)

        return work

    def gradient(self, count: int) -> Callable[[], object]:
        parameters = layer_parameters(curvature_layers(self.model))

        def work() -> None:
            torch.autograd.grad(objective_values(self.model, self.draws(count)).mean(), parameters)

        return work
