"""Training: the options of an optimizer run."""

from dataclasses import dataclass
from typing import Literal

from diffinf_lib.configuration.precision import Precision
from diffinf_lib.options import NonNegativeFloat, Options, PositiveFloat, PositiveInt, Share


@dataclass(frozen=True)
class TrainingConfig(Options):
    """How a model is trained; the defaults are the paper's for CIFAR (reference settings of Mlodozeniec et al. 2025).

    Attributes:
        warmup_fraction: share of the steps over which the learning rate rises linearly from 0.
        lr_schedule: after the warm-up, `cosine` to zero or `constant`.
        weight_decay: AdamW's decoupled decay.
        max_grad_norm: gradients are clipped to this norm.
        ema_max_decay, ema_power: weights are averaged with decay min(max, 1 − (1 + s)^−power) at step s.
        checkpoint_every: steps between checkpoints from which a killed run goes on.
        keep_ema_at: steps whose averaged weights are kept beside the final ones, for attribution along the run; a shorter run
            never comes to those beyond its end.
        drop_condition: chance that an image's class is left out of a step, for a model with `no_class`.
        precision: `float32`; `tf32` (float32 with TF32 matrix products, on a GPU); or `bfloat16` autocast (matrix
            products in bfloat16, weights in float32).
        compile: run the network through `torch.compile`.
    """

    steps: PositiveInt = 32_000
    batch_size: PositiveInt = 128
    learning_rate: PositiveFloat = 1e-4
    warmup_fraction: Share = 0.1
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegativeFloat = 1e-6
    max_grad_norm: PositiveFloat = 1.0
    ema_max_decay: Share = 0.9999
    ema_power: float = 0.75
    horizontal_flip: bool = True
    checkpoint_every: PositiveInt = 1_000
    keep_ema_at: tuple[PositiveInt, ...] = ()
    drop_condition: Share = 0.0
    precision: Precision = "float32"
    compile: bool = False
