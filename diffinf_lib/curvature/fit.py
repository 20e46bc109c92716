"""Fit: two passes over the draws of all training images, the factors first and the corrected eigenvalues after."""

import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from diffinf_lib.artifacts import (
    ensure_writable,
    plain,
    read_part,
    stage,
    tensor_digest,
    write_part,
)
from diffinf_lib.artifacts.comparison import check_same
from diffinf_lib.configuration import CurvatureConfig, DrawConfig, Expectation
from diffinf_lib.curvature.ekfac import LayerCurvature, eigenbasis
from diffinf_lib.curvature.fitted import Curvature
from diffinf_lib.curvature.kfac import KroneckerFactors
from diffinf_lib.curvature.label_vectors import KeyedRandomness
from diffinf_lib.curvature.layers import GRADIENTS_NOT_FINITE, Covers, check_finite
from diffinf_lib.curvature.passes import AddPortion, Passes, Sums, check_products
from diffinf_lib.data import ImageSet
from diffinf_lib.diffusion import Denoiser, DrawBatch, check_images
from diffinf_lib.diffusion.identity import weights_digest
from diffinf_lib.errors import require
from diffinf_lib.options import check_counts, checked
from diffinf_lib.precision import matrix_precision
from diffinf_lib.settings import own_settings

CURVATURE_FILE = "curvature.safetensors"
PARTIAL = "partial.safetensors"
FACTORS = "factors.safetensors"


class _Partial:
    """Partial sums on disk, from which a killed fit goes on; writing takes a tenth of the time at most."""

    def __init__(self, path: Path, identity: Any, batch_size: int, seconds: float):
        self.path, self.identity, self.counted = path, identity, {"batch_size": batch_size}
        self.seconds, self.saved = seconds, time.monotonic()

    def save(self, pass_name: str, done: int, sums: Sums) -> None:
        started = time.monotonic()
        if started - self.saved >= self.seconds:
            write_part(self.path, sums, self.identity, self.counted | {"pass": pass_name, "done": done})
            self.saved = time.monotonic()
            self.seconds = max(self.seconds, 9 * (self.saved - started)) if self.seconds else 0.0

    def load(self, pass_name: str, device: torch.device) -> tuple[int, Sums]:
        found = read_part(self.path, self.identity, "the pass begins again")
        if found is None:
            return 0, {}
        sums, told = found
        self.check(told, self.path)
        if told["pass"] != pass_name:
            return 0, {}
        return told["done"], {name: value.to(device) for name, value in sums.items()}

    def check(self, told: dict[str, Any], path: Path) -> None:
        """Refuse what was summed up in portions of another size."""
        check_same({name: told.get(name) for name in self.counted}, self.counted, path)


class _Fit:
    """One fit: where the draws come from, and where partial sums are kept."""

    def __init__(
        self,
        model: Denoiser,
        images: ImageSet,
        config: CurvatureConfig,
        seed: int,
        batch_size: int,
        progress: bool,
        covers: Covers = None,
    ):
        check_counts(batch_size=batch_size)
        check_images(images=images)
        self.model, self.config, self.seed, self.progress = model, config, seed, progress
        self.images = images.subset(torch.argsort(images.ids).tolist())  # portions must not depend on the order
        self.passes = Passes(model, config, batch_size, covers)
        self.passes.coverage.warn_of_embeddings()
        self.device, self.kind = model.device, model.dtype
        self._check_layers()

    def _check_layers(self) -> None:
        """One draw refuses layers that are not used, or in another way than hooks see, before any work."""
        draw = next(self.draws(DrawConfig(1, noise_rule="independent"), "check", 1))
        check_products(self.passes.model, self.passes.layers, draw)

    def draws(self, draws: DrawConfig, pass_name: str, size: int) -> Any:
        """All draws of a pass, a portion at a time."""
        return Expectation(draws, pass_name, self.seed).batches(self.model, self.images, size)

    def means(self, pass_name: str, draws: DrawConfig, size: int, add: AddPortion, keep: _Partial | None) -> Sums:
        """Sums over all draws of what `add` takes from each portion, divided by the number of draws."""
        total = len(self.images) * draws.count
        count = math.ceil(total / size)
        random = KeyedRandomness(self.images.ids, draws.count, self.seed, pass_name)
        done, sums = keep.load(pass_name, self.device) if keep else (0, {})
        bar = tqdm(total=count, initial=done, desc=pass_name, unit="portion", disable=not self.progress)
        for index, batch in enumerate(islice(self.draws(draws, pass_name, size), done, None), start=done):
            with matrix_precision(self.config.precision, self.device):
                add(sums, batch, random)
            bar.update()
            if keep and index + 1 < count:
                keep.save(pass_name, index + 1, sums)
        bar.close()
        for name, value in sums.items():
            check_finite({name.partition("/")[0]: value}, GRADIENTS_NOT_FINITE)
        return {name: value / total for name, value in sums.items()}

    def factors(self, folder: Path | None, keep: _Partial | None) -> Sums:
        """A and B of every block, as `BLOCK/A` and `BLOCK/B`; kept on disk until the second pass is done."""
        path = folder / FACTORS if folder else None
        if path and keep and (kept := read_part(path, keep.identity, "the factors are fitted again")):
            keep.check(kept[1], path)
            return {name: value.to(self.device) for name, value in kept[0].items()}
        draws = self.config.drawn_for_factors
        size = self.passes.portion_size(draws.count, batched=False)
        found = self.means("factors", draws, size, self.passes.add_factors, keep)
        if path and keep:
            write_part(path, found, keep.identity, keep.counted)
        return found

    def bases(self, folder: Path | None, keep: _Partial | None) -> dict[str, LayerCurvature]:
        """The basis of every block; the factors are dropped when it is found."""
        if not self.config.has_factors:
            return {name: LayerCurvature() for name in self.passes.blocks}
        found = self.factors(folder, keep)
        return {
            name: eigenbasis(KroneckerFactors(found[f"{name}/A"].to(self.kind), found[f"{name}/B"].to(self.kind)))
            for name in self.passes.blocks
        }

    def run(self, folder: Path | None, keep: _Partial | None) -> Curvature:
        """Both passes, or the one that the approximation needs."""
        config = self.config
        bases = self.bases(folder, keep)
        if not config.has_corrections:
            return self._curvature(bases)
        size = self.passes.portion_size(config.draws.count, batched=config.correction == "batched")
        corrected = self.means("corrections", config.draws, size, self.passes.corrections(bases), keep)
        layers = {
            name: replace(basis, corrected_eigenvalues=corrected[name].to(self.kind)) for name, basis in bases.items()
        }
        return self._curvature(layers)

    def _curvature(self, layers: dict[str, LayerCurvature]) -> Curvature:
        covered = self.passes.coverage
        fitted_to = weights_digest(self.model.network)
        return Curvature(layers, self.config.bias, covered.names, tuple(covered.left_out), fitted_to)


@own_settings
def fit_curvature(
    model: Denoiser,
    images: ImageSet,
    config: CurvatureConfig | None = None,
    *,
    seed: int = 0,
    covers: Covers = None,
    batch_size: int = 100,
    out: Path | str | None = None,
    checkpoint_seconds: float = 30.0,
    progress: bool = False,
) -> Curvature:
    """Fit a curvature to the mean loss of `images`; EK-FAC of GGN^model by default (Mlodozeniec et al. 2025, section 3.1).

    Args:
        model: taken in eval mode; its parameters, flags and gradients are left as they were. It may be compiled
            (`model.compile()`), or its weights in channels-last memory.
        images: the training images.
        covers: which parameters; by default the trainable weights and biases of every `Conv2d` and `Linear`. Names of
            parameters, or a rule `(name, parameter) -> bool`. The curvature remembers them, and gradients and scores follow it.
        batch_size: draws a forward pass; the result depends on it by rounding only, the memory in proportion.
        out: folder of this stage; with it a killed fit goes on from partial sums and ends with the same bits. Partial
            sums are counted in portions of draws, so a killed fit goes on with its own `batch_size` only.
        checkpoint_seconds: how often partial sums are written.

    Raises:
        ConfigurationError: nothing or an unsupported layer is covered, one is not used, a convolution twice, or gradients are
            not finite.
        ArtifactError: `out` holds the curvature of another configuration.
    """
    config = checked("curvature", config, CurvatureConfig | None) or CurvatureConfig()
    fit = _Fit(model, images, config, seed, batch_size, progress, covers)
    if out is None:
        return fit.run(None, None)
    identity = curvature_identity(model, images, fit.config, seed, fit.passes.coverage.names)
    folder = ensure_writable(out)
    with stage(folder, identity, name="curvature") as needed:
        if needed:
            keep = _Partial(folder / PARTIAL, plain(identity), batch_size, checkpoint_seconds)
            fit.run(folder, keep).save(folder / CURVATURE_FILE)
            (folder / PARTIAL).unlink(missing_ok=True)
            (folder / FACTORS).unlink(missing_ok=True)
    return Curvature.load(folder / CURVATURE_FILE)


@own_settings
def fit_to_draws(model: Denoiser, batch: DrawBatch, config: CurvatureConfig, *, covers: Covers = None) -> Curvature:
    """Fit a curvature to the mean loss over given draws, both passes over the same ones; as `fit_curvature` otherwise.

    Args:
        batch: all draws of all images, as many of each; they take the place of those that `config` describes.

    Raises:
        ConfigurationError: the batch has another number of draws of each image than `config` says.
    """
    return _FitToDraws(model, batch, config, covers).run(None, None)


class _FitToDraws(_Fit):
    """A fit whose draws are there already."""

    def __init__(self, model: Denoiser, batch: DrawBatch, config: CurvatureConfig, covers: Covers):
        each = batch.example.bincount()
        for draws in (config.draws, config.drawn_for_factors):
            require(bool((each == draws.count).all()), f"draws={draws.count}: the batch has {each.tolist()[:3]}… draws of its "
                    "images; give their number, for factor_draws too")  # fmt: skip
        firsts = torch.stack([(batch.example == example).nonzero()[0, 0] for example in range(len(each))])
        numbers = torch.arange(len(each))
        self.batch = batch
        images = ImageSet(batch.images[firsts], numbers, numbers)
        super().__init__(model, images, config, 0, len(batch.images), False, covers)

    def draws(self, draws: DrawConfig, pass_name: str, size: int) -> Any:
        return (self.batch.rows(slice(start, start + size)) for start in range(0, len(self.batch.images), size))


def curvature_identity(
    model: Denoiser, images: ImageSet, config: CurvatureConfig, seed: int, covered: tuple[str, ...]
) -> dict[str, Any]:
    """Everything a curvature depends on, as plain values."""
    return {
        "curvature": config,
        "seed": seed,
        "covered": covered,
        "model": model.identity,
        "images": tensor_digest(images.images, images.ids, *model.conditions_of(images).values()),
    }
