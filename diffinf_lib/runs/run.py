"""Runs: a folder that holds everything one preset made, a subfolder a stage."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from diffinf_lib.artifacts import (
    check_same,
    ensure_writable,
    plain,
    read_sealed,
    resolved,
    run_folder,
    write_sealed,
)
from diffinf_lib.artifacts.manifest import MANIFEST
from diffinf_lib.configuration import TrainingConfig
from diffinf_lib.data import Dataset, ImageSet, load_dataset
from diffinf_lib.devices import usable_device
from diffinf_lib.errors import require
from diffinf_lib.models import build_model
from diffinf_lib.presets import STORE_BUDGET, Preset
from diffinf_lib.runs.kept import Kept
from diffinf_lib.training import Training, TrainingResult, train, training_identity

CONFIG, LOGS = "config.json", "logs"
Held = TypeVar("Held")


@dataclass(frozen=True, repr=False)
class Run:
    """A run folder and the preset it belongs to.

    Attributes:
        seed: of the full model, its samples, the curvature and the draws. Retrained models have their own seeds.
    """

    preset: Preset
    folder: Path
    seed: int = 0
    device: str = "cpu"
    progress: bool = True
    _held: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        found = (path.name for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith("."))
        stages = ", ".join(sorted({*found} - {LOGS})) or "none"
        return (f"run of {self.preset.name}: {self.preset.summary}\n  folder: {self.folder}\n"
                f"  seed {self.seed}, on {self.device}\n  stages there: {stages}")  # fmt: skip

    @cached_property
    def data(self) -> Dataset:
        """The preset's dataset."""
        return load_dataset(self.preset.dataset)

    @property
    def model(self) -> TrainingResult:
        """The model trained on all training images."""
        preset = self.preset
        return self.held("model", lambda: train(
            build_model(preset.unet, preset.process, seed=self.seed), self.data.train, preset.training,
            seed=self.seed, out=self.path("model"), device=self.device, progress=self.progress,
        ))  # fmt: skip

    @property
    def model_identity(self) -> dict[str, Any]:
        """What the full model is."""
        return self.held("model identity", lambda: self.model.model.identity)

    def training(
        self, stage: str, label: str, images: ImageSet, config: TrainingConfig, seed: int
    ) -> tuple[Kept, Training]:
        """Another training of the preset's network: where it is kept, and the training itself, for `trained` or `train_many`.

        One of other images or with other options lies elsewhere.
        """
        preset = self.preset
        identity = {
            "unet": preset.unet,
            "process": preset.process,
            "training": config,
            "images": images.digest,
            "seed": seed,
        }
        kept = Kept(self.folder, stage, plain(identity), label)
        return kept, Training(lambda: (build_model(preset.unet, preset.process, seed=seed), images), seed, kept.folder)

    def kept(self, stage: str, label: str = "", /, **depends: Any) -> Kept:
        """A place for a result of the full model.

        Its identity names the model, all images of the dataset and the seed, whatever else the caller says; nothing that is
        made from a run is kept but through here.

        Args:
            depends: everything else that the result depends on, by name.
        """
        always = {"model": self.model_identity, "data": self.data.digest, "seed": self.seed}
        return Kept(self.folder, stage, plain(depends | always), label)

    def held(self, name: str, make: Callable[[], Held]) -> Held:
        """What `make` gives, by the first call; kept in memory until something is discarded."""
        if name not in self._held:
            self._held[name] = make()
        return self._held[name]  # type: ignore[no-any-return]

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def discard(self, *parts: str) -> None:
        """Delete a stage, so that asking for it makes it anew."""
        shutil.rmtree(self.path(*parts), ignore_errors=True)
        self._held.clear()


def configuration_of(preset: Preset) -> dict[str, Any]:
    """A preset as it is compared, as plain values: how many subsets and seeds a ground truth has is left out, so that it can be
    continued with more; a folder of images is the same however its path is written. `store_budget` is named where it is not
    the default, which folders of before it do not know."""
    name, subsets = preset.dataset.name, replace(preset.subsets, count=1, seeds=1)
    if name.startswith("folder:"):
        name = f"folder:{resolved(name.removeprefix('folder:'))}"
    found = plain(replace(preset, subsets=subsets, dataset=replace(preset.dataset, name=name)))
    return {key: value for key, value in found.items() if key != "store_budget" or value != STORE_BUDGET}


def open_run(
    preset: Preset,
    folder: Path | str | None = None,
    *,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    force: bool = False,
) -> Run:
    """Open the run folder of a preset, or make it; default `runs/<preset>`.

    The number of subsets and of their seeds is left out of the comparison: a ground truth can be continued with more.
    A folder in which no stage was ever started, such as a refused command leaves, takes any configuration.

    Raises:
        ArtifactError: the folder belongs to another configuration, and `force` is not given.
        ConfigurationError: the folder cannot be written, or the network cannot be built or does not take the
            dataset's images; no configuration is written then.
        DataError: the dataset is missing or too small; nothing is written then.
    """
    folder = ensure_writable(run_folder(preset.name, folder))
    configuration = plain({"preset": configuration_of(preset), "seed": seed})
    run, config_file = Run(preset, folder, seed, usable_device(device), progress), folder / CONFIG
    with FileLock(folder / f".{CONFIG}.lock"):  # compared and written at once
        found = None if force else read_sealed(config_file)
        if found != configuration:
            if found is not None and _has_stages(folder):
                check_same(found, configuration, folder)
            _check_network(run)  # before anything is written
            if not force:
                _check_model(run)  # it still says whose the folder is where the configuration is damaged
            preset.process.check_sampler(preset.sampling.method, preset.sampling.steps)
            write_sealed(config_file, configuration)
    return run


def _has_stages(folder: Path) -> bool:
    """Whether any stage was ever started: it leaves files, the first its manifest; locks and half-written files are hidden."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return any(path.relative_to(folder).parts[0] not in (CONFIG, LOGS) for path in files)


def _check_model(run: Run) -> None:
    """Refuse a preset whose model is not the one that lies in the folder."""
    found = read_sealed(run.path("model", MANIFEST))
    if found is not None:
        model = build_model(run.preset.unet, run.preset.process, seed=run.seed)
        identity = training_identity(model, run.data.train, run.preset.training, run.seed)
        check_same(found.get("configuration"), identity, run.path("model"))


def _check_network(run: Run) -> None:
    """Refuse a network that cannot be built, or that cannot take the images of the dataset; computes nothing."""
    unet, name, (channels, height, width) = run.preset.unet, run.preset.dataset.name, run.data.train.shape
    require(channels == unet.in_channels == unet.out_channels, f"dataset={name}: its images have {channels} channel(s), the "
            f"network takes unet.in_channels={unet.in_channels} and gives unet.out_channels={unet.out_channels}; give "
            f"unet.in_channels={channels} and unet.out_channels={channels}")  # fmt: skip
    blocks, multiple = len(unet.block_out_channels), 2 ** (len(unet.block_out_channels) - 1)
    require(height % multiple == width % multiple == 0, f"dataset={name}: its images have {height}×{width} pixels, {blocks} "
            f"blocks take multiples of {multiple}; give dataset.image_size for a folder, or fewer blocks")  # fmt: skip
    build_model(unet, device="meta")
