"""Objectives: what is taken of the network's output at one draw; measurements and gradients are means of it over draws.

Training minimises the loss. A query may be measured by something else (a bound on its likelihood), and attribution may
differentiate something else again (D-TRAK takes the squared norm of the output). All of them are functions of the output at
(x_t, t), so draws, gradients and stores serve them alike.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.diffusion.denoiser import Denoiser
from diffinf_lib.diffusion.draws import DrawBatch, elbo_weights
from diffinf_lib.diffusion.elbo import elbo_terms, nats_to_bits_per_dimension, prior_kl
from diffinf_lib.diffusion.process import Process
from diffinf_lib.diffusion.reverse import reverse_step_log_prob
from diffinf_lib.errors import require
from diffinf_lib.options import Options
from diffinf_lib.shapes import ImageBatch, PerDraw, PerTimestep

ObjectiveName = Literal[
    "loss", "weighted_loss", "simplified_elbo", "elbo", "square_norm", "mean_output", "l1_norm", "l2_norm", "max_norm",
    "trajectory_log_prob", "journey_loss", "output_probe",
]  # fmt: skip

ON_TRAJECTORIES = ("trajectory_log_prob", "journey_loss")
"""Objectives that need the states a sample went through."""


@dataclass(frozen=True)
class Objective(Options, called={"name": "objective"}):
    """A function of the network's output at one draw.

    Attributes:
        name: `loss`, ‖y − y_θ‖² as the mean over dimensions, y the process's target (Ho et al. 2020, eq. 14);
            `weighted_loss`, w_t times it; `simplified_elbo`, the same with the ELBO's w_t (`elbo_weights`);
            `elbo`, whose mean over uniform t and ε is the ELBO in bits per dimension, all its terms included;
            `square_norm`, `mean_output`, `l1_norm`, `l2_norm`, `max_norm`: ‖ε_θ‖² as a mean over dimensions, the mean of
            ε_θ, and its norms (the output functions of D-TRAK, Zheng et al. 2024);
            `trajectory_log_prob`, whose mean over uniform t is the log-probability of the stored sampling trajectory in bits
            per dimension and step; `journey_loss`, the loss at what the sampler guessed the image to be at step t
            (Georgiev et al. 2023); `output_probe`, ε_θ in a random direction (for DAS).
        weights: of `weighted_loss`: w_t, constant on equal slices of 0..T−1.
        levels: of `elbo`: number of values a pixel can take, evenly spaced on [−1, 1]; None for latents.
    """

    name: ObjectiveName = "loss"
    weights: tuple[float, ...] | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require((self.name == "weighted_loss") == bool(self.weights), f"weights={self.weights} with objective={self.name!r}: "
                "'weighted_loss' needs a tuple of numbers, one for each slice of t, and nothing else has one")  # fmt: skip
        require(self.levels is None or self.levels > 1, f"levels={self.levels}: give the number of values of a pixel, at least "
                "2, or None for latents")  # fmt: skip

    @property
    def on_trajectories(self) -> bool:
        """Whether the states of a sample's trajectory are needed."""
        return self.name in ON_TRAJECTORIES

    def per_draw(self, prediction: ImageBatch, batch: DrawBatch, process: Process = Process()) -> PerDraw:
        """The objective at each draw, `[B]`, differentiable in the network's output `prediction`."""
        if self.name in ("loss", "journey_loss", "weighted_loss", "simplified_elbo"):
            losses = (batch.target - prediction).square().flatten(1).mean(1)
            weights = self._timestep_weights(process)
            return losses if weights is None else losses * weights.to(losses)[batch.timesteps]
        if self.name == "elbo":
            nats = elbo_terms(prediction, batch.images, batch.timesteps, batch.target, process, self.levels)
            return nats_to_bits_per_dimension(nats - prior_kl(batch.images, process), prediction[0].numel())
        if self.name == "trajectory_log_prob":
            assert batch.held_against is not None
            nats = reverse_step_log_prob(prediction, batch.state, batch.held_against, batch.timesteps, process)
            return nats_to_bits_per_dimension(nats, prediction[0].numel())
        if self.name == "output_probe":
            assert batch.held_against is not None
            return (prediction * batch.held_against).flatten(1).sum(1)
        return _of_output(self.name, prediction.flatten(1))

    def _timestep_weights(self, process: Process) -> PerTimestep | None:
        """w_t of each timestep, or None where all are one."""
        if self.name == "simplified_elbo":
            return elbo_weights(process)
        if self.weights is None:
            return None
        slices = torch.arange(process.timesteps) * len(self.weights) // process.timesteps
        return torch.tensor(self.weights, dtype=torch.float64)[slices]


def _of_output(name: ObjectiveName, output: Float[Tensor, "B D"]) -> PerDraw:
    if name == "square_norm":
        return output.square().mean(1)
    if name == "mean_output":
        return output.mean(1)
    order = {"l1_norm": 1, "l2_norm": 2, "max_norm": float("inf")}[name]
    return torch.linalg.vector_norm(output, ord=order, dim=1)


def objective_values(model: Denoiser, batch: DrawBatch, objective: Objective = Objective()) -> PerDraw:
    """The objective, by default the loss, at each draw of a batch, `[B]`; draws are not weighted."""
    return objective.per_draw(model.predict(batch), batch, model.process)
