"""Runs: a folder that holds everything one preset made, a subfolder a stage."""

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from diffinf_lib.artifacts import check_same, ensure_writable, plain, read_json, runs_root, write_json
from diffinf_lib.data import Dataset, load_dataset
from diffinf_lib.errors import require
from diffinf_lib.presets import Preset


@dataclass(frozen=True)
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

    @cached_property
    def data(self) -> Dataset:
        """The preset's dataset."""
        return load_dataset(self.preset.dataset)

    def path(self, *parts: str) -> Path:
        """A path inside the run folder."""
        return self.folder.joinpath(*parts)

    def discard(self, *parts: str) -> None:
        """Delete a stage, so that asking for it makes it anew."""
        shutil.rmtree(self.path(*parts), ignore_errors=True)


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

    Raises:
        ArtifactError: the folder belongs to another configuration, and `force` is not given.
        ConfigurationError: the folder cannot be written, or the network does not take the dataset's images.
        DataError: the dataset is missing or too small; nothing is written then.
    """
    folder = ensure_writable(folder or runs_root() / preset.name.replace(":", "-"))
    comparable = replace(preset, subsets=replace(preset.subsets, count=1, seeds=1))
    configuration = plain({"preset": comparable, "seed": seed})
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    require(device == "cpu" or torch.cuda.is_available(), f"device={device!r}: there is no GPU here; give 'cpu'")
    run, config_file = Run(preset, folder, seed, device, progress), folder / "config.json"
    if config_file.exists() and not force:
        check_same(read_json(config_file), configuration, folder)
    else:
        _check_data(run)  # before anything is written: what is refused must not stand in the way of its correction
        write_json(config_file, configuration)
    return run


def _check_data(run: Run) -> None:
    channels, wanted = run.data.train.shape[0], run.preset.unet.in_channels
    require(channels == wanted, f"dataset={run.preset.dataset.name}: its images have {channels} channel(s), the network takes "
            f"unet.in_channels={wanted}; give unet.in_channels={channels} and unet.out_channels={channels}")  # fmt: skip
