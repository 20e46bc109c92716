"""Finite: NaN and infinity stop what would go on with them, and whatever is to blame is named: image, weights or output."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor

from diffinf_lib.diffusion import Denoiser, DrawBatch
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.shapes import Ids


def all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity; mostly one sum, a thirtieth of a check of each element."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def first_not_finite(tensor: Tensor) -> tuple[int, ...] | None:
    """The index of the first element that is NaN or infinite, or None."""
    if all_finite(tensor):
        return None
    return tuple(int(place) for place in tensor.isfinite().logical_not().nonzero()[0])


def check_draws_finite(values: Float[Tensor, "B ..."], model: Denoiser, batch: DrawBatch, ids: Ids) -> None:
    """Refuse what a network gave for some draws if it holds NaN or infinity.

    Args:
        values: outputs, or an objective of them, one row a draw.
        ids: of the images that `batch.example` counts.

    Raises:
        ConfigurationError: the message names the image, and its pixels, the weights or the timestep as what to look at.
    """
    place = first_not_finite(values.detach())
    if place is not None:
        row = place[0]
        one = batch.rows(slice(row, row + 1))
        raise not_finite_at(model, int(ids[one.example[0]]), one.images, one.state, float(one.timesteps[0]))


def not_finite_at(
    model: Denoiser,
    image: int,
    pixels: Float[Tensor, "*one C H W"],
    state: Float[Tensor, "*one C H W"],
    timestep: float,
) -> ConfigurationError:
    """Why the network's output of one draw is not finite, the inputs looked at first."""
    if not all_finite(pixels):
        return ConfigurationError(f"image {image}: some of its pixels are not finite; mend it or leave it out")
    if not all_finite(state):
        return ConfigurationError(f"image {image}: its state at timestep {timestep:g} is not finite; sample it anew")
    return weights_not_finite(model) or ConfigurationError(
        f"image {image}: the network's output at timestep {timestep:g} is not finite; mend the network there, or draw other "
        "timesteps"
    )  # fmt: skip


def weights_not_finite(model: Denoiser) -> ConfigurationError | None:
    """Which of the model's weights are not finite; None where all are."""
    for name, parameter in [*model.network.named_parameters(), *model.network.named_buffers()]:
        if parameter.is_floating_point() and not all_finite(parameter):
            return ConfigurationError(
                f"{name}: some of the model's weights there are not finite; give another checkpoint"
            )
    return None


def check_samples_finite(values: Float[Tensor, "B ..."], model: Denoiser, seeds: Sequence[int], time: float) -> None:
    """Refuse what a network gave on the way to samples if it holds NaN or infinity.

    Raises:
        ConfigurationError: the message names the weights, or the sample's seed and the time.
    """
    place = first_not_finite(values)
    if place is not None:
        raise weights_not_finite(model) or ConfigurationError(
            f"sample of seed {seeds[place[0]]}: the network's output at time {time:g} is not finite; mend the network there, "
            "or give another checkpoint"
        )  # fmt: skip


def check_scores(scores: Float[Tensor, "..."], **axes: Int[Tensor, "_"] | None) -> None:  # noqa: F821
    """Refuse scores that are not finite.

    Args:
        axes: what the last dimensions count, and the ids of what they count; None for positions.

    Raises:
        ConfigurationError: the message names the first query and training image.
    """
    place = first_not_finite(scores)
    if place is not None:
        pairs = zip(axes.items(), place[-len(axes) :], strict=True)
        where = ", ".join(
            f"{name.replace('_', ' ')} {at if ids is None else int(ids[at])}" for (name, ids), at in pairs
        )
        raise ConfigurationError(f"scores: not finite at {where}; give more damping, or fit the curvature anew")
