"""Fitted curvature: the eigenbases and eigenvalues of all blocks of a model, on disk and in memory."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffinf_lib.artifacts import read_tensor_metadata, read_tensors, tensor_digest, write_tensors
from diffinf_lib.curvature.blocks import BiasRule, Block, curvature_blocks
from diffinf_lib.curvature.config import Approximation
from diffinf_lib.curvature.ekfac import LayerCurvature
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.errors import ArtifactError, require


@dataclass(frozen=True)
class Curvature:
    """The curvature of a model, a block at a time, in eigenbases.

    Attributes:
        layers: curvature by block; a block is a layer unless the layer has groups or a bias of its own (see `Block`).
        bias: how the blocks were cut.
    """

    layers: dict[str, LayerCurvature]
    bias: BiasRule = "joint"

    def save(self, path: Path | str) -> None:
        """Write to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            tensors |= {f"{name}/{field}": value for field, value in vars(layer).items() if value is not None}
        write_tensors(path, tensors, metadata={"bias": self.bias})

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
        bias = (read_tensor_metadata(path) or {}).get("bias", "joint")
        return Curvature({name: LayerCurvature(**parts) for name, parts in found.items()}, bias)

    def to(self, device: torch.device | str) -> "Curvature":
        """The same curvature on another device."""

        def moved(layer: LayerCurvature) -> LayerCurvature:
            parts: dict[str, Any] = {name: v if v is None else v.to(device) for name, v in vars(layer).items()}
            return LayerCurvature(**parts)

        return Curvature({name: moved(layer) for name, layer in self.layers.items()}, self.bias)

    @property
    def digest(self) -> str:
        """SHA-256 of all eigenvectors and eigenvalues, whatever the order of the blocks: a file keeps none."""
        layers = [self.layers[name] for name in sorted(self.layers, key=lambda name: f"{name}/")]
        return tensor_digest(*(v for layer in layers for v in vars(layer).values() if v is not None))

    def blocks(self, model: Denoiser) -> dict[str, Block]:
        """The model's blocks, cut as this curvature's.

        Raises:
            ConfigurationError: a block is missing on either side, or its shape differs; the message names it.
        """
        blocks = curvature_blocks(model, self.bias)
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
