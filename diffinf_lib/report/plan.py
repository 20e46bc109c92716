"""Plan of a report: what it will take here, and the sizes that fit into this machine."""

import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from diffinf_lib.autoencoder import Autoencoder
from diffinf_lib.compression import stored_bytes
from diffinf_lib.configuration import SamplingConfig, StoreFormat
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import require
from diffinf_lib.planner import Plan, Rates
from diffinf_lib.planner.encoding import AutoencoderCount, encoding_rate
from diffinf_lib.planner.network import NetworkCount, Pass
from diffinf_lib.planner.plan import CPU_WORKSPACE, FLOAT, Estimator, StageEstimate, readable_bytes, readable_time
from diffinf_lib.planner.rates import rates_of
from diffinf_lib.presets import get_preset
from diffinf_lib.report.options import SAMPLER_STEPS, SKETCH, STORE, ReportOptions
from diffinf_lib.shapes import ImageShape

HELD_BYTES = 1 << 30
"""Gradients are held in memory in full up to this size: those of all queries, and of all training images to compare them."""
STORE_SHARE = 0.5
"""Training gradients are kept if they take no more than this share of the free disk."""
MEMORY_SHARE = 0.5
"""A pass may take this share of the free memory."""
MOST_DRAWS = 256
ENCODED_AT_ONCE = 16
"""Images that an autoencoder takes at a time, at most."""
CSV_ROW = 60.0
"""Bytes of a row of `scores.csv`."""


@dataclass(frozen=True)
class Sizes:
    """What was fitted to the machine when the report was begun; a killed one goes on with the same.

    Attributes:
        fit_batch, batch: draws a pass, of the curvature and of gradients.
        keep: whether training gradients are kept, for other queries.
        pack_queries: whether query gradients are packed.
        sketch: dimension in which training images are compared; None for whole gradients.
        encode_batch: images that the autoencoder of a latent model takes at a time.
    """

    fit_batch: int
    batch: int
    keep: bool
    pack_queries: bool
    sketch: int | None
    encode_batch: int = ENCODED_AT_ONCE

    @property
    def query_format(self) -> StoreFormat | None:
        """How query gradients are kept."""
        return STORE if self.pack_queries else None


def free_memory(device: str) -> float:
    """Bytes that can be had now: the device's, or what the system counts as available; infinite where nothing says so."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
        if limit.exists() and limit.read_text().strip().isdigit():
            available = min(available, float(limit.read_text()) - float(used.read_text()))
        return available
    except (OSError, StopIteration, ValueError):
        return math.inf


def fitting_batch(
    count: NetworkCount | AutoencoderCount, run: Pass, wanted: int, memory: float, workspace: float
) -> int:
    """The most draws, halving from `wanted`, whose pass fits into `memory` bytes; at least one."""
    one, two = (workspace * count.peak_bytes(run, draws) for draws in (1, 2))
    draws = wanted
    while draws > 1 and one + (draws - 1) * (two - one) > memory:
        draws //= 2
    return draws


class JobPlan:
    """The cost of one report on this machine.

    Args:
        network: as it will run.
        shape: (C, H, W) of one image in pixels.
        train, queries: how many of each; generated queries are counted by the options.
        autoencoder: of a latent model.
    """

    def __init__(
        self, network: Denoiser, shape: ImageShape, train: int, queries: int, options: ReportOptions, device: str,
        autoencoder: Autoencoder | None = None,
    ):  # fmt: skip
        self.autoencoder = autoencoder
        self.encoder = None if autoencoder is None else AutoencoderCount(autoencoder.network.config, shape)
        self.shape = shape if self.encoder is None else self.encoder.latent
        self.count = NetworkCount(network, options.curvature, self.shape)
        self.network, self.options, self.device = network, options, device
        self.train, self.queries = train, queries
        self.workspace = CPU_WORKSPACE if device == "cpu" else 1.0

    def sizes(self, folder: Path) -> Sizes:
        """What fits into the memory and the disk of this machine.

        Raises:
            ConfigurationError: not even the smallest way fits on the disk.
        """
        self._check_draws()
        count, entries = self.count, FLOAT * self.count.entries
        memory = MEMORY_SHARE * max(0.0, free_memory(self.device) - FLOAT * (count.factor_entries + 2 * count.entries))
        free = shutil.disk_usage(folder).free
        kept = self.train * stored_bytes(STORE, count.block_shapes.values())
        sizes = Sizes(
            fit_batch=fitting_batch(count, count.factor_pass, 100, memory, self.workspace),
            batch=fitting_batch(count, count.gradient_pass, MOST_DRAWS, memory, self.workspace),
            keep=kept < STORE_SHARE * free,
            pack_queries=self.queries * entries > HELD_BYTES,
            sketch=SKETCH if self.train * entries > HELD_BYTES else None,
            encode_batch=self._encode_batch(),
        )
        needed = sum(stage.disk_bytes for stage in self._stages(sizes, None))
        require(needed < free, f"out={folder}: {readable_bytes(needed)} are needed there, {readable_bytes(free)} are free; "
                "give a folder on a larger disk")  # fmt: skip
        return sizes

    def _encode_batch(self) -> int:
        """Images a pass of the autoencoder, before anything else is in memory; decoding takes more than encoding."""
        if self.encoder is None:
            return ENCODED_AT_ONCE
        run = self.encoder.decode_pass if self.options.generate else self.encoder.encode_pass
        memory = MEMORY_SHARE * free_memory(self.device)
        return fitting_batch(self.encoder, run, ENCODED_AT_ONCE, memory, self.workspace)

    def _check_draws(self) -> None:
        """Refuse more draws than the noise of one image leaves memory for: it is drawn at once."""
        options, memory = self.options, free_memory("cpu")
        draws = max(options.draws.count, options.curvature.draws.count, options.measurement.draws.count)
        held = 2 * FLOAT * draws * math.prod(self.shape)
        require(held < memory, f"draws={draws}: the noise of one image takes {readable_bytes(held)} of memory, "
                f"{readable_bytes(memory)} are free; give fewer")  # fmt: skip

    def estimate(self, sizes: Sizes) -> Plan:
        """FLOPs, seconds, disk and memory of every stage; measures this machine for a few seconds."""
        rates, encoding = rates_of(self.network, self.count, self.device, self._passes(sizes)), 1.0
        if self.autoencoder is not None and self.encoder is not None:
            encoding = encoding_rate(self.autoencoder, self.encoder.image, sizes.encode_batch)
        return Plan("report", tuple(self._stages(sizes, rates, encoding)))

    def _passes(self, sizes: Sizes) -> dict[str, int]:
        gradient = {"gradient": min(sizes.batch, self.options.draws.count)}
        return gradient | ({"forward": min(self.queries, MOST_DRAWS)} if self.options.generate else {})

    def _stages(self, sizes: Sizes, rates: Rates | None, encoding: float = 1.0) -> list[StageEstimate]:
        options, given = self.options, self.queries - self.options.generate
        preset = replace(
            get_preset("digits"), name="report", curvature=options.curvature, gradient_draws=options.draws,
            measurement=options.measurement, further_measurements=(), store_format=STORE, query_format=sizes.query_format,
            store_budget=1e30 if sizes.keep else 0.0,
            sampling=SamplingConfig(max(1, options.generate), steps=SAMPLER_STEPS),
        )  # fmt: skip
        estimator = Estimator(
            preset, self.count, rates or Rates.uniform(1.0), self.train, given,
            self.device == "cpu", options.generate, (sizes.fit_batch, sizes.batch),
        )  # fmt: skip
        stages = [
            estimator.curvature(),
            estimator.query_gradients(),
            estimator.train_gradients(),
            self._compared(estimator, sizes),
        ]
        if self.encoder is not None:
            counts = {"latents": self.train} | ({"query latents": given} if given else {})
            stages = [*(self._encoded(self.encoder, *each, sizes, encoding) for each in counts.items()), *stages]
        return [*([self._sampled(estimator, sizes, encoding)] if options.generate else []), *stages]

    def _encoded(
        self, count: AutoencoderCount, name: str, images: int, sizes: Sizes, rate: float
    ) -> StageEstimate:  # fmt: skip
        """Images into latents, once."""
        flops, disk = images * count.encoding, FLOAT * images * math.prod(count.latent)
        return StageEstimate(name, flops, flops / rate, disk, self._coding(count, count.encode_pass, sizes))

    def _coding(self, count: AutoencoderCount, run: Pass, sizes: Sizes) -> float:
        """Peak bytes of a pass of the autoencoder, beside both networks' weights."""
        weights = FLOAT * (self.count.parameters + count.parameters)
        return weights + self.workspace * count.peak_bytes(run, sizes.encode_batch)

    def _sampled(self, estimator: Estimator, sizes: Sizes, rate: float) -> StageEstimate:
        """Samples, and the pictures that they stand for where they are latents."""
        sampled, count, images = estimator.sampling(), self.encoder, self.options.generate
        if count is None:
            return sampled
        flops, pictures = images * count.decoding, FLOAT * images * math.prod(count.image)
        return replace(
            sampled, flops=sampled.flops + flops, seconds=sampled.seconds + flops / rate,
            disk_bytes=sampled.disk_bytes + pictures,
            peak_bytes=max(sampled.peak_bytes, self._coding(count, count.decode_pass, sizes)),
        )  # fmt: skip

    def _compared(self, estimator: Estimator, sizes: Sizes) -> StageEstimate:
        """Scoring, and the comparison of all training images with one another."""
        scores, dimension = estimator.scores(), sizes.sketch or self.count.entries
        flops = 2.0 * self.train**2 * dimension + 2.0 * self.train * self.count.entries * (sizes.sketch or 0)
        held = FLOAT * self.train * dimension
        disk = scores.disk_bytes * len(self.options.dampings) + CSV_ROW * self.train * self.queries
        disk += 0.0 if sizes.keep else held
        peak = scores.peak_bytes + 2 * held + 2 * estimator.together * estimator.each
        return replace(
            scores, flops=scores.flops + flops, seconds=scores.seconds + flops / estimator.rates.products, disk_bytes=disk,
            peak_bytes=peak,
        )  # fmt: skip


def in_words(plan: Plan) -> str:
    """Time, memory and disk of a job in a line."""
    seconds, disk = (sum(getattr(stage, name) for stage in plan.stages) for name in ("seconds", "disk_bytes"))
    memory = max(stage.peak_bytes for stage in plan.stages)
    return f"about {readable_time(seconds)}, {readable_bytes(memory)} of memory and {readable_bytes(disk)} of disk"


def as_record(sizes: Sizes) -> dict[str, Any]:
    """Sizes as plain values."""
    return asdict(sizes)
