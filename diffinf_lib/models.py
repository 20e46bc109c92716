"""Models: diffusers UNets built from a configuration."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from diffinf_lib.configuration import Process, UNetConfig
from diffinf_lib.diffusion import Denoiser
from diffinf_lib.diffusion.denoiser import DrawnWeights
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.randomness import keyed_seed
from diffinf_lib.settings import own_settings

if TYPE_CHECKING:
    from diffusers import UNet2DModel


@own_settings
def build_unet(config: UNetConfig, *, seed: int = 0, device: str = "cpu") -> "UNet2DModel":
    """A freshly initialised UNet in eval mode; the weights depend on `seed` and the configuration only.

    Args:
        device: `cpu`, or `meta` for a network that has shapes and no weights.

    Raises:
        ConfigurationError: diffusers cannot build that network, such as one with blocks of an unknown type.
    """
    from diffusers import UNet2DModel

    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(keyed_seed("unet", seed))
        try:
            return UNet2DModel(**asdict(config)).eval()
        except ValueError as error:
            types, reason = (*config.down_block_types, *config.up_block_types), " ".join(str(error).split())
            raise ConfigurationError(
                f"down_block_types and up_block_types={','.join(types)}: diffusers cannot build these ({reason}); "
                "give DownBlock2D, AttnDownBlock2D and UpBlock2D, AttnUpBlock2D"
            ) from None


def build_model(config: UNetConfig, process: Process = Process(), *, seed: int = 0, device: str = "cpu") -> Denoiser:
    """A freshly initialised UNet with its process, as `build_unet` makes it; the starting point of a training."""
    model = Denoiser(build_unet(config, seed=seed, device=device), process).eval()
    if device != "meta":
        model.drawn = DrawnWeights(model.identity["weights"], seed)
    return model


def count_parameters(model: torch.nn.Module) -> int:
    """Number of parameters of a module."""
    return sum(parameter.numel() for parameter in model.parameters())
