"""Fit: two passes over the draws of all training images, the factors first and the corrected eigenvalues after."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffinf_lib.artifacts import (
    ensure_writable,
    plain,
    read_tensor_metadata,
    read_tensors,
    stage,
    tensor_digest,
    write_tensors,
)
from diffinf_lib.artifacts.manifest import check_same
from diffinf_lib.curvature.config import Approximation, CurvatureConfig
from diffinf_lib.curvature.ekfac import LayerCurvature, correction_sum, eigenbasis
from diffinf_lib.curvature.kfac import KroneckerFactors, input_factor_sum, output_gradient_factor_sum
from diffinf_lib.curvature.labels import exact_vectors, sampled_vectors
from diffinf_lib.curvature.layers import ForwardPass, curvature_layers, differentiable, layer_shape
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import DEFAULT_SCHEDULE, DrawBatch, Network, NoiseSchedule, iterate_draws, noisy_images
from diffinf_lib.errors import ArtifactError, require

CURVATURE_FILE = "curvature.safetensors"
PARTIAL = "partial.safetensors"
FACTORS = "factors.safetensors"


@dataclass(frozen=True)
class Curvature:
    """The curvature of a model, a layer at a time, in eigenbases."""

    layers: dict[str, LayerCurvature]

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors |= {f"{name}/{field}": value for field, value in vars(layer).items() if value is not None}
        write_tensors(path, tensors)

    @staticmethod
    def load(path: Path | str) -> "Curvature":
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged or no curvature.
        """
        fields: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_tensors(path).items():
            name, _, field = key.rpartition("/")
            fields.setdefault(name, {})[field] = tensor
        try:
            return Curvature({name: LayerCurvature(**values) for name, values in fields.items()})
        except TypeError:
            raise ArtifactError(f"{path}: not a curvature file; give one that fit_curvature wrote") from None

    def to(self, device: torch.device | str) -> "Curvature":
        """The same curvature on another device."""

        def moved(layer: LayerCurvature) -> LayerCurvature:
            fields: dict[str, Any] = {name: v if v is None else v.to(device) for name, v in vars(layer).items()}
            return LayerCurvature(**fields)

        return Curvature({name: moved(layer) for name, layer in self.layers.items()})

    @property
    def digest(self) -> str:
        """SHA-256 of all eigenvectors and eigenvalues, whatever the order of the layers: a file keeps none."""
        layers = [self.layers[name] for name in sorted(self.layers, key=lambda name: f"{name}/")]
        return tensor_digest(*(v for layer in layers for v in vars(layer).values() if v is not None))

    def check_approximation(self, approximation: Approximation) -> None:
        """Refuse an approximation that this curvature cannot give, before any work (see `LayerCurvature.eigenvalues`)."""
        for layer in self.layers.values():
            layer.eigenvalues(approximation)

    def check_fits(self, model: Network) -> None:
        """Refuse a model whose layers are not those that the curvature was fitted to.

        Raises:
            ConfigurationError: a layer is missing on either side, or its shape differs; the message names it.
        """
        asked = {name: layer_shape(layer) for name, layer in curvature_layers(model).items()}
        found = {name: tuple(layer.kfac_eigenvalues.shape) for name, layer in self.layers.items()}
        for name in asked | found:
            require(asked.get(name) == found.get(name), f"layer {name}: {found.get(name)} in the curvature, "
                    f"{asked.get(name)} in the model; give the curvature that was fitted to this model")  # fmt: skip


Accumulate = Callable[[dict[str, Tensor], ForwardPass, list[dict[str, Tensor]]], None]


class _Fit:
    """One fit: where the draws come from, and where partial sums are kept."""

    def __init__(
        self,
        model: Network,
        images: ImageSet,
        config: CurvatureConfig,
        seed: int,
        schedule: NoiseSchedule,
        batch_size: int,
        exact: bool,
    ):
        self.model, self.images, self.config, self.seed, self.schedule = model, images, config, seed, schedule
        self.batch_size, self.exact = batch_size, exact
        self.layers = curvature_layers(model)
        self.device = next(model.parameters()).device

    def batches(self, pass_name: str) -> Iterator[DrawBatch]:
        pixels = self.images.images.to(self.device, next(self.model.parameters()).dtype)
        return iterate_draws(
            pixels, self.images.ids, self.config.draws, seed=self.seed, stage=pass_name,
            schedule=self.schedule, batch_size=self.batch_size,
        )  # fmt: skip

    def vectors(self, batch: DrawBatch, first: int) -> Tensor:
        if self.exact:
            return exact_vectors(batch.images)
        config = self.config
        return sampled_vectors(batch, self.images.ids, config.draws.count, first, config.labels, self.seed)

    def sums(self, pass_name: str, add: Accumulate, keep: "_Partial | None", progress: bool) -> dict[str, Tensor]:
        """Sums over all draws of what `add` takes from each batch, divided by the number of draws."""
        total = len(self.images) * self.config.draws.count
        count = math.ceil(total / self.batch_size)
        done, sums = keep.load(pass_name, self.device) if keep else (0, {})
        bar = tqdm(total=count, initial=done, desc=pass_name, unit="batch", disable=not progress)
        for index, batch in enumerate(islice(self.batches(pass_name), done, None), start=done):
            noisy = noisy_images(batch.images, batch.timesteps, batch.noise, self.schedule)
            with differentiable(self.model, self.layers):
                forward = ForwardPass(self.model, self.layers, noisy, batch.timesteps)
            vectors = self.vectors(batch, index * self.batch_size)
            pulled = [forward.pull_back(v, last=i == len(vectors) - 1) for i, v in enumerate(vectors)]
            add(sums, forward, pulled)
            bar.update()
            if keep and index + 1 < count:
                keep.save(pass_name, index + 1, sums)
        bar.close()
        return {name: value / total for name, value in sums.items()}

    @property
    def label_weight(self) -> float:
        """Sampled vectors are averaged over the labels of a draw, the exact basis is summed."""
        return 1.0 if self.exact else 1.0 / self.config.labels

    def add_factors(self, sums: dict[str, Tensor], forward: ForwardPass, pulled: list[dict[str, Tensor]]) -> None:
        for name in self.layers:
            _add(sums, f"{name}/A", input_factor_sum(forward.inputs(name)))
            for gradients in pulled:
                _add(sums, f"{name}/B", output_gradient_factor_sum(gradients[name]) * self.label_weight)

    def add_corrections(self, bases: dict[str, LayerCurvature]) -> Accumulate:
        def add(sums: dict[str, Tensor], forward: ForwardPass, pulled: list[dict[str, Tensor]]) -> None:
            for name, layer in bases.items():
                inputs = forward.inputs(name)
                for gradients in pulled:
                    _add(sums, name, correction_sum(layer, inputs, gradients[name]) * self.label_weight)

        return add


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Sums are kept in float64: there are many draws, and a resumed sum must be the same sum."""
    sums[name] = sums[name] + value.double() if name in sums else value.double()


class _Partial:
    """Partial sums on disk, from which a killed fit goes on."""

    def __init__(self, path: Path, identity: Any, seconds: float):
        self.path, self.identity, self.seconds, self.saved = path, identity, seconds, time.monotonic()

    def save(self, pass_name: str, done: int, sums: dict[str, Tensor]) -> None:
        if time.monotonic() - self.saved >= self.seconds:
            write_tensors(self.path, sums, metadata={"identity": self.identity, "pass": pass_name, "done": done})
            self.saved = time.monotonic()

    def load(self, pass_name: str, device: torch.device) -> tuple[int, dict[str, Tensor]]:
        metadata: Any = read_tensor_metadata(self.path) if self.path.exists() else {"pass": None}
        if metadata["pass"] != pass_name:
            return 0, {}
        check_same(metadata["identity"], self.identity, self.path)
        return metadata["done"], {name: value.to(device) for name, value in read_tensors(self.path).items()}


def fit_curvature(
    model: Network,
    images: ImageSet,
    config: CurvatureConfig | None = None,
    *,
    seed: int = 0,
    schedule: NoiseSchedule = DEFAULT_SCHEDULE,
    batch_size: int = 64,
    exact_labels: bool = False,
    out: Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool = False,
) -> Curvature:
    """Fit (E)K-FAC to GGN^model = (2/C) E[JᵀJ] (Mlodozeniec et al. 2025, section 3.1).

    Args:
        model: taken in eval mode; its parameters, flags and gradients are left as they were.
        images: the training images.
        batch_size: draws a forward pass; the result depends on it by rounding only, the memory in proportion.
        exact_labels: run through all C output dimensions instead of sampling; C times the cost, for tests.
        out: folder of this stage; with it a killed fit goes on from partial sums and ends with the same bits. Partial
            sums are counted in batches, so a killed fit goes on with its own `batch_size` only.
        checkpoint_seconds: how often partial sums are written.

    Raises:
        ConfigurationError: an unsupported layer, one used twice or not at all, or gradients that are not finite.
        ArtifactError: `out` holds the curvature of another configuration.
    """
    fit = _Fit(model, images, config or CurvatureConfig(), seed, schedule, batch_size, exact_labels)
    if out is None:
        return _fitted(fit, None, None, progress)
    folder, identity = ensure_writable(out), curvature_identity(model, images, fit.config, seed, schedule)
    identity |= {"exact_labels": True} if exact_labels else {}
    with stage(folder, identity, name="curvature") as needed:
        if needed:
            keep = _Partial(folder / PARTIAL, plain(identity) | {"batch_size": batch_size}, checkpoint_seconds)
            _fitted(fit, folder, keep, progress).save(folder / CURVATURE_FILE)
            (folder / PARTIAL).unlink(missing_ok=True)
            (folder / FACTORS).unlink(missing_ok=True)
    return Curvature.load(folder / CURVATURE_FILE)


def curvature_identity(
    model: Network, images: ImageSet, config: CurvatureConfig, seed: int, schedule: NoiseSchedule
) -> dict[str, Any]:
    """Everything a curvature depends on, as plain values."""
    return {
        "curvature": config,
        "seed": seed,
        "schedule": schedule,
        "weights": tensor_digest(*model.state_dict().values()),
        "images": tensor_digest(images.images, images.ids),
    }


def _fitted(fit: _Fit, folder: Path | None, keep: _Partial | None, progress: bool) -> Curvature:
    kind = next(fit.model.parameters()).dtype
    path = folder / FACTORS if folder else None
    if path and path.exists():
        factors = {name: value.to(fit.device) for name, value in read_tensors(path).items()}
    else:
        factors = fit.sums("factors", fit.add_factors, keep, progress)
        if path:
            write_tensors(path, factors)
    bases = {
        name: eigenbasis(KroneckerFactors(factors[f"{name}/A"].to(kind), factors[f"{name}/B"].to(kind)))
        for name in fit.layers
    }
    if fit.config.approximation == "kfac":
        return Curvature(bases)
    corrected = fit.sums("corrections", fit.add_corrections(bases), keep, progress)
    return Curvature({n: replace(b, corrected_eigenvalues=corrected[n].to(kind)) for n, b in bases.items()})
