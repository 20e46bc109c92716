"""Fitted curvature: the eigenbases and eigenvalues of all blocks of a model, on disk and in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffinf_lib.artifacts import json_digest, read_tensor_metadata, read_tensors, tensor_digest, write_tensors
from diffinf_lib.configuration import Approximation, BiasRule
from diffinf_lib.curvature.blocks import Block, curvature_blocks
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.curvature.layers import Covers
from diffinf_lib.diffusion import Denoiser, require_denoiser
from diffinf_lib.diffusion.identity import weights_digest
from diffinf_lib.errors import ArtifactError, ConfigurationError, first_few, require
from diffinf_lib.finite import weights_not_finite

EIGENVECTORS = ("input_eigenvectors", "output_eigenvectors")
HASHED = ("_tensor_digests", "digest", "basis")


@dataclass(frozen=True, repr=False)
class Curvature:
    """The curvature of a model, a block at a time, in eigenbases.

    Attributes:
        layers: curvature by block; a block is a layer unless the layer has groups or a bias of its own (see `Block`).
        bias: how the blocks were cut.
        covered: names of the parameters that it is the curvature of; None for the trainable ones of whatever model it meets.
        left_out: names of the model's other trainable parameters.
        fitted_to: digest of the model's weights, see `weights_digest`; None where a file does not say it.
    """

    layers: dict[str, LayerCurvature]
    bias: BiasRule = "joint"
    covered: tuple[str, ...] | None = None
    left_out: tuple[str, ...] = ()
    fitted_to: str | None = None

    def __repr__(self) -> str:
        tensors = [value for layer in self.layers.values() for value in vars(layer).values() if value is not None]
        kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
        entries = sum(o * i for o, i in (layer.shape for layer in self.layers.values()))
        best = sorted({layer.best for layer in self.layers.values()})
        lines = [
            f"Curvature: {', '.join(best)} of {len(self.layers)} blocks, bias {self.bias}, {', '.join(kinds)}, "
            f"{sum(tensor.nbytes for tensor in tensors) / 1e6:,.1f} MB",
            f"  covers {entries:,} weights in {_parameters(self.covered)}",
        ]
        return "\n".join([*lines, *([f"  leaves out {_parameters(self.left_out)}"] if self.left_out else [])])

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors |= {f"{name}/{field}": value for field, value in vars(layer).items() if value is not None}
        names = {"covered": self.covered, "left_out": self.left_out, "fitted_to": self.fitted_to}
        write_tensors(path, tensors, metadata={"bias": self.bias} | names)

    @staticmethod
    def load(path: Path | str) -> "Curvature":
        """Read what `save` wrote.

        Raises:
            ArtifactError: the file is missing, damaged or no curvature.
        """
        found: dict[str, dict[str, Tensor]] = {}
        known = {field.name for field in fields(LayerCurvature)}
        for key, tensor in read_tensors(path).items():
            name, _, field = key.rpartition("/")
            found.setdefault(name, {})[field] = tensor
        if not all(name and parts.keys() <= known for name, parts in found.items()):
            raise ArtifactError(f"{path}: not a curvature file; give one that fit_curvature wrote")
        told = read_tensor_metadata(path) or {}
        covered = told.get("covered")
        layers = {name: LayerCurvature(**parts) for name, parts in found.items()}
        return Curvature(
            layers,
            told.get("bias", "joint"),
            covered if covered is None else tuple(covered),
            tuple(told.get("left_out", ())),
            told.get("fitted_to"),
        )

    def to(self, device: torch.device | str) -> "Curvature":
        """The same curvature on another device; itself where it is there already."""
        tensors = [value for layer in self.layers.values() for value in vars(layer).values() if value is not None]
        if all(tensor.device == torch.device(device) for tensor in tensors):
            return self

        def moved(layer: LayerCurvature) -> LayerCurvature:
            parts: dict[str, Any] = {name: v if v is None else v.to(device) for name, v in vars(layer).items()}
            return LayerCurvature(**parts)

        there = replace(self, layers={name: moved(layer) for name, layer in self.layers.items()})
        vars(there).update({name: vars(self)[name] for name in HASHED if name in vars(self)})  # not to be taken twice
        return there

    @cached_property
    def _tensor_digests(self) -> dict[str, dict[str, str]]:
        return {
            name: {field: tensor_digest(value) for field, value in vars(layer).items() if value is not None}
            for name, layer in self.layers.items()
        }

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all that it is: eigenvectors and eigenvalues by block, what is covered and how the blocks were cut.

        The order of the blocks does not count: a file keeps none.
        """
        covered = None if self.covered is None else sorted(self.covered)
        return json_digest({"layers": self._tensor_digests, "bias": self.bias, "covered": covered})

    @cached_property
    def basis(self) -> str:
        """SHA-256 over the eigenvectors alone: which basis gradients are in that were rotated by this curvature."""
        return json_digest(
            {name: [of.get(field) for field in EIGENVECTORS] for name, of in self._tensor_digests.items()}
        )

    @property
    def covers(self) -> Covers:
        """What it covers, as the operators take it: the parameters of these names, as far as a model has them."""
        if self.covered is None:
            return None
        names = frozenset(self.covered)
        return lambda name, parameter: name in names

    def check_fitted_to(self, model: Denoiser) -> None:
        """Refuse a model of other weights, as far as it is known to which this was fitted.

        Raises:
            ConfigurationError: the weights differ, or some of them are not finite.
        """
        if self.fitted_to not in (None, weights_digest(require_denoiser(model).network)):
            raise weights_not_finite(model) or ConfigurationError(
                "curvature: it was fitted to other weights than this model's, so the scores would be of neither; give the "
                "model that it was fitted to, or fit it anew with di.fit_curvature"
            )  # fmt: skip

    def blocks(self, model: Denoiser) -> dict[str, Block]:
        """The model's blocks, of the parameters that this curvature covers and cut as it is.

        Raises:
            ConfigurationError: a covered parameter is not in the model, or a block differs; the message names it.
        """
        there = {name for name, _ in require_denoiser(model).network.named_parameters()}
        missing = [name for name in self.covered or () if name not in there]
        require(not missing, f"{first_few(missing)}: in the curvature, but not in the model; give the curvature that was "
                "fitted to this model")  # fmt: skip
        blocks = curvature_blocks(model, self.bias, self.covers)
        asked = {name: block.shape for name, block in blocks.items()}
        found = {name: layer.shape for name, layer in self.layers.items()}
        for name in asked | found:
            require(asked.get(name) == found.get(name), f"layer {name}: {found.get(name)} in the curvature, "
                    f"{asked.get(name)} in the model; give the curvature that was fitted to this model")  # fmt: skip
        return blocks

    def check_approximations(self, approximations: Sequence[Approximation]) -> None:
        """Refuse an approximation that this curvature cannot give, before any work (see `LayerCurvature.eigenvalues`)."""
        require(len(approximations) > 0, "approximation: give at least one")
        for layer in self.layers.values():
            for approximation in approximations:
                layer.eigenvalues(approximation)


def _parameters(names: tuple[str, ...] | None) -> str:
    """`12 parameters (conv_in.weight, conv_in.bias, …)`."""
    return "trainable parameters" if names is None else f"{len(names)} parameters ({first_few(names)})"
