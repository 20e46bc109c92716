"""Log-likelihood: the density of an image under the model, by the probability-flow ODE (Song et al. 2021, appendix D).

The noising of an image has a deterministic twin, an ODE whose states have the same distribution at every time. Followed
from the image to pure noise, it says where the image comes from, and the divergence on the way how much the flow stretches
space: log p(x) = log N(x_T; 0, I) + ∫ div v. Both need the network only.

Time is the angle φ of a state z = cos φ x + sin φ ε, with cos² φ = ᾱ, in which the flow is v = cos φ ε̂ − sin φ x̂ (Salimans
& Ho 2022): a network that guesses well turns the state at an even pace. A process whose states are not of that length, such
as flow matching, is the same one in another unit, x_t = r_t z.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.configuration import LikelihoodConfig, Process
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.diffusion.denoiser import evaluating
from diffinf_lib.diffusion.elbo import nats_to_bits_per_dimension, nearest_levels
from diffinf_lib.errors import ConfigurationError, require
from diffinf_lib.finite import first_not_finite, not_finite_at
from diffinf_lib.options import check_counts
from diffinf_lib.precision import require_full_precision
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.settings import own_settings
from diffinf_lib.shapes import Condition, ImageBatch, Images, ImageShape, PerDraw, PerTimestep

Numbers = Float[Tensor, "*n"]


@own_settings
def log_likelihood(
    model: Denoiser,
    images: ImageSet,
    config: LikelihoodConfig | None = None,
    *,
    levels: int | None = 256,
    dequantised: bool = False,
    seed: int = 0,
    batch_size: int = 512,
) -> Float[Tensor, "Q"]:
    """log₂ p(x) / D of every image, in bits per dimension; `[Q]`, float64, on the CPU. Higher means more likely.

    The density is that of the flow's states at t = 0, images with the last trace of noise. Images with levels are spread
    evenly over their bins first, and their value, averaged over the spreads, is a bound from below on the log-probability of
    the image's levels (Theis et al. 2016). Spreads and probes are keyed by the image's id: every model sees the same.

    Args:
        images: in [−1, 1].
        levels: number of values of a pixel, evenly spaced on [−1, 1]: 17 for digits, 256 for images of 8 bits; values in
            between go to the nearest. None for what is continuous (latents): the log-density as it is.
        dequantised: the images have been spread over their bins already, as (255 x + u) / 256, bins of 2/levels.
        seed: of the spreads and the probes, not of the model.

    Raises:
        ConfigurationError: torchdiffeq is not installed, options that do not fit together, or a value that is not finite;
            the message names the image.
    """
    config = config or LikelihoodConfig()
    require_denoiser(model).process.check_solvable()
    require_full_precision(model)
    check_counts(batch_size=batch_size)
    require(levels is not None or not dequantised, "dequantised with levels=None: give the number of levels")
    spread_levels = None if dequantised else levels
    draws, told = config.draws if spread_levels else 1, model.conditions_of(images)
    total = torch.zeros(len(images), dtype=torch.float64)
    for draw in range(draws):
        states = images.images if spread_levels is None else _spread(images, spread_levels, draw, seed)
        for start in range(0, len(images), batch_size):
            batch = slice(start, start + batch_size)
            probes = _Probes(images.ids[batch], draw, images.shape, config, seed)
            here = {name: values[batch] for name, values in told.items()}
            with evaluating(model):
                total[batch] += _log_density(model, states[batch], probes, config, here)
    dimensions = math.prod(images.shape)
    return nats_to_bits_per_dimension(total / draws, dimensions) + math.log2(_bin_width(levels, dequantised))


def _bin_width(levels: int | None, dequantised: bool) -> float:
    if levels is None:
        return 1.0
    return 2 / levels if dequantised else 2 / (levels - 1)


def _spread(images: ImageSet, levels: int, draw: int, seed: int) -> Images:
    """Images moved to their levels, and from there by u or −u bins with u ~ U(−½, ½)."""
    keys = [("spread", seed, int(example_id), draw // 2) for example_id in images.ids]
    uniform = torch.stack([torch.rand(images.shape, generator=keyed_generator(*key)) for key in keys]) - 0.5
    return nearest_levels(images.images, levels) + (-1) ** draw * _bin_width(levels, False) * uniform


class _Probes:
    """The z whose zᵀ J z sum to an estimate of the trace of J; every image draws its own from its own generator."""

    def __init__(self, ids: Int[Tensor, "B"], draw: int, shape: ImageShape, config: LikelihoodConfig, seed: int):
        self.ids, self.shape, self.count = ids, shape, config.probes
        self.generators = [keyed_generator("probes", seed, int(example_id), draw) for example_id in ids]
        self.fixed: Float[Tensor, "V B C H W"] | None = None
        if config.divergence == "exact":
            self.fixed = torch.eye(math.prod(shape)).view(-1, 1, *shape).expand(-1, len(ids), *shape)
        elif config.method == "dopri5":
            self.fixed = self.draw()

    def draw(self) -> Float[Tensor, "V B C H W"]:
        """Random signs, and their number divided out."""
        size = (self.count, *self.shape)
        signs = [torch.randint(2, size, generator=generator) for generator in self.generators]
        return (2 * torch.stack(signs, dim=1) - 1) / self.count**0.5

    def __call__(self) -> Float[Tensor, "V B C H W"]:
        return self.draw() if self.fixed is None else self.fixed


def _log_density(
    model: Denoiser, images: ImageBatch, probes: _Probes, config: LikelihoodConfig, told: dict[str, Condition]
) -> PerDraw:
    """log p(x) of each image at t = 0, in nats; `[B]`, float64, on the CPU."""
    state = images.to(model.device, torch.float64)
    flow = _Flow(model, probes, {name: values.to(model.device) for name, values in told.items()}, images)
    final, gain = _solve(flow, (state, state.new_zeros(len(state))), config)
    prior = -0.5 * (final.square() + math.log(2 * math.pi)).flatten(1).sum(1)
    density = (prior + gain).cpu()
    place = first_not_finite(density)
    if place is not None:
        raise ConfigurationError(f"image {int(probes.ids[place[0]])}: its log-likelihood is not finite; give more steps, "
                                 "or look at the network's output along the way")  # fmt: skip
    return density


class _Flow(NamedTuple):
    """The right-hand side of the ODE: the state's velocity, and its divergence."""

    model: Denoiser
    probes: _Probes
    told: dict[str, Condition]
    pixels: ImageBatch

    def __call__(self, angle: Float[Tensor, ""], state: tuple[ImageBatch, PerDraw]) -> tuple[ImageBatch, PerDraw]:
        turned, process = state[0], self.model.process
        time, length = network_time_at(angle, process), state_length_at(angle, process)
        prediction, trace = self._prediction_and_trace(length * turned, time)
        # Solved for image and noise, cos φ ε̂ − sin φ x̂ is linear in the output and in the state
        sine, cosine = angle.sin(), angle.cos()
        of_image, of_noise = target_at(angle, process)
        own, determinant = of_image * cosine + of_noise * sine, cosine * of_noise - sine * of_image
        velocity = (prediction - own * turned) / determinant
        return velocity, (length * trace - own * turned[0].numel()) / determinant

    @torch.enable_grad()
    def _prediction_and_trace(self, noisy: ImageBatch, timestep: Float[Tensor, ""]) -> tuple[ImageBatch, PerDraw]:
        """The output and an estimate of the trace of its Jacobian, float64; the network works in its own precision."""
        given = noisy.detach().to(self.model.dtype).requires_grad_()
        prediction = self.model.at_times(given, timestep.to(given).expand(len(given)), **self.told)
        place = first_not_finite(prediction.detach())
        if place is not None:
            image = int(self.probes.ids[place[0]])
            raise not_finite_at(self.model, image, self.pixels[place[0]], given.detach()[place[0]], float(timestep))
        probes, trace = self.probes().to(given), noisy.new_zeros(len(noisy))
        for index, probe in enumerate(probes):
            last = index == len(probes) - 1
            (pulled,) = torch.autograd.grad(prediction, given, probe, retain_graph=not last)
            trace += (pulled * probe).flatten(1).sum(1).double()
        return prediction.detach().double(), trace


@torch.no_grad()
def _solve(flow: _Flow, state: tuple[ImageBatch, PerDraw], config: LikelihoodConfig) -> tuple[ImageBatch, PerDraw]:
    """The state at the last timestep, and the divergence summed up on the way there."""
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise ConfigurationError("log-likelihood: torchdiffeq is not installed; install diffinf[likelihood]") from None
    angles = angle_grid(config.steps, flow.model.process).to(state[0].device)
    # An adaptive step must not pass the last timestep: at a right angle the flow has a pole
    options: dict[str, Any] = {
        "rtol": config.tolerance, "atol": config.tolerance, "options": {"step_t": angles[-1:]},
    }  # fmt: skip
    if config.method != "dopri5":
        grid: Callable[..., Tensor] = lambda func, start, times: angles  # noqa: E731
        options = {"options": {"grid_constructor": grid}}
    states, gains = odeint(flow, state, angles[[0, -1]], method=config.method, **options)
    return states[-1], gains[-1]


LEAST_SIGNAL = 1e-12
"""ᾱ at which the flow ends, where the process itself goes on to pure noise: at a right angle log ᾱ has a pole."""


@lru_cache
@own_settings
def _known(process: Process) -> PerTimestep:
    """ᾱ_t of every timestep, the last ones no less than `LEAST_SIGNAL`."""
    return process.alphas_cumprod.clamp(min=LEAST_SIGNAL)


@lru_cache
@own_settings
def angles(process: Process) -> PerTimestep:
    """φ_t with cos φ_t = √ᾱ_t, how far noising has turned the image into noise at every timestep; `[T]`, float64."""
    kept = _known(process)
    return torch.atan2((1 - kept).sqrt(), kept.sqrt())


def timesteps_at(angle: Numbers, process: Process) -> Numbers:
    """The real-valued timestep at which √ᾱ = cos φ, log ᾱ taken as linear between timesteps."""
    known = _known(process).to(angle.device).log()
    return _interpolate(-2 * angle.cos().log(), -known, torch.arange(len(known)).to(known))


def network_time_at(angle: Numbers, process: Process) -> Numbers:
    """What the network is given at an angle: the timestep, or T σ of a flow, whose σ = sin φ / (sin φ + cos φ)."""
    if process.is_flow:
        return process.num_train_timesteps * angle.sin() / (angle.sin() + angle.cos())
    return timesteps_at(angle, process)


def state_length_at(angle: Numbers, process: Process) -> Numbers:
    """r with x_t = r z for the state z of length one: 1, or of a flow 1 / (sin φ + cos φ)."""
    return 1 / (angle.sin() + angle.cos()) if process.is_flow else torch.ones_like(angle)


def target_at(angle: Numbers, process: Process) -> tuple[Numbers, Numbers]:
    """a and b of the target a x + b ε at an angle."""
    one, nothing = torch.ones_like(angle), torch.zeros_like(angle)
    rows = {"noise": (nothing, one), "image": (one, nothing), "v": (-angle.sin(), angle.cos()), "velocity": (-one, one)}
    return rows[process.target]


def _interpolate(wanted: Numbers, places: PerTimestep, values: PerTimestep) -> Numbers:
    """Values at the wanted places, linear between the (rising) places at which they are known."""
    right = torch.searchsorted(places, wanted.contiguous()).clamp(1, len(places) - 1)
    share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
    return torch.lerp(values[right - 1], values[right], share.clamp(0, 1))


def angle_grid(steps: int, process: Process) -> Float[Tensor, "{steps}+1"]:  # noqa: F821
    """The angles between which the solver steps, from the first timestep's to the last one's, even in log tan φ.

    tan φ is the noise's standard deviation beside the image's: fine steps where little noise makes fine structure.
    """
    known = angles(process)
    first, last = known[0].tan().log(), known[-1].tan().log()
    grid = torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64).exp().atan()
    grid[0], grid[-1] = known[0], known[-1]
    return grid
