"""Label vectors: the v whose pull-backs Jᵀv make up the curvature, E[Jᵀv vᵀJ] = F.

- GGN^model: with h(f) = ‖y − f‖²/C the Hessian of the loss in the network's output is (2/C) I, whatever the target: the
  matrix does not see the target (Mlodozeniec et al. 2025, section 3.1). Sampling targets from the model's own
  Gaussian gives v ~ N(0, (2/C) I); the scaled basis vectors give the same matrix exactly, at C times the cost.
- GGN^loss: v = ∂ℓ/∂f = (2/C)(f − y), the loss gradient itself; its pull-back is ∇ℓ.

Everything random about a draw is keyed by (seed, pass, example id, draw), so batches and their order do not matter.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffinf_lib.configuration import CurvatureConfig
from diffinf_lib.diffusion import DrawBatch
from diffinf_lib.randomness import keyed_generator
from diffinf_lib.shapes import Ids, ImageBatch, PerDraw


@dataclass(frozen=True)
class KeyedRandomness:
    """Random numbers for draws of some examples, by key.

    Attributes:
        example_ids: id of every example of the image set, `[N]`; `DrawBatch.example` counts them.
        draws: draws of an example, S.
    """

    example_ids: Ids
    draws: int
    seed: int
    pass_name: str

    def of(
        self, batch: DrawBatch, what: str, make: Callable[[int, torch.Generator], Float[Tensor, "S ..."]]
    ) -> Float[Tensor, "B ..."]:
        """`make(S, generator)` gives `[S, ...]` for each example; the rows that belong to the batch's draws, on the CPU."""
        parts = []
        for example in batch.example.unique_consecutive().tolist():
            generator = keyed_generator(what, self.seed, self.pass_name, int(self.example_ids[example]))
            parts.append(make(self.draws, generator)[batch.draw[batch.example == example]])
        return torch.cat(parts)

    def signs(self, batch: DrawBatch, *, per_example: bool) -> PerDraw:
        """Rademacher signs, one for each draw or one for all draws of an example."""

        def make(draws: int, generator: torch.Generator) -> Float[Tensor, "S"]:
            bits = torch.randint(2, (1 if per_example else draws,), generator=generator)
            return (2.0 * bits - 1).expand(draws)

        return self.of(batch, "signs", make)

    def places(self, batch: DrawBatch, count: int) -> Float[Tensor, "B n"]:
        """Relative positions in [0, 1), one in each of `count` equal slices."""

        def make(draws: int, generator: torch.Generator) -> Float[Tensor, "S n"]:
            return (torch.arange(count) + torch.rand(draws, count, generator=generator)) / count

        return self.of(batch, "positions", make).clamp(max=1 - 2**-20)  # float32: ⌊place · L⌋ must stay below L


def exact_vectors(images: ImageBatch) -> Float[Tensor, "V B C H W"]:
    """The scaled basis v_c = √(2/C)·e_c repeated for each draw, `[C, B, C, H, W]`: Σ_c v_c v_cᵀ = (2/C) I."""
    dimension = images[0].numel()
    basis = torch.eye(dimension, dtype=images.dtype, device=images.device) * math.sqrt(2 / dimension)
    return basis.view(dimension, 1, *images.shape[1:]).expand(-1, len(images), -1, -1, -1)


def sampled_vectors(batch: DrawBatch, labels: int, random: KeyedRandomness) -> Float[Tensor, "{labels} B C H W"]:
    """v of each draw and label, `[labels, B, C, H, W]`, from N(0, (2/C) I)."""

    def make(draws: int, generator: torch.Generator) -> Float[Tensor, "S V C H W"]:
        return torch.randn(draws, labels, *batch.images.shape[1:], generator=generator)

    vectors = random.of(batch, "labels", make).transpose(0, 1)
    return math.sqrt(2 / batch.images[0].numel()) * vectors.to(batch.images)


def label_vectors(
    prediction: ImageBatch, batch: DrawBatch, config: CurvatureConfig, random: KeyedRandomness
) -> Float[Tensor, "V B C H W"]:
    """The vectors of a batch: Σ over v and draws of Jᵀv vᵀJ, divided by the number of draws, estimates F.

    For `loss_per_example` the outer product is of an example's sum over its draws instead.
    """
    if config.partition == "model":
        if config.exact_labels:
            vectors = exact_vectors(batch.images)
        else:
            vectors = sampled_vectors(batch, config.sampled_labels, random) / math.sqrt(config.sampled_labels)
        scale = batch.draw_weights.sqrt()
    else:
        vectors = (2 / batch.images[0].numel()) * (prediction.detach() - batch.target).unsqueeze(0)
        per_example = config.partition == "loss_per_example"
        scale = batch.draw_weights / math.sqrt(random.draws) if per_example else batch.draw_weights.sqrt()
    return vectors * scale.view(1, -1, 1, 1, 1)
