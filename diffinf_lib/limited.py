"""Limited: any preset at the size of a trial, which goes through all its stages by the same code within minutes.

What a preset is stays: its kinds of data and blocks, dropout, mirrored images, schedules, precisions, rules of draws,
formats, measurements. What takes long is cut: images, width, steps, draws, subsets. Numbers of a limited run say nothing.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from diffinf_lib.configuration import (
    KNOWN_SIZES,
    DrawConfig,
    LikelihoodConfig,
    MeasurementConfig,
    TrainingConfig,
    UNetConfig,
)

if TYPE_CHECKING:
    from diffinf_lib import presets

LIMITED = ":limited"
"""What follows a preset's name to mean its limited form."""

IMAGES, QUERIES, SAMPLES = 30, 3, 2
STEPS, SUBSET_STEPS, BATCH = 4, 2, 4
SUBSETS, SEEDS = 8, 2
DRAWS = 4
SAMPLING_STEPS = 4
LIKELIHOOD = (2, 2)
"""Draws, and steps of the ODE."""
GROUPS = 8


def limited(preset: "presets.Preset") -> "presets.Preset":
    """The preset with few images, steps, draws and subsets, and a narrow network of the same blocks, one layer in each.

    Training gradients are kept where the preset itself keeps them: `store_budget` shrinks as a store does. Samples are made
    in few steps, but where something is measured along their trajectories, which have every step.
    """
    dataset, sampling, subsets = preset.dataset, preset.sampling, preset.subsets
    total = dataset.train_size or KNOWN_SIZES[dataset.name][0]
    images, unet = min(total, IMAGES), _narrow(preset.unet)
    steps = sampling.steps if preset.measures_trajectories else min(sampling.steps, SAMPLING_STEPS)
    return replace(
        preset,
        name=f"{preset.name}{LIMITED}",
        summary=f"{preset.summary}; at the size of a trial",
        dataset=replace(dataset, train_size=images, query_size=min(dataset.query_size or QUERIES, QUERIES)),
        unet=unet,
        training=_short(preset.training),
        subsets=replace(
            subsets,
            count=min(subsets.count, SUBSETS),
            seeds=min(subsets.seeds, SEEDS),
            steps=min(subsets.steps, SUBSET_STEPS),
        ),
        sampling=replace(sampling, count=min(sampling.count, SAMPLES), steps=steps),
        measurement=_quick(preset.measurement),
        further_measurements=tuple(map(_quick, preset.further_measurements)),
        curvature=replace(
            preset.curvature,
            draws=_few(preset.curvature.draws),
            factor_draws=preset.curvature.factor_draws and _few(preset.curvature.factor_draws),
        ),
        gradient_draws=_few(preset.gradient_draws),
        store_budget=preset.store_budget * _shrinkage(unet, preset.unet) * images / total,
    )


def _narrow(unet: UNetConfig) -> UNetConfig:
    """The same blocks, one layer in each, all widths divided alike, as far as groups of normalisation allow."""
    groups, common = math.gcd(unet.norm_num_groups, GROUPS), math.gcd(*unet.block_out_channels)
    widths = tuple(width * groups // common for width in unet.block_out_channels)
    return replace(unet, block_out_channels=widths, norm_num_groups=groups, layers_per_block=1)


def _shrinkage(small: UNetConfig, large: UNetConfig) -> float:
    """About how many of the large network's weights the small one has: by the squares of widths, and by layers."""
    widths, layers = (small.block_out_channels[0] / large.block_out_channels[0]) ** 2, small.layers_per_block + 1
    return widths * layers / (large.layers_per_block + 1)


def _short(training: TrainingConfig) -> TrainingConfig:
    """Few steps; weights along the way are kept at the same shares of them."""
    steps = min(training.steps, STEPS)
    kept = {math.ceil(steps * step / training.steps) for step in training.keep_ema_at}
    return replace(
        training,
        steps=steps,
        batch_size=min(training.batch_size, BATCH),
        checkpoint_every=min(training.checkpoint_every, STEPS // 2),
        keep_ema_at=tuple(sorted(kept)),
    )


def _quick(measurement: MeasurementConfig) -> MeasurementConfig:
    """The same measurement over few draws; of a likelihood, few steps too."""
    likelihood = measurement.likelihood
    if measurement.name == "log_likelihood":
        given = likelihood or LikelihoodConfig()
        likelihood = replace(given, draws=min(given.draws, LIKELIHOOD[0]), steps=min(given.steps, LIKELIHOOD[1]))
    return replace(measurement, draws=_few(measurement.draws), likelihood=likelihood)


def _few(draws: DrawConfig) -> DrawConfig:
    return replace(draws, count=min(draws.count, DRAWS))
