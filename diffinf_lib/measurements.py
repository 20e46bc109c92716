"""Measurements: numbers that say how well a model likes a query, the same draws for every model.

Common random numbers matter twice: models are compared on the same noise, and influence can take the gradient of the
very function that is measured.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import (
    DrawConfig,
    Expectation,
    LikelihoodConfig,
    MeasurementConfig,
    MeasurementName,
    as_measurement,
)
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, check_images, objective_of_prediction, require_denoiser
from diffinf_lib.diffusion.denoiser import evaluating
from diffinf_lib.diffusion.stack import ModelStack, check_alike
from diffinf_lib.finite import check_draws_finite
from diffinf_lib.likelihood import log_likelihood
from diffinf_lib.options import check_counts
from diffinf_lib.precision import require_full_precision
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import ImageBatch


def forward_passes(configs: Sequence[MeasurementConfig]) -> int:
    """Forward passes of the network that `measure_all` takes for one query, shared draws counted once."""
    shared = {_passes(config.expectation()) for config in configs if config.attributable}
    solved = [config.likelihood or LikelihoodConfig() for config in configs if not config.attributable]
    return sum(draws.count for draws, _ in shared) + sum(config.network_passes for config in solved)


def _passes(expectation: Expectation) -> tuple[DrawConfig, bool]:
    """What the network is called with; expectations in which it is equal share passes."""
    return expectation.draws, expectation.objective.on_trajectories


def measure(
    model: Denoiser,
    images: ImageSet,
    config: MeasurementConfig | MeasurementName | None = None,
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "Q"]:
    """m_q(θ) of every query, `[Q]`, float64.

    The draws of a query are keyed by its id, so models are compared on the same noise and a query's value does not
    depend on which other queries are measured with it.

    Args:
        images: the queries; `Trajectories` for `trajectory_log_prob`.
        seed: of the draws, not of the model.

    Raises:
        ConfigurationError: a value is not finite; the message names the query and the timestep.
    """
    return measure_all(model, images, [as_measurement(config)], seed=seed, batch_size=batch_size)[0]


def measure_all(
    model: Denoiser,
    images: ImageSet,
    configs: Sequence[MeasurementConfig],
    *,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "m Q"]:
    """Several measurements `[m, Q]`, float64, on the CPU; those that take the same draws share the network's passes."""
    return measure_many([model], images, configs, seed=seed, batch_size=batch_size)[0]


@own_settings
@torch.no_grad()
def measure_many(
    models: Sequence[Denoiser],
    images: ImageSet,
    configs: Sequence[MeasurementConfig],
    *,
    seed: int = 0,
    batch_size: int = 512,
    stacked: bool | None = None,
) -> Float[Tensor, "G m Q"]:
    """Several measurements by each of several models of one network, which share the draws; see `measure_all`.

    Args:
        stacked: let the network run once for all models, a batch as large as all of theirs; default: on a GPU, where it is
            faster. The values agree to rounding.

    Raises:
        ConfigurationError: the models are not of one network and process.
    """
    for model in models:
        require_full_precision(require_denoiser(model))
    check_alike(models)
    check_images(images=images)
    check_counts(batch_size=batch_size)
    configs = [as_measurement(config) for config in configs]
    values = torch.zeros(len(models), len(configs), len(images), dtype=torch.float64)
    together: dict[tuple[DrawConfig, bool], list[int]] = {}
    for place, config in enumerate(configs):
        if config.attributable:
            together.setdefault(_passes(config.expectation()), []).append(place)
            continue
        for number, model in enumerate(models):
            values[number, place] = log_likelihood(
                model, images, config.likelihood, levels=config.levels, dequantised=config.dequantised, seed=seed,
                batch_size=batch_size,
            )  # fmt: skip
    predict = _predictions(models, models[0].device.type == "cuda" if stacked is None else stacked)
    for places in together.values():
        expectations = [configs[place].expectation(seed) for place in places]
        values[:, places] = _means(models, predict, images, expectations, batch_size)
    return values


def _predictions(models: Sequence[Denoiser], stacked: bool) -> Callable[[DrawBatch], Iterable[ImageBatch]]:
    """What gives the output of every model at each draw of a batch, one model after another or stacked."""
    if len(models) == 1 or not stacked:

        def each(batch: DrawBatch) -> Iterator[ImageBatch]:
            for model in models:
                with evaluating(model):
                    yield model.predict(batch)

        return each
    stack = ModelStack(models[0], len(models))
    weights = torch.stack([stack.put(place, model) for place, model in enumerate(models)])

    def all_at_once(batch: DrawBatch) -> Iterable[ImageBatch]:
        with evaluating(stack.model):
            return stack.outputs(weights, batch.state, batch.timesteps, batch.conditions)

    return all_at_once


def _means(
    models: Sequence[Denoiser],
    predict: Callable[[DrawBatch], Iterable[ImageBatch]],
    images: ImageSet,
    expectations: Sequence[Expectation],
    batch_size: int,
) -> Float[Tensor, "G e Q"]:
    """The weighted mean of each objective over the draws that all share."""
    totals = torch.zeros(len(models), len(expectations), len(images), dtype=torch.float64)
    for batch in expectations[0].batches(models[0], images, batch_size):
        for model, total, prediction in zip(models, totals, predict(batch), strict=True):
            _add(total, model, prediction, batch, expectations, images)
    return totals / expectations[0].draws.count


def _add(
    totals: Float[Tensor, "e Q"],
    model: Denoiser,
    prediction: ImageBatch,
    batch: DrawBatch,
    expectations: Sequence[Expectation],
    images: ImageSet,
) -> None:
    """Add one model's weighted objectives of a batch to its queries."""
    for total, expectation in zip(totals, expectations, strict=True):
        values = objective_of_prediction(prediction, batch, expectation.objective, model.process)
        shares = batch.draw_weights.double() * values.double()
        check_draws_finite(shares, model, batch, images.ids)
        total.index_add_(0, batch.example, shares.cpu())
