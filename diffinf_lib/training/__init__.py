"""Training: a diffusion model from images, the same bits whether or not the run was interrupted.

Everything random in step s (which images, which draws, flips, dropout) is a function of (seed, s), so a checkpoint needs
no generator state and the step after a resume is the step that would have been.
"""

from diffinf_lib.training.choice import fastest, step_seconds
from diffinf_lib.training.many import Training, train_many
from diffinf_lib.training.schedule import batch_indices, learning_rate_factor
from diffinf_lib.training.stages import TrainingResult, load_training, train, training_identity
from diffinf_lib.training.trainer import Trainer

__all__ = [
    "Trainer",
    "Training",
    "TrainingResult",
    "batch_indices",
    "fastest",
    "learning_rate_factor",
    "load_training",
    "step_seconds",
    "train",
    "train_many",
    "training_identity",
]
