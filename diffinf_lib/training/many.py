"""Many trainings: models of one network, each with images, a seed and a folder of its own, several at a time on one device."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import torch
from tqdm.auto import tqdm

from diffinf_lib.artifacts.files import ensure_writable
from diffinf_lib.artifacts.manifest import stage
from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.devices import usable_device
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.loading import check_savable
from diffinf_lib.options import check_counts
from diffinf_lib.settings import own_settings
from diffinf_lib.training.stacked import Place, StackedTrainer
from diffinf_lib.training.stages import (
    CHECKPOINT,
    TrainingResult,
    after_step,
    check_training,
    deterministic,
    finished,
    load_training,
    train,
    training_identity,
)


@dataclass(frozen=True)
class Training:
    """One of many trainings.

    Attributes:
        start: gives the model to begin with and its images; called when the training's turn comes.
        out: folder of its stage, as `train` has it; None keeps nothing.
    """

    start: Callable[[], tuple[Denoiser, ImageSet]]
    seed: int = 0
    out: Path | str | None = None

    def alone(
        self, config: TrainingConfig, *, device: torch.device | str | None = None, progress: bool = True
    ) -> TrainingResult:
        """This training by itself; see `train`."""
        return train(*self.start(), config, seed=self.seed, out=self.out, device=device, progress=progress)


@own_settings
def train_many(
    trainings: Iterable[Training],
    config: TrainingConfig,
    *,
    together: int = 1,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Iterator[tuple[int, TrainingResult]]:
    """Train models of one network with the same options, `together` at a time in this process; see `train`.

    Each has its own order of images, draws, dropout, average, folder, manifest and checkpoint. Killed ones go on from
    their own checkpoints when they are asked for again, in this way or by themselves. A model agrees with the same trained by
    itself to rounding; its numbers depend on `together`, never on which others are trained beside it.

    Args:
        together: 1 trains one after another, exactly as `train` does; more trains stacked models in one step
            (see `training.stacked`), which is not compiled.
        device: where to train; default: where each model is.

    Returns:
        The place among `trainings` and the result of each, as they are finished.

    Raises:
        ConfigurationError: see `train`; or a network that cannot be computed for several models at once.
    """
    check_counts(together=together)
    if together > 1:
        yield from _Side(config, together, device, progress).run(trainings)
        return
    for number, one in enumerate(trainings):
        yield number, one.alone(config, device=device, progress=progress)


@dataclass
class _Begun:
    """A training in its place, its stage open."""

    number: int
    training: Place
    folder: Path | None
    identity: Any
    open: ExitStack


class _Side:
    """Trainings side by side: those that run, in the places of one stack."""

    def __init__(self, config: TrainingConfig, together: int, device: torch.device | str | None, progress: bool):
        self.config, self.together, self.progress = config, together, progress
        self.device = None if device is None else usable_device(device)
        self.stack: StackedTrainer | None = None
        self.running: list[_Begun] = []
        self.locked: deque[tuple[int, Training]] = deque()

    def run(self, trainings: Iterable[Training]) -> Iterator[tuple[int, TrainingResult]]:
        """Every training, as it is finished."""
        waiting = iter(enumerate(trainings))
        with ExitStack() as held, tqdm(desc="train", unit="step", disable=not self.progress) as bar:
            while True:  # an error ends every open stage with it
                yield from self._filled(waiting, held)
                if not self.running and not self.locked:
                    return
                with deterministic(self.config.precision):
                    ended = self._until_some_end(bar)
                yield from [(one.number, self._closed(one)) for one in ended]

    def _filled(self, waiting: Iterator[tuple[int, Training]], held: ExitStack) -> Iterator[tuple[int, TrainingResult]]:
        """Begin trainings while there is room."""
        candidates = self._candidates(waiting)
        while len(self.running) < self.together and (candidate := next(candidates, None)) is not None:
            number, training, wait = candidate
            try:
                begun = self._begun(number, training, held, wait=wait)
            except filelock.Timeout:
                self.locked.append((number, training))
                continue
            if isinstance(begun, TrainingResult):
                yield number, begun
            else:
                self.running.append(begun)

    def _candidates(self, waiting: Iterator[tuple[int, Training]]) -> Iterator[tuple[int, Training, bool]]:
        """What may begin, and whether to wait for it: what another process makes comes last, and is waited for with no stage
        held open, lest two processes wait for each other."""
        for number, training in waiting:
            yield number, training, False
        for _ in range(len(self.locked)):
            yield *self.locked.popleft(), not self.running

    def _begun(self, number: int, training: Training, held: ExitStack, *, wait: bool) -> _Begun | TrainingResult:
        model, images = training.start()
        check_training(model, images, self.config)
        device = model.device if self.device is None else self.device
        identity = training_identity(model, images, self.config, training.seed)
        opened, folder = ExitStack(), None
        if training.out is not None:
            check_savable(model)
            folder = ensure_writable(training.out)
            how = {"together": self.together}
            if not opened.enter_context(stage(folder, identity, name="model", how=how, wait=wait)):
                opened.close()
                return load_training(folder, device, model.no_class)
        held.push(opened)
        model = model.to(device).train()
        self.stack = self.stack or StackedTrainer(model, self.config, self.together)
        place = self.stack.enter(model, images, training.seed)
        if folder:
            place.load(folder / CHECKPOINT, identity)
        return _Begun(number, place, folder, identity, opened)

    def _until_some_end(self, bar: Any) -> list[_Begun]:
        """Steps of all that run, until one or more come to their last."""
        assert self.stack is not None
        while True:
            ended = [one for one in self.running if one.training.step >= self.config.steps]
            if ended:
                return ended
            self.stack.advance()
            for one in self.running:
                after_step(one.training, one.folder, one.identity, bar)

    def _closed(self, one: _Begun) -> TrainingResult:
        result = finished(one.training, one.folder)
        one.training.leave()
        self.running.remove(one)
        one.open.close()
        no_class = one.training.model.no_class
        return result if one.folder is None else load_training(one.folder, one.training.device, no_class)
