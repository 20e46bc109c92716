"""Covariance: three ways to the input factor of a 3×3 convolution, for the layer shapes of the presets' UNets.

    python -m benchmarks.covariance

Unfolding every patch, rows of patches, and four sampled positions a draw; 64 draws each. `row_patch_covariance` is used
where it wins: its rule in `diffinf_lib.curvature.covariance` comes from this table.
"""

from typing import Any

import torch
from torch import nn

from benchmarks import harness
from diffinf_lib.curvature.blocks import layer_blocks
from diffinf_lib.curvature.covariance import row_patch_covariance, sampled_inputs
from diffinf_lib.curvature.kfac import input_factor_sum
from diffinf_lib.curvature.layers import Layer

SHAPES = [(1, 8), (4, 8), (8, 8), (16, 8), (32, 8), (32, 4), (64, 4), (32, 32), (64, 32), (96, 16), (128, 32), (256, 8)]
"""(channels, side of the image)."""


def ways(channels: int, side: int, draws: int, device: str) -> dict[str, Any]:
    """The three computations on one layer and one batch of inputs."""
    layer = nn.Conv2d(channels, channels, 3, padding=1).to(device)
    (block,) = layer_blocks({"layer": Layer(layer)}).values()
    raw, places = torch.randn(draws, channels, side, side, device=device), torch.rand(draws, 4, device=device)
    return {
        "unfold": lambda: input_factor_sum(block.inputs(raw)),
        "rows of patches": lambda: row_patch_covariance(block, raw),
        "four positions": lambda: input_factor_sum(sampled_inputs(block, raw, places)),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--draws", type=int, default=64)
    options = parser.parse_args(arguments)
    harness.settle(options)
    results, rows = {}, []
    for channels, side in SHAPES:
        work = ways(channels, side, options.draws, options.device)
        measured = harness.alternate(work, options.repeats, device=options.device)
        name = f"{channels} channels, {side}×{side}"
        results[name] = {way: m.summary() for way, m in measured.items()}
        rows.append(
            (name, *(1e3 * m.summary()["median"] for m in measured.values()), measured["rows of patches"].ratio)
        )
    print(harness.table(rows, ["", "unfold ms", "rows ms", "sampled ms", "rows / unfold"]))
    settings = {"draws": options.draws, "repeats": options.repeats, "device": options.device}
    print(harness.write_results(options.name or "covariance", settings, results, options.out))


if __name__ == "__main__":
    main()
