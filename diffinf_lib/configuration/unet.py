"""UNet: the network of a preset."""

import math
from dataclasses import dataclass
from typing import Literal

from diffinf_lib.errors import require
from diffinf_lib.options import Options, PositiveFloat, PositiveInt, Share


@dataclass(frozen=True)
class UNetConfig(Options):
    """The arguments of diffusers' `UNet2DModel` that the presets use; the names are theirs."""

    sample_size: PositiveInt = 8
    in_channels: PositiveInt = 1
    out_channels: PositiveInt = 1
    layers_per_block: PositiveInt = 1
    block_out_channels: tuple[PositiveInt, ...] = (16, 32)
    down_block_types: tuple[str, ...] = ("DownBlock2D", "DownBlock2D")
    up_block_types: tuple[str, ...] = ("UpBlock2D", "UpBlock2D")
    norm_num_groups: PositiveInt = 8
    norm_eps: PositiveFloat = 1e-5
    dropout: Share = 0.0
    attention_head_dim: int | None = 8
    add_attention: bool = True
    downsample_padding: Literal[0, 1] = 1
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_blocks()
        self._check_channels()

    def _check_blocks(self) -> None:
        sizes, downs, ups = map(len, (self.block_out_channels, self.down_block_types, self.up_block_types))
        channels = _listed(self.block_out_channels)
        require(sizes == downs == ups, f"block_out_channels={channels}: {sizes} block(s), but down_block_types has {downs} and "
                f"up_block_types {ups}; give as many of each, such as block_out_channels=32,64 with "
                "down_block_types=DownBlock2D,AttnDownBlock2D and up_block_types=AttnUpBlock2D,UpBlock2D")  # fmt: skip
        require(sizes > 0, "block_out_channels=(): give a positive number for each block, such as 32,64")

    def _check_channels(self) -> None:
        groups, divisor = self.norm_num_groups, math.gcd(*self.block_out_channels)
        usable = [number for number in range(1, divisor + 1) if divisor % number == 0]
        require(groups in usable, f"norm_num_groups={groups}: it does not divide every one of block_out_channels="
                f"{_listed(self.block_out_channels)}; give {', '.join(map(str, usable))}, or other channels")  # fmt: skip
        types = zip(self.block_out_channels, self.down_block_types, reversed(self.up_block_types), strict=True)
        attended = [channels for channels, down, up in types if "Attn" in down or "Attn" in up]
        attended += self.block_out_channels[-1:] if self.add_attention else ()
        head, narrowest = self.attention_head_dim, min(attended, default=None)
        require(head is None or narrowest is None or 0 < head <= narrowest, f"attention_head_dim={head}: give a number from 1 "
                f"to {narrowest}, the channels of the narrowest block with attention, or None for one head")  # fmt: skip


def _listed(values: tuple[int, ...]) -> str:
    return ",".join(map(str, values))
