"""kronfluence 1.0.1 as a peer, set up for diffusion models as its authors would; see `benchmarks.peers` for what is alike."""

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import Tensor, nn

from diffinf_lib.configuration import Process
from diffinf_lib.diffusion import Denoiser, DrawBatch


class DrawTask(Task):
    """The diffusion loss for kronfluence: a data point is an image with some of its draws.

    A batch is images `[B, C, H, W]`, timesteps `[B, S]` and noise `[B, S, C, H, W]`. Where S > 1 the network runs once
    for each draw; with `has_shared_parameters=True` kronfluence adds up a data point's gradients over the runs, which
    makes them gradients of the loss averaged over draws. All runs but the last are pulled back as soon as they are made,
    so that one run's activations are in memory at a time.
    """

    def __init__(self, process: Process):
        self.process = process

    def compute_train_loss(self, batch: tuple[Tensor, ...], model: nn.Module, sample: bool = False) -> Tensor:
        """Σ over data points of the loss averaged over draws; with `sample`, targets from the model's own Gaussian.

        The loss is the mean over C outputs, −log N(target; prediction, (C/2) I) up to a constant: targets have the
        variance C/2, which gives the Fisher the scale (2/C) JᵀJ.
        """
        images, timesteps, noise = batch
        draws = timesteps.shape[1]
        for draw in range(draws):
            at, added = timesteps[:, draw], noise[:, draw]
            predicted = model(self.process.noisy(images, at, added), at)
            target = self.process.target_of(images, at, added)
            if sample:
                deviation = math.sqrt(predicted[0].numel() / 2)
                target = predicted.detach() + deviation * torch.randn_like(predicted)
            loss = (target - predicted).square().flatten(1).mean(1).sum() / draws
            if draw < draws - 1:
                loss.backward()
        return loss

    def compute_measurement(self, batch: tuple[Tensor, ...], model: nn.Module) -> Tensor:
        """The measurement is the loss."""
        return self.compute_train_loss(batch, model)


class DrawPoints(torch.utils.data.Dataset):
    """Data points for `DrawTask`: a whole batch is handed out by one look-up, nothing is collated.

    Args:
        images: `[n, C, H, W]`.
        timesteps: `[n, S]`.
        noise: `[n, S, C, H, W]`.
    """

    def __init__(self, images: Tensor, timesteps: Tensor, noise: Tensor):
        self.parts = (images, timesteps, noise)

    @staticmethod
    def one_draw_each(batches: Sequence[DrawBatch]) -> "DrawPoints":
        """Every draw a data point of its own."""
        return DrawPoints(
            torch.cat([batch.images for batch in batches]),
            torch.cat([batch.timesteps for batch in batches]).unsqueeze(1),
            torch.cat([batch.noise for batch in batches]).unsqueeze(1),
        )

    @staticmethod
    def one_image_each(batches: Sequence[DrawBatch], draws: int) -> "DrawPoints":
        """Every image a data point with all its draws."""
        flat = DrawPoints.one_draw_each(batches).parts
        timesteps, noise = (part.squeeze(1).unflatten(0, (-1, draws)) for part in flat[1:])
        return DrawPoints(flat[0][::draws], timesteps, noise)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(part[index] for part in self.parts)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        return tuple(part[indices[0] : indices[-1] + 1] for part in self.parts)


def _as_it_is(batch: Any) -> Any:
    return batch


@contextmanager
def kronfluence_analyzer(model: Denoiser) -> Iterator[Analyzer]:
    """kronfluence on a copy of the model, its files in a folder that is deleted at the end.

    Weights are frozen by kronfluence itself, so no weight gradient is computed.
    """
    task = DrawTask(model.process)
    prepared = prepare_model(copy.deepcopy(model), task)
    on_cpu = next(model.parameters()).device.type == "cpu"
    with tempfile.TemporaryDirectory(prefix="kronfluence-") as folder:
        analyzer = Analyzer(
            "benchmark", prepared, task, cpu=on_cpu, disable_tqdm=True, profile=False, output_dir=folder
        )
        analyzer.set_dataloader_kwargs(DataLoaderKwargs(num_workers=0, collate_fn=_as_it_is))
        yield analyzer


def factor_arguments(**changes: Any) -> FactorArguments:
    """EK-FAC of the true Fisher over all data points; everything else as kronfluence has it by default."""
    options = {"covariance_max_examples": None, "lambda_max_examples": None, "use_empirical_fisher": False}
    return FactorArguments(strategy="ekfac", **options | changes)


def fit_with_kronfluence(model: Denoiser, batches: Sequence[DrawBatch]) -> dict[str, dict[str, Tensor]]:
    """EK-FAC in both passes by kronfluence; its eigenvectors and Lambda matrices by name of factor and module."""
    with kronfluence_analyzer(model) as analyzer:
        fit_factors(analyzer, batches)
        return analyzer.load_all_factors("ekfac")


def fit_factors(analyzer: Analyzer, batches: Sequence[DrawBatch], **changes: Any) -> None:
    """Fit all factors over the draws, in batches of the size that they were cut into."""
    analyzer.fit_all_factors(
        "ekfac", DrawPoints.one_draw_each(batches), per_device_batch_size=len(batches[0].images),
        factor_args=factor_arguments(**changes), overwrite_output_dir=True,
    )  # fmt: skip


def kronfluence_scores(
    analyzer: Analyzer, queries: DrawPoints, train: DrawPoints, *, damping: float, batch_size: int
) -> Tensor:
    """kronfluence's own pairwise scores, `[queries, data points of train]`, without the 1/N; all queries in one batch."""
    analyzer.compute_pairwise_scores(
        "pairwise", "ekfac", queries, train, per_device_query_batch_size=len(queries),
        per_device_train_batch_size=batch_size, score_args=ScoreArguments(damping_factor=damping),
        overwrite_output_dir=True,
    )  # fmt: skip
    return analyzer.load_pairwise_scores("pairwise")["all_modules"]
