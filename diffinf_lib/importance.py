"""Importance: which timesteps to draw more often, so that few draws say more about the gradients.

The error of a gradient averaged over draws comes from the timesteps at which gradients vary most, and in influence scores
it counts in units of the curvature: (F + λI)^(−1/2) ∇ℓ. The variance of the average is least when timesteps are drawn in
proportion to the standard deviation at t (Kahn & Marshall 1953); weights keep the average unbiased.

The rule `signal` of `DrawConfig` needs no pilot and did as well on digits. A pilot is for what it does not know: another
loss weighting, a latent space, a model whose gradients vary elsewhere.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import DEFAULT_DAMPING, DrawConfig, Expectation
from diffinf_lib.curvature import Curvature, curvature_layers, split_into_blocks
from diffinf_lib.curvature.damping import damped_inverse
from diffinf_lib.curvature.layers import Layers, differentiable, gradient_matrices, layer_parameters
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, objective_values
from diffinf_lib.errors import require
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import PerDraw

PILOT_DRAWS = DrawConfig(64)
"""Draws of each pilot image."""

PILOT_PURPOSE = "timestep-proposal"
"""The purpose under which the draws of the pilot are keyed."""

FLOOR = 0.05
"""Least share of the mean proposal that a slice gets: it bounds the weights where the pilot saw next to nothing."""


@own_settings
def timestep_proposal(
    model: Denoiser,
    images: ImageSet,
    *,
    curvature: Curvature | None = None,
    draws: DrawConfig = PILOT_DRAWS,
    slices: int = 16,
    seed: int = 0,
    damping: float = DEFAULT_DAMPING,
    batch_size: int = 256,
) -> tuple[float, ...]:
    """How often timesteps are best drawn for gradients, from a pilot: one number for each slice of 0..T−1, around 1.

    It is the standard deviation over images and noise of the gradient of one draw (of one pair, if antithetic), in the
    metric of the curvature or, without one, in that of the weights; with shared draws, of differences between images.
    One backward pass serves all images: for u = random signs minus their mean, E‖Σ u_n g_n‖² = Σ ‖g_n − ḡ‖².

    Args:
        images: the pilot's images; 50 of the training images say enough.
        curvature: from `fit_curvature` on the same model, for whitened gradients.
        draws: of the pilot. Stratified timesteps, as many in each slice; noise and sharing as in the draws to come.
        damping: λ > 0, added to the curvature's eigenvalues.
        batch_size: draws a pass; the result depends on it by rounding only.

    Returns:
        `slices` positive numbers, for `DrawConfig(timestep_rule="importance", proposal=...)`.

    Raises:
        ConfigurationError: fewer than two images, draws that do not fill the slices evenly, a damping that is not
            positive, a curvature of another model, or gradients that are not finite or all zero.
    """
    distinct = draws.count // _draws_a_unit(draws)
    require(len(images) > 1, f"{len(images)} images: a spread over images needs two or more")
    require(slices > 0 and draws.timestep_rule == "stratified" and distinct % slices == 0,
            f"draws={draws}, slices={slices}: give stratified draws, as many in each slice")  # fmt: skip
    require(0 < damping < math.inf, f"damping={damping}: whitening divides by its root; give a number > 0")
    layers = curvature_layers(model, None if curvature is None else curvature.covers)
    if curvature is not None:
        curvature.blocks(model)
        curvature = curvature.to(model.device)
    variances = torch.zeros(slices, dtype=torch.float64)
    units = _pilot_units(model, images, draws, seed)
    for index, (batch, weights) in enumerate(units):
        gradient = _weighted_gradient(model, layers, batch, weights, batch_size)
        variances[index * slices // distinct] += _squared_norm(model, gradient, curvature, damping)
    spread = variances.sqrt()
    require(bool(torch.isfinite(spread).all()) and bool((spread > 0).any()),
            "timestep_proposal: gradients are not finite, or the same for all images; check the weights")  # fmt: skip
    return tuple((spread / spread.mean()).clamp(min=FLOOR).tolist())


def _draws_a_unit(draws: DrawConfig) -> int:
    """Draws that are averaged before their spread is taken: an antithetic pair is never split."""
    return 2 if draws.noise_rule == "antithetic" else 1


def _pilot_units(
    model: Denoiser, images: ImageSet, draws: DrawConfig, seed: int
) -> Iterator[tuple[DrawBatch, PerDraw]]:
    """The first unit (draw or pair) of every image and their weights u, then the second of every image, and so on."""
    size = _draws_a_unit(draws)
    everything = next(Expectation(draws, PILOT_PURPOSE, seed).batches(model, images, len(images) * draws.count))
    generator = keyed_generator(PILOT_PURPOSE, "signs", seed)
    for rows in torch.arange(len(everything.images)).view(len(images), -1, size).unbind(1):
        signs = torch.randint(2, (len(images),), generator=generator) * 2.0 - 1
        weights = ((signs - signs.mean()) / size).repeat_interleave(size)
        yield everything.rows(rows.flatten()), weights


def _weighted_gradient(
    model: Denoiser, layers: Layers, batch: DrawBatch, weights: PerDraw, batch_size: int
) -> dict[str, Float[Tensor, "_O _I"]]:
    """Σ over draws of weight · ∇ℓ, one matrix a layer."""
    parameters = layer_parameters(layers)
    total = [torch.zeros_like(parameter) for parameter in parameters]
    for start in range(0, len(weights), batch_size):
        rows = slice(start, start + batch_size)
        with differentiable(model, layers):
            losses = objective_values(model, batch.rows(rows))
            gradients = torch.autograd.grad((losses * weights[rows].to(losses)).sum(), parameters)
        total = [a + b for a, b in zip(total, gradients, strict=True)]
    return gradient_matrices(layers, tuple(total))


def _squared_norm(
    model: Denoiser, gradient: dict[str, Float[Tensor, "_O _I"]], curvature: Curvature | None, damping: float
) -> float:
    """‖(F + λI)^(−1/2) g‖², or ‖g‖² without a curvature."""
    if curvature is None:
        return sum(float(matrix.double().square().sum()) for matrix in gradient.values())
    blocks = curvature.blocks(model)
    parts = split_into_blocks(gradient, blocks)
    squares = {name: layer.to_eigenbasis(parts[name]).square() for name, layer in curvature.layers.items()}
    return sum(
        float((squares[name] * damped_inverse(layer.eigenvalues(layer.best), damping)).double().sum())
        for name, layer in curvature.layers.items()
    )
