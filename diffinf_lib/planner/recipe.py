"""Recipe: the plan as one short formula, with a preset's network as a few numbers and everything else free to be moved.

`stage_costs` says what `estimate` says, without counting anything anew: seconds and bytes on disk, at one rate. An interactive
figure evaluates the same formula in a browser.
"""

import math
from dataclasses import dataclass

from diffinf_lib.attribution.scoring import streamed_bytes
from diffinf_lib.compression import stored_bytes
from diffinf_lib.configuration import StoreFormat
from diffinf_lib.errors import require
from diffinf_lib.gradients.sets import HELD_BYTES, SHARD_BYTES
from diffinf_lib.measurements import forward_passes
from diffinf_lib.planner.network import network_count
from diffinf_lib.planner.plan import DOUBLE, FLOAT, Estimator, counts
from diffinf_lib.planner.rates import READING, Rates
from diffinf_lib.presets import Preset
from diffinf_lib.settings import own_settings

STAGES = (
    "model", "samples", "retrained", "measurements", "curvature", "train gradients", "query gradients", "scores",
)  # fmt: skip
"""The stages of a run. Trajectories go with the samples; latents, which are encoded once, are left to the plan."""


@dataclass(frozen=True)
class Recipe:
    """What a plan takes from a preset's network and training.

    Attributes:
        forward, gradient: FLOPs of one image at one draw: forward alone, and with backward.
        rotation: FLOPs of one gradient's way into the eigenbasis.
        curvature: FLOPs of fitting the curvature, a training image.
        decomposition: FLOPs of the eigendecompositions.
        parameters: of the network.
        entries: of one gradient.
        pixels: numbers of one image.
        batch, steps, retraining_steps: of a training step; of the full model and of a retraining.
        sampling_steps: of a sample.
        kept_states: images that a sample leaves: one, or its whole trajectory too.
        sampled_twice: whether trajectories are sampled beside the samples.
        generated_share: of the queries that the model draws itself.
        further_passes: forward passes a query of what is measured beside the first measurement, at draws of its own.
        measurements: how many are taken.
        curvature_bytes: of the fitted curvature.
        stored_bytes, query_bytes: of one training gradient and one query's, as they are kept.
    """

    forward: float
    gradient: float
    rotation: float
    curvature: float
    decomposition: float
    parameters: int
    entries: int
    pixels: int
    batch: int
    steps: int
    retraining_steps: int
    sampling_steps: int
    kept_states: int
    sampled_twice: bool
    generated_share: float
    further_passes: int
    measurements: int
    curvature_bytes: float
    stored_bytes: float
    query_bytes: float


@dataclass(frozen=True)
class Amounts:
    """What can be moved in a plan.

    Attributes:
        train, queries: images N, and queries Q, held-out and generated together.
        gradient_draws, measurement_draws: of a training gradient; of the measurement and of a query's gradient.
        models: retrained, subsets × seeds.
        flops_per_second: of one device.
        store_budget: bytes that a store of training gradients may take, see `Preset`.
        devices: side by side; they share the retrained models, all else is done by one.
    """

    train: int
    queries: int
    gradient_draws: int
    measurement_draws: int
    models: int
    flops_per_second: float
    store_budget: float
    devices: int = 1


@dataclass(frozen=True)
class StageCost:
    """Seconds by the clock, and bytes on disk."""

    seconds: float
    disk_bytes: float


LIMITS = {"reading": READING, "shard": SHARD_BYTES, "held": HELD_BYTES, "streamed": streamed_bytes(on_cpu=False)}
"""Bytes a second that are read, and the sizes at which scoring changes its way; those of a GPU."""


@own_settings
def recipe_of(preset: Preset) -> Recipe:
    """The constants of a preset; networks are counted on the meta device."""
    _, held_out = counts(preset, None, None)
    network, generated = network_count(preset.unet, preset.curvature), preset.sampling.count
    one = Estimator(preset, network, Rates.uniform(1.0), 1, held_out, on_cpu=False)
    passes, products, decomposition = one.curvature_flops()
    kept = network.factor_entries + (2 if preset.curvature.approximation == "ekfac" else 1) * network.entries
    steps = preset.sampling.steps
    return Recipe(
        forward=network.forward,
        gradient=network.gradient,
        rotation=network.rotation,
        curvature=passes + products,
        decomposition=decomposition,
        parameters=network.parameters,
        entries=network.entries,
        pixels=math.prod(network.shape),
        batch=preset.training.batch_size,
        steps=preset.training.steps,
        retraining_steps=preset.subsets.steps,
        sampling_steps=steps,
        kept_states=2 * steps + 2 if preset.measures_trajectories else 1,
        sampled_twice=preset.measures_trajectories,
        generated_share=generated / (held_out + generated),
        further_passes=forward_passes(preset.measurements) - preset.measurement.draws.count,
        measurements=len(preset.measurements),
        curvature_bytes=FLOAT * kept,
        stored_bytes=stored_bytes(preset.store_format, network.block_shapes.values()),
        query_bytes=stored_bytes(preset.query_format or StoreFormat(), network.block_shapes.values()),
    )


def amounts_of(preset: Preset, flops_per_second: float) -> Amounts:
    """The amounts that a preset asks for."""
    train, held_out = counts(preset, None, None)
    subsets = preset.subsets
    return Amounts(
        train=train,
        queries=held_out + preset.sampling.count,
        gradient_draws=preset.gradient_draws.count,
        measurement_draws=preset.measurement.draws.count,
        models=subsets.count * subsets.seeds,
        flops_per_second=flops_per_second,
        store_budget=preset.store_budget,
    )


def stage_costs(recipe: Recipe, amounts: Amounts) -> dict[str, StageCost]:
    """What each stage takes, by name, in the order of a run.

    Raises:
        ConfigurationError: an amount is not positive.
    """
    for name, value in vars(amounts).items():
        require(value > 0 or name == "store_budget", f"{name}={value}: give a positive number")
    a, r = amounts, recipe
    generated = math.floor(a.queries * r.generated_share + 0.5)
    training = r.batch * r.gradient
    passes = a.measurement_draws + r.further_passes
    weights, scores = FLOAT * r.parameters, DOUBLE * a.queries * a.train
    keeps = a.train * r.stored_bytes <= a.store_budget
    flops = {
        "model": r.steps * training,
        "samples": (2 if r.sampled_twice else 1) * generated * r.sampling_steps * r.forward,
        "retrained": _longest_shard(a) * r.retraining_steps * training,
        "measurements": _longest_shard(a) * a.queries * passes * r.forward,
        "curvature": a.train * r.curvature + 50 * r.decomposition,  # which run at a fiftieth of the rate
        "train gradients": a.train * (a.gradient_draws * r.gradient + r.rotation),
        "query gradients": a.queries * (a.measurement_draws * r.gradient + r.rotation),
        "scores": 2 * a.queries * a.train * r.entries,
    }
    disk = {
        "model": weights,
        "samples": FLOAT * generated * r.pixels * r.kept_states,
        "retrained": a.models * weights,
        "measurements": DOUBLE * r.measurements * a.models * a.queries,
        "curvature": r.curvature_bytes,
        "train gradients": a.train * r.stored_bytes if keeps else scores,
        "query gradients": a.queries * r.query_bytes,
        "scores": scores,
    }
    seconds = {name: count / a.flops_per_second for name, count in flops.items()}
    seconds["scores"] += _bytes_read(r, a, generated, keeps) / READING
    return {name: StageCost(float(seconds[name]), float(disk[name])) for name in STAGES}


def _longest_shard(amounts: Amounts) -> int:
    """Models of the device that has most of them."""
    return math.ceil(amounts.models / amounts.devices)


def _bytes_read(recipe: Recipe, amounts: Amounts, generated: int, keeps: bool) -> float:
    """What scoring reads: the store, every query once, and those off the device again for each part of the images."""
    sets = [amounts.queries - generated, generated]
    streamed = sum(count * recipe.query_bytes for count in sets if count * recipe.query_bytes > HELD_BYTES)
    most = LIMITS["streamed"] if streamed else SHARD_BYTES
    parts = math.ceil(amounts.train / max(1, most // (FLOAT * recipe.entries)))
    stored = amounts.train * recipe.stored_bytes if keeps else 0.0
    return parts * streamed + amounts.queries * recipe.query_bytes + stored
