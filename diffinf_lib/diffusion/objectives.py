"""Objectives: what is taken of the network's output at one draw; measurements and gradients are means of it over draws.

Training minimises the loss. A query may be measured by something else (a bound on its likelihood), and attribution may
differentiate something else again (D-TRAK takes the squared norm of the output). All of them are functions of the output at
(x_t, t), so draws, gradients and stores serve them alike.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import Objective, ObjectiveName, Process
from diffinf_lib.diffusion.denoiser import Denoiser
from diffinf_lib.diffusion.draws import DrawBatch, elbo_weights
from diffinf_lib.diffusion.elbo import elbo_terms, nats_to_bits_per_dimension, prior_kl
from diffinf_lib.diffusion.reverse import reverse_step_log_prob
from diffinf_lib.shapes import ImageBatch, PerDraw, PerTimestep


def objective_of_prediction(
    prediction: ImageBatch, batch: DrawBatch, objective: Objective, process: Process
) -> PerDraw:
    """The objective at each draw, `[B]`, differentiable in the network's output `prediction`."""
    if objective.name in ("loss", "journey_loss", "weighted_loss", "simplified_elbo"):
        losses = (batch.target - prediction).square().flatten(1).mean(1)
        weights = _loss_weights(objective, process)
        return losses if weights is None else losses * weights.to(losses)[batch.timesteps]
    if objective.name == "elbo":
        nats = elbo_terms(prediction, batch.images, batch.timesteps, batch.target, process, objective.levels)
        return nats_to_bits_per_dimension(nats - prior_kl(batch.images, process), prediction[0].numel())
    if objective.name == "trajectory_log_prob":
        assert batch.held_against is not None
        nats = reverse_step_log_prob(prediction, batch.state, batch.held_against, batch.timesteps, process)
        return nats_to_bits_per_dimension(nats, prediction[0].numel())
    if objective.name == "output_probe":
        assert batch.held_against is not None
        return (prediction * batch.held_against).flatten(1).sum(1)
    return _of_output(objective.name, prediction.flatten(1))


def _loss_weights(objective: Objective, process: Process) -> PerTimestep | None:
    """w_t of each timestep, or None where all are one."""
    if objective.name == "simplified_elbo":
        return elbo_weights(process)
    if objective.loss_weights is None:
        return None
    slices = torch.arange(process.num_train_timesteps) * len(objective.loss_weights) // process.num_train_timesteps
    return torch.tensor(objective.loss_weights, dtype=torch.float64)[slices]


def _of_output(name: ObjectiveName, output: Float[Tensor, "B D"]) -> PerDraw:
    if name == "square_norm":
        return output.square().mean(1)
    if name == "mean_output":
        return output.mean(1)
    order = {"l1_norm": 1, "l2_norm": 2, "max_norm": float("inf")}[name]
    return torch.linalg.vector_norm(output, ord=order, dim=1)


def objective_values(model: Denoiser, batch: DrawBatch, objective: Objective = Objective()) -> PerDraw:
    """The objective, by default the loss, at each draw of a batch, `[B]`; draws are not weighted."""
    return objective_of_prediction(model.predict(batch), batch, objective, model.process)
