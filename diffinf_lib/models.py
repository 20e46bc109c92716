"""Models: diffusers UNets, built from a preset or read from a folder or hub id. Weights are safetensors only."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel

from diffinf_lib.artifacts.files import read_tensors
from diffinf_lib.errors import ArtifactError
from diffinf_lib.randomness import keyed_seed

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class UNetConfig:
    """The arguments of diffusers' `UNet2DModel` that the presets use; the names are theirs."""

    sample_size: int = 8
    in_channels: int = 1
    out_channels: int = 1
    layers_per_block: int = 1
    block_out_channels: tuple[int, ...] = (16, 32)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D")
    norm_num_groups: int = 8
    norm_eps: float = 1e-5
    dropout: float = 0.0
    attention_head_dim: int | None = 8
    add_attention: bool = True
    downsample_padding: int = 1
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    resnet_time_scale_shift: str = "default"


def build_unet(config: UNetConfig, *, seed: int = 0) -> UNet2DModel:
    """A freshly initialised UNet in eval mode; the weights depend on `seed` and the configuration only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("unet", seed))
        return UNet2DModel(**asdict(config)).eval()


def save_unet(model: UNet2DModel, folder: Path | str) -> None:
    """Write `config.json` and safetensors weights in diffusers' own layout."""
    model.save_pretrained(folder, safe_serialization=True)
    shutil.copymode(Path(folder) / "config.json", Path(folder) / WEIGHTS)  # safetensors lets only the owner read


def load_unet(source: Path | str) -> UNet2DModel:
    """Read a UNet from a folder written by diffusers or by `save_unet`, or from a hub id; eval mode.

    Raises:
        ArtifactError: nothing usable is there, or the weights are damaged.
    """
    weights = Path(source) / WEIGHTS
    if weights.exists():
        read_tensors(weights)
    try:
        return UNet2DModel.from_pretrained(str(source), use_safetensors=True, low_cpu_mem_usage=False).eval()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        message = f"{source}: no UNet2DModel with safetensors weights there ({reason}); give a model folder or hub id"
        raise ArtifactError(message) from None


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in model.parameters())
