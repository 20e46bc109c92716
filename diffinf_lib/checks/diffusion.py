"""Checks of the diffusion process: noising, its reverse step, and the draws (chapter 02)."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffinf_lib.checks.exercise import Case, exercise
from diffinf_lib.checks.made import normal, numbers


def _shares(alphas_cumprod: Tensor, timesteps: Tensor, images: Tensor) -> Tensor:
    return alphas_cumprod[timesteps].view(-1, *[1] * (images.ndim - 1))


def _noised(coefficients: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Noising with the coefficients of image and noise as a function of ᾱ."""

    def noisy(images: Tensor, alphas_cumprod: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        of_image, of_noise = coefficients(_shares(alphas_cumprod, timesteps, images))
        return of_image * images + of_noise * noise

    return noisy


_right = _noised(lambda left: (left.sqrt(), (1 - left).sqrt()))


@exercise(
    gives="x_t",
    mistakes={
        "both square roots are missing: ᾱ is a share of the variance": _noised(lambda left: (left, 1 - left)),
        "the noise is multiplied by 1 − √ᾱ; the variances add up to 1, so it is √(1 − ᾱ)": _noised(
            lambda left: (left.sqrt(), 1 - left.sqrt())
        ),
        "the square root of the noise's share is missing": _noised(lambda left: (left.sqrt(), 1 - left)),
        "the square root of the image's share is missing": _noised(lambda left: (left, (1 - left).sqrt())),
        "image and noise have each other's share": _noised(lambda left: ((1 - left).sqrt(), left.sqrt())),
        "timesteps count from 0 here: take alphas_cumprod[t], not [t − 1]": lambda images, left, t, noise: _right(
            images, left, t - 1, noise
        ),
        "each image has its own timestep, but the shares are spread along the last axis: view them as [B, 1, 1, 1]": (
            lambda images, left, t, noise: left[t].sqrt() * images + (1 - left[t]).sqrt() * noise
        ),
    },
)
def noisy() -> Iterator[Case]:
    """`noisy(images, alphas_cumprod, timesteps, noise)` → x_t, shaped as the images: noise images in one jump.

    images x `[B, C, H, W]`; alphas_cumprod ᾱ `[T]`, from timestep 0 on; timesteps `[B]` integers; noise ε as the images.
    """
    left = numbers(0.25, 0.0625, 0.03125)
    one = numbers(2.0).view(1, 1, 1, 1)
    yield Case("one pixel at t = 1, by hand", 0.5 + 0.9375**0.5 * one / 2, (one, left, torch.tensor([1]), one / 2))
    images, noise = normal("images", 2, 1, 2, 2), normal("noise", 2, 1, 2, 2)
    timesteps = torch.tensor([1, 0])
    by_hand = torch.stack([0.25 * images[0] + 0.9375**0.5 * noise[0], 0.5 * images[1] + 0.75**0.5 * noise[1]])
    yield Case("two images at timesteps of their own", by_hand, (images, left, timesteps, noise))
    betas = numbers(0.5, 0.75).repeat(5)
    walked = images[:1]
    for beta in betas:
        walked = (1 - beta).sqrt() * walked
    jump = images[:1], (1 - betas).cumprod(0), torch.tensor([9]), torch.zeros_like(images[:1])
    yield Case("ten steps, one after the other, without noise", walked, jump)


def _posterior(
    of_image: Callable[[Tensor, Tensor, Tensor], Tensor], of_state: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Callable[..., Tensor]:
    """The mean with two coefficients as functions of ᾱ_{t−1}, ᾱ_t and β_t."""

    def posterior_mean(image: Tensor, state: Tensor, t: int, betas: Tensor) -> Tensor:
        left = torch.cat([torch.ones_like(betas[:1]), (1 - betas).cumprod(0)])
        known = left[t], left[t + 1], betas[t]
        return of_image(*known) * image + of_state(*known) * state

    return posterior_mean


def _of_image(before: Tensor, left: Tensor, beta: Tensor) -> Tensor:
    return before.sqrt() * beta / (1 - left)


def _of_state(before: Tensor, left: Tensor, beta: Tensor) -> Tensor:
    return (1 - beta).sqrt() * (1 - before) / (1 - left)


def _one_early(image: Tensor, state: Tensor, t: int, betas: Tensor) -> Tensor:
    return _posterior(_of_image, _of_state)(image, state, t - 1, betas)


@exercise(
    gives="the mean of x_{t−1}",
    mistakes={
        "image and state have each other's coefficient": _posterior(_of_state, _of_image),
        "the image's coefficient has √ᾱ_t where ᾱ of the step before belongs": _posterior(
            lambda before, left, beta: left.sqrt() * beta / (1 - left), _of_state
        ),
        "the square root of ᾱ_{t−1} is missing": _posterior(
            lambda before, left, beta: before * beta / (1 - left), _of_state
        ),
        "the square root of 1 − β_t is missing": _posterior(
            _of_image, lambda before, left, beta: (1 - beta) * (1 - before) / (1 - left)
        ),
        "the state's coefficient has 1 − ᾱ_t above the line, where 1 − ᾱ_{t−1} belongs": _posterior(
            _of_image, lambda before, left, beta: (1 - beta).sqrt()
        ),
        "the state is weighted by √ᾱ_t; one step shrinks by √(1 − β_t) only": _posterior(
            _of_image, lambda before, left, beta: left.sqrt() * (1 - before) / (1 - left)
        ),
        "timesteps count from 0 here: β_t is betas[t], and before t = 0 ᾱ is 1": _one_early,
    },
)
def posterior_mean() -> Iterator[Case]:
    """`posterior_mean(image, state, t, betas)` → the mean of x_{t−1} given x and x_t, shaped as the image.

    image x and state x_t of one shape; t an integer from 0 on; betas β `[T]`. Before t = 0 stands the image, with ᾱ = 1.
    """
    betas = numbers(0.25, 0.75, 0.5)
    image, state = normal("image", 2, 3), normal("state", 2, 3)
    yield Case("the step at t = 0, which ends at the image", image, (image, state, 0, betas))
    left = 1.0
    for t, beta in enumerate(betas.tolist()[:-1]):
        left *= 1 - beta
        following = betas.tolist()[t + 1]
        # the product of two Gaussians in x_{t−1}: around √ᾱ x with variance 1 − ᾱ, and of x_t around √(1 − β) x_{t−1}
        precisions = 1 / (1 - left), (1 - following) / following
        centres = left**0.5 * image, state / (1 - following) ** 0.5
        mean = (precisions[0] * centres[0] + precisions[1] * centres[1]) / sum(precisions)
        yield Case(f"the step at t = {t + 1}, as a product of two Gaussians", mean, (image, state, t + 1, betas))


def _sorted_pairs(function: Callable[..., tuple[Tensor, Tensor]], timesteps: Tensor, noise: Tensor) -> Tensor:
    """The draws as rows (t, ε) in a fixed order, for theirs is free."""
    times, noises = function(timesteps, noise)
    rows = torch.cat([times.double().view(-1, 1), noises.flatten(1)], dim=1)
    return torch.tensor(sorted(rows.tolist()), dtype=torch.float64)


def _pairs(
    times: Callable[[Tensor], Tensor], noises: Callable[[Tensor], Tensor]
) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda timesteps, noise: (times(timesteps), noises(noise))


@exercise(
    gives="the draws, sorted",
    mistakes={
        "the second of each pair has the same noise again; its sign must turn": _pairs(
            lambda t: torch.cat([t, t]), lambda e: torch.cat([e, e])
        ),
        "timesteps and noise are repeated in different orders: the two of a pair are at different timesteps": _pairs(
            lambda t: t.repeat_interleave(2), lambda e: torch.cat([e, -e])
        ),
        "the second half stands in reverse order, so a pair is at two timesteps": _pairs(
            lambda t: torch.cat([t, t]), lambda e: torch.cat([e, -e.flip(0)])
        ),
        "the timestep turned its sign with the noise": _pairs(
            lambda t: torch.cat([t, -t]), lambda e: torch.cat([e, -e])
        ),
        "these are the second halves of the pairs alone; give both, 2S draws": _pairs(lambda t: t, lambda e: -e),
    },
)
def antithetic_pairs() -> Iterator[Case]:
    """`antithetic_pairs(timesteps, noise)` → (timesteps `[2S]`, noise `[2S, C]`): each draw with its counterpart at −ε.

    timesteps `[S]` integers; noise `[S, C]`. The order of the draws is yours.
    """
    hand = torch.tensor([[3.0, -1.0], [3.0, 1.0]], dtype=torch.float64)
    yield Case("one draw", hand, (torch.tensor([3]), numbers(1.0).view(1, 1)), ask=_sorted_pairs)
    timesteps, noise = torch.tensor([7, 2, 9]), normal("pairs", 3, 2)
    rows = [[float(t), *(sign * e).tolist()] for t, e in zip(timesteps, noise, strict=True) for sign in (1, -1)]
    expected = torch.tensor(sorted(rows), dtype=torch.float64)
    yield Case("three draws at three timesteps", expected, (timesteps, noise), ask=_sorted_pairs)
