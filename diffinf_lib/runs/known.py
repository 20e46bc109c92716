"""Known measurements: what a bundle already holds of a ground truth, so that it grows without its run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffinf_lib.artifacts import Bundle, check_same, ground_truth_folder, load_bundle, plain
from diffinf_lib.data import ImageSet
from diffinf_lib.errors import ArtifactError, require
from diffinf_lib.presets import Preset
from diffinf_lib.runs.model import QUERY_SETS, as_queries
from diffinf_lib.runs.run import Run
from diffinf_lib.runs.subsets import subset_masks

_PARTS = ("unet", "process", "training", "subsets", "sampling", "measurement", "further_measurements")
"""The parts of a preset that a ground truth depends on, beside the images."""
_COUNTS = ("count", "seeds")


@dataclass(frozen=True)
class KnownMeasurements:
    """A bundle of a ground truth that is to grow: by more subsets, or by more seeds of each.

    Its queries are those that further models measure too. A retrained model depends on the images it is shown and on its
    seed only, so the model that once drew the generated queries is not needed.

    Attributes:
        queries: by set, as they were measured.
    """

    bundle: Bundle
    queries: dict[str, ImageSet]

    def holds(self, subset: int, seed: int) -> bool:
        """Whether this retrained model was measured."""
        subsets, seeds, _ = next(iter(self._arrays("measured").values())).shape
        return subset < subsets and seed < seeds

    def of(self, subset: int, seed: int) -> dict[str, Tensor]:
        """What one retrained model measured: `[Q]` for each `<query set>/<measurement>`."""
        return {name: torch.from_numpy(values[subset, seed]) for name, values in self._arrays("measured").items()}

    @property
    def full(self) -> dict[str, np.ndarray]:
        """What the model trained on everything measured, in the same form."""
        return self._arrays("full")

    @property
    def model(self) -> dict[str, Any]:
        """What the model trained on everything is."""
        return dict(self.bundle.manifest["configuration"]["model"])

    @property
    def made_in(self) -> dict[str, Any]:
        """The environment of that model."""
        return dict(self.bundle.manifest["environment"])

    def _arrays(self, kind: str) -> dict[str, np.ndarray]:
        marked = {name: f"/{kind}/" for name in self.bundle.arrays if f"/{kind}/" in name}
        return {name.replace(mark, "/"): self.bundle.arrays[name] for name, mark in marked.items()}


def known_measurements(run: Run, name: str, root: Path | str | None = None) -> KnownMeasurements:
    """The bundle of that name, once it is sure to be of the ground truth that the run would make.

    Args:
        root: folder of bundles; default `book/results/`.

    Raises:
        ArtifactError: there is none, it was made with other images, another seed or other options that the measurements
            depend on, or measurements are taken along trajectories, which no bundle keeps.
    """
    folder = ground_truth_folder(name, root)
    bundle = load_bundle(name, root=root)
    require(
        not run.preset.measures_trajectories,
        f"known={name!r}: this preset measures along trajectories, which a bundle does not keep; leave known out",
        ArtifactError,
    )
    recorded = bundle.manifest["configuration"]
    now = {"preset": _dependencies(run.preset), "seed": run.seed, "dataset_digest": run.data.digest}
    check_same({**{key: recorded.get(key) for key in now}, "preset": _dependencies(recorded["preset"])}, now, folder)
    masks = torch.from_numpy(bundle.arrays["masks"])
    same = torch.equal(masks, subset_masks(run, len(masks)))
    require(same, f"{folder}: its subsets are not those drawn here; use the torch that made it", ArtifactError)
    generated = as_queries(torch.from_numpy(bundle.arrays[f"{QUERY_SETS[1]}/images"]))
    return KnownMeasurements(bundle, {QUERY_SETS[0]: run.data.queries, QUERY_SETS[1]: generated})


def _dependencies(preset: Preset | dict[str, Any]) -> dict[str, Any]:
    parts = {key: value for key, value in plain(preset).items() if key in _PARTS}
    subsets = {key: value for key, value in parts["subsets"].items() if key not in _COUNTS}
    return parts | {"subsets": subsets}
