"""Plan: what every stage of a run will cost, before anything runs."""

import math
from dataclasses import dataclass

from diffinf_lib.attribution.scoring import streamed_bytes
from diffinf_lib.compression import stored_bytes
from diffinf_lib.configuration import KNOWN_SIZES, DrawConfig, StoreFormat
from diffinf_lib.data import load_dataset
from diffinf_lib.data.mapped import ROWS_AT_ONCE
from diffinf_lib.errors import require
from diffinf_lib.gradients.compute import GRADIENT_BATCH
from diffinf_lib.gradients.sets import HELD_BYTES, SHARD_BYTES, images_of_shard
from diffinf_lib.measurements import forward_passes
from diffinf_lib.planner.encoding import AutoencoderCount
from diffinf_lib.planner.network import NetworkCount, Pass, network_count
from diffinf_lib.planner.rates import Rates, measured_rates
from diffinf_lib.presets import Preset
from diffinf_lib.settings import own_settings

FLOAT, DOUBLE = 4, 8
CPU_WORKSPACE = 2.0
"""A CPU's kernels keep copies of activations in layouts of their own: memory of a pass is about twice what tensors hold."""
FIT_BATCH, MEASURE_BATCH = 100, 512
"""Draws a batch, where the stages do not ask for others."""


@dataclass(frozen=True)
class StageEstimate:
    """What one stage costs.

    Attributes:
        flops: of matrix products and convolutions, two for a multiplication and an addition.
        seconds: of one device, not of several side by side.
        disk_bytes: what it leaves.
        peak_bytes: memory at its most, above what an idle process holds; on the device, where there is one.
    """

    name: str
    flops: float
    seconds: float
    disk_bytes: float
    peak_bytes: float


@dataclass(frozen=True)
class Plan:
    """The stages of a run; `str()` is a table."""

    preset: str
    stages: tuple[StageEstimate, ...]

    def __getitem__(self, name: str) -> StageEstimate:
        """A stage by its name."""
        return next(stage for stage in self.stages if stage.name == name)

    def __str__(self) -> str:
        whole = StageEstimate(
            "all", sum(s.flops for s in self.stages), sum(s.seconds for s in self.stages),
            sum(s.disk_bytes for s in self.stages), max(s.peak_bytes for s in self.stages),
        )  # fmt: skip
        lines = [f"{self.preset:24}{'PFLOP':>10}{'time':>12}{'disk':>12}{'memory':>12}"]
        for s in (*self.stages, whole):
            size, memory = readable_bytes(s.disk_bytes), readable_bytes(s.peak_bytes)
            lines.append(f"{s.name:24}{s.flops / 1e15:10.3g}{readable_time(s.seconds):>12}{size:>12}{memory:>12}")
        return "\n".join(lines)


def readable_bytes(count: float) -> str:
    """Bytes in the largest unit that leaves a number above one."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def readable_time(seconds: float) -> str:
    """Seconds in the largest unit that leaves a number above one."""
    for unit, size in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


@own_settings
def estimate(
    preset: Preset,
    *,
    train_count: int | None = None,
    query_count: int | None = None,
    device: str = "cpu",
    flops_per_second: float | None = None,
) -> Plan:
    """FLOPs, bytes and seconds of every stage of a run of this preset.

    Networks are counted on the meta device. Seconds come from rates that are measured here with the preset's own network,
    which takes a few seconds, or from one rate for another machine.

    Args:
        train_count: N; default the preset's.
        query_count: held-out queries; default the preset's. Generated ones are added.
        flops_per_second: of another machine, such as 20e12 for an A100 in TF32; nothing is measured then.

    Raises:
        ConfigurationError: a number of images or a rate is not positive.
    """
    for name, value in (("train_count", train_count), ("query_count", query_count)):
        require(value is None or value > 0, f"{name}={value}: give a positive number")
    rate = flops_per_second
    require(rate is None or (math.isfinite(rate) and rate > 0), f"flops_per_second={rate}: give a positive number, such "
            "as 20e12")  # fmt: skip
    train, held_out = counts(preset, train_count, query_count)
    network = network_count(preset.unet, preset.curvature)
    rates = measured_rates(preset, network, device) if rate is None else Rates.uniform(rate)
    on_cpu = device == "cpu" and rate is None
    return Plan(preset.name, tuple(Estimator(preset, network, rates, train, held_out, on_cpu).stages()))


def counts(preset: Preset, train_count: int | None, query_count: int | None) -> tuple[int, int]:
    """How many training images and held-out queries a preset has, without downloading anything."""
    config = preset.dataset
    train, queries = train_count or config.train_size, query_count or config.query_size
    if train is None or queries is None:
        if config.name == "digits" or config.name.startswith("folder:"):
            data = load_dataset(config)
            found = len(data.train), len(data.queries)
        else:
            found = KNOWN_SIZES[config.name]
        train, queries = train or found[0], queries or found[1]
    return train, queries


class Estimator:
    """The arithmetic of the stages.

    Args:
        train: N.
        held_out: queries from elsewhere.
        on_cpu: whether a CPU does the work, or a GPU.
        generated: queries that the model draws; default the preset's.
        batches: draws a pass, of the curvature and of gradients.
    """

    def __init__(
        self, preset: Preset, network: NetworkCount, rates: Rates, train: int, held_out: int, on_cpu: bool,
        generated: int | None = None, batches: tuple[int, int] = (FIT_BATCH, GRADIENT_BATCH),
    ):  # fmt: skip
        generated = preset.sampling.count if generated is None else generated
        self.preset, self.network, self.rates = preset, network, rates
        self.train, self.held_out, self.queries = train, held_out, held_out + generated
        self.workspace, self.streamed_part = CPU_WORKSPACE if on_cpu else 1.0, streamed_bytes(on_cpu)
        self.sets = [count for count in (held_out, generated) if count]
        self.fit_batch, self.gradient_batch = batches

    def passing(self, run: Pass, draws: int) -> float:
        """Peak bytes of a pass over so many draws."""
        return self.workspace * self.network.peak_bytes(run, draws)

    def stages(self) -> list[StageEstimate]:
        """All stages, in the order of a run; queries are the held-out and the generated ones together."""
        subsets = self.preset.subsets
        models = subsets.count * subsets.seeds
        return [
            *([self.latents()] if self.preset.dataset.autoencoder else []),
            self.training("model", 1, self.preset.training.steps),
            self.sampling(),
            *([self.trajectories()] if self.preset.measures_trajectories else []),
            self.training("retrained", models, subsets.steps),
            self.measuring(models),
            self.curvature(),
            self.train_gradients(),
            self.query_gradients(),
            self.scores(),
        ]

    @property
    def weights(self) -> float:
        """Bytes of the network's parameters."""
        return FLOAT * self.network.parameters

    def latents(self) -> StageEstimate:
        """Every image and its mirror image encoded once; means and log-variances of both are kept."""
        count, images = AutoencoderCount.of_preset(self.preset), self.train + self.held_out
        flops, disk = 2 * images * count.encoding, 4 * FLOAT * images * math.prod(count.latent)
        peak = FLOAT * count.parameters + self.workspace * count.peak_bytes(count.encode_pass, ROWS_AT_ONCE)
        return StageEstimate("latents", flops, flops / self.rates.forward, disk, peak)

    def training(self, name: str, models: int, steps: int) -> StageEstimate:
        """Weights, gradients, two moments, the average, and what a step keeps for its backward pass."""
        batch = self.preset.training.batch_size
        flops = models * steps * batch * self.network.gradient
        peak = 5 * self.weights + self.passing(self.network.training_pass, batch)
        return StageEstimate(name, flops, flops / self.rates.training, models * self.weights, peak)

    def sampling(self) -> StageEstimate:
        sampling = self.preset.sampling
        flops = sampling.count * sampling.steps * self.network.forward
        batch = min(sampling.count, MEASURE_BATCH)
        peak = self.weights + self.passing(self.network.forward_pass, batch)
        size = FLOAT * sampling.count * math.prod(self.network.shape)
        return StageEstimate("samples", flops, flops / self.rates.forward, size, peak)

    def trajectories(self) -> StageEstimate:
        """The samples once more, with the state and the guess of every step."""
        sampling, samples = self.preset.sampling, self.sampling()
        size = samples.disk_bytes * (2 * sampling.steps + 1)
        return StageEstimate("trajectories", samples.flops, samples.seconds, size, samples.peak_bytes + 2 * size)

    def measuring(self, models: int) -> StageEstimate:
        measurements = self.preset.measurements
        flops = models * self.queries * forward_passes(measurements) * self.network.forward
        peak = self.weights + self.passing(self.network.forward_pass, MEASURE_BATCH)
        return StageEstimate(
            "measurements", flops, flops / self.rates.forward, DOUBLE * len(measurements) * models * self.queries, peak
        )

    def curvature_flops(self) -> tuple[float, float, float]:
        """FLOPs of both passes over the network, of products, and of the eigendecompositions between them."""
        config, network = self.preset.curvature, self.network
        vectors = math.prod(network.shape) if config.exact_labels else config.sampled_labels
        first, second = self.train * config.drawn_for_factors.count, self.train * config.draws.count
        passes = products = decomposition = 0.0
        if config.has_factors:
            backward = network.pulled_back - network.forward
            passes += first * (network.forward + vectors * backward)
            products += first * (network.input_factors + vectors * network.output_factors)
            decomposition = sum(9.0 * (o**3 + i**3) for o, i in network.block_shapes.values())
        if config.has_corrections:
            batched = config.correction == "batched"
            backward = (network.gradient if batched else network.pulled_back) - network.forward
            passes += second * (network.forward + vectors * backward)
            rotations = second * vectors / config.draws_per_sum if batched else second * vectors
            products += rotations * network.rotation + (0.0 if batched else second * vectors * network.draw_gradients)
        return passes, products, decomposition

    def curvature(self) -> StageEstimate:
        """Both passes, and the eigendecompositions between them."""
        config, network = self.preset.curvature, self.network
        passes, products, decomposition = self.curvature_flops()
        seconds = (
            passes / self.rates.gradient + products / self.rates.products + decomposition / self.rates.decomposition
        )
        kept = network.factor_entries + (2 if config.approximation == "ekfac" else 1) * network.entries
        peak = self.weights + DOUBLE * (network.factor_entries + network.entries) + FLOAT * kept
        peak += self.passing(network.factor_pass, self.fit_batch)
        return StageEstimate("curvature", passes + products + decomposition, seconds, FLOAT * kept, peak)

    # --- gradients and scores

    @property
    def bases(self) -> float:
        """Bytes of the weights, the curvature, and what whitens and unwhitens packed gradients."""
        return self.weights + FLOAT * (self.network.factor_entries + 4 * self.network.entries)

    @property
    def each(self) -> float:
        """Bytes of one gradient in memory."""
        return FLOAT * self.network.entries

    def gradient_bytes(self, store_format: StoreFormat) -> float:
        """Bytes of one stored gradient."""
        return stored_bytes(store_format, self.network.block_shapes.values())

    def copied(self, store_format: StoreFormat) -> float:
        """Bytes of one gradient's packed copy; in full it is packed as it is."""
        return 0.0 if store_format.kind == "float32" else self.gradient_bytes(store_format)

    @property
    def query_format(self) -> StoreFormat:
        return self.preset.query_format or StoreFormat()

    @property
    def query_bytes(self) -> float:
        """Bytes of one query's gradient as it is packed."""
        return self.gradient_bytes(self.query_format)

    @property
    def keeps(self) -> bool:
        """Whether training gradients are kept, see `Preset.store_budget`."""
        return self.preset.keeps(self.train * self.gradient_bytes(self.preset.store_format))

    def fits_device(self, count: int) -> bool:
        """Whether so many queries stay on the device while training gradients stream past."""
        return count * self.query_bytes <= HELD_BYTES

    @property
    def held_queries(self) -> float:
        """Bytes of the queries that stay on the device. Sets are scored together only where gradients are not kept."""
        held = [count * self.query_bytes for count in self.sets if self.fits_device(count)]
        return max(held, default=0.0) if self.keeps else sum(held)

    @property
    def streamed_queries(self) -> float:
        """Bytes of the other queries, which are read once for each part of the training images."""
        return sum(count * self.query_bytes for count in self.sets if not self.fits_device(count))

    @property
    def together(self) -> int:
        """Training gradients that meet the queries at once."""
        most = self.streamed_part if self.streamed_queries else SHARD_BYTES
        return int(min(self.train, max(1, most // self.each)))

    @property
    def query_block(self) -> float:
        """Bytes that it takes to read and unpack the queries that meet training gradients at a time."""
        most = self.streamed_part / 4 if self.streamed_queries else SHARD_BYTES
        read = self.query_bytes if self.streamed_queries else 0.0
        unpacked = self.each if self.copied(self.query_format) else 0.0
        return min(max(self.sets), max(1, most // self.each)) * (read + unpacked)

    def computing(self, images: int, draws: DrawConfig, packed: float = 0.0, together: int = 0) -> float:
        """Peak bytes of computing and packing a shard of gradients, beside those that it is joined with.

        Gradients are turned and packed a block of the network at a time: beside the shard there are four copies of one block.
        """
        shard = min(images_of_shard(self.each), images)
        block = FLOAT * max(outputs * inputs for outputs, inputs in self.network.block_shapes.values())
        joined = self.each * together if together >= 2 * shard else 0.0
        passing = self.passing(self.network.gradient_pass, min(draws.count, self.gradient_batch))
        return self.bases + shard * (self.each + packed + 4 * block) + self.each + joined + passing

    def gradients(self, name: str, images: int, draws: DrawConfig, disk_bytes: float, peak: float) -> StageEstimate:
        network = self.network
        passes, products = images * draws.count * network.gradient, images * network.rotation
        seconds = passes / self.rates.gradient + products / self.rates.products
        return StageEstimate(name, passes + products, seconds, disk_bytes, peak)

    def train_gradients(self) -> StageEstimate:
        """Kept as the preset packs them; or computed for the scores, of which every part is kept until all are there."""
        draws, stored = self.preset.gradient_draws, self.train * self.gradient_bytes(self.preset.store_format)
        if self.keeps:
            computing = self.computing(self.train, draws, self.copied(self.preset.store_format))
            peak = computing + self.held_queries  # scoring holds these when it asks for the others
            return self.gradients("train gradients", self.train, draws, stored, peak)
        return self.gradients("train gradients", self.train, draws, self.score_bytes, self.scoring)

    def query_gradients(self) -> StageEstimate:
        draws = self.preset.measurement.draws
        peak = self.computing(max(self.sets), draws, self.copied(self.query_format))
        return self.gradients("query gradients", self.queries, draws, self.queries * self.query_bytes, peak)

    @property
    def score_bytes(self) -> float:
        """Bytes of the scores with one damping."""
        return DOUBLE * self.queries * self.train

    @property
    def scoring(self) -> float:
        """Peak bytes of scoring; of computing training gradients too, where they are not kept."""
        block, scores = self.together * self.each, self.held_queries + self.score_bytes
        if not self.keeps:
            computing = self.computing(self.train, self.preset.gradient_draws, together=self.together)
            return max(computing, self.bases + block + self.query_block) + scores
        shard = min(images_of_shard(self.each), self.train)  # one more is read while it is joined with others
        packed = (self.together + shard) * self.gradient_bytes(self.preset.store_format)
        return self.bases + block + packed + self.query_block + scores

    def scores(self) -> StageEstimate:
        """One damping: products of all pairs, and the reading of what does not stay on the device."""
        flops = 2.0 * self.queries * self.train * self.network.entries
        read = math.ceil(self.train / self.together) * self.streamed_queries + self.queries * self.query_bytes
        read += self.train * self.gradient_bytes(self.preset.store_format) if self.keeps else 0.0
        seconds = flops / self.rates.products + read / self.rates.reading
        return StageEstimate("scores", flops, seconds, self.score_bytes, self.scoring)
