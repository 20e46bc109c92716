"""Fit: EK-FAC in both passes as a multiple of plain forward and backward over the same draws.

    python -m benchmarks.fit --case digits

| case | model | draws | batch |
|---|---|---|---|
| `digits` | UNet of preset `digits`, 8×8, 159,697 parameters | 40 images × 30 | 100 |
| `cifar-small` | UNet of preset `cifar2-small`, 32×32, 1.7M parameters | 4 images × 32 | 32 |
| `cifar` | the paper's UNet, 38.3M parameters; on a GPU | 64 images × 32 | 128 |

Weights are random, and so are the images: neither changes what is computed. The peers and the unit get their draws
ready-made; this library makes its own while the clock runs, for each of its two passes.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks import harness, peers
from diffinf_lib import CurvatureConfig, DrawConfig, ImageSet, build_model, fit_curvature, get_preset
from diffinf_lib.diffusion import Denoiser, DrawBatch
from diffinf_lib.errors import require
from diffinf_lib.models import count_parameters


@dataclass(frozen=True)
class Case:
    """A model and how much work it gets: images, draws of each, and draws a batch."""

    preset: str
    images: int
    draws: int
    batch_size: int
    gpu_only: bool = False


CASES = {
    "digits": Case("digits", 40, 30, 100),
    "cifar-small": Case("cifar2-small", 4, 32, 32),
    "cifar": Case("cifar2", 64, 32, 128, gpu_only=True),
}


def random_images(count: int, shape: tuple[int, int, int], seed: int = 0) -> ImageSet:
    """Uniform noise in [−1, 1]."""
    pixels = torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return ImageSet(pixels, torch.full((count,), -1), torch.arange(count))


def our_settings(draws: int) -> dict[str, CurvatureConfig]:
    """The default, which takes a third of the draws for the factors, and settings that spend more, one thing at a time.

    The last, with the same draws and all positions in both passes and a rotation for each draw, does the peers' work.
    """
    default = CurvatureConfig(draws=DrawConfig(draws))
    same = replace(default, factor_draws=default.draws)
    full = replace(same, input_positions=None)
    return {
        "ours": default,
        "ours, the same draws in both passes": same,
        "ours, and all positions": full,
        "ours, and per-draw correction": replace(full, correction="per_draw"),
    }


def functions(case: Case, device: str) -> dict[str, Callable[[], Any]]:
    """What is measured, by name, the unit first."""
    preset = get_preset(case.preset)
    model = build_model(preset.unet, preset.process).to(device).eval()
    shape = (preset.unet.in_channels, preset.unet.sample_size, preset.unet.sample_size)
    images = random_images(case.images, shape)
    batches = peers.draw_batches(model, images, DrawConfig(case.draws), batch_size=case.batch_size)

    def ours(config: CurvatureConfig) -> Callable[[], Any]:
        return lambda: fit_curvature(model, images, config, seed=0, batch_size=case.batch_size)

    return (
        {"plain forward + backward": lambda: peers.plain_forward_backward(model, batches)}
        | {name: ours(config) for name, config in our_settings(case.draws).items()}
        | {
            "curvlinops": lambda: peers.fit_with_curvlinops(model, batches),
            "kronfluence": lambda: _fit_with_kronfluence(model, batches),
        }
    )


def _fit_with_kronfluence(model: Denoiser, batches: list[DrawBatch]) -> Any:
    """Imported when it runs: whoever measures the others need not have it."""
    from benchmarks.kronfluence_peer import fit_with_kronfluence

    return fit_with_kronfluence(model, batches)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    options = _parser().parse_args(arguments)
    harness.settle(options)
    case = CASES[options.case]
    given = {field: getattr(options, field) for field in ("images", "draws", "batch_size") if getattr(options, field)}
    case = replace(case, **given)
    require(options.device != "cpu" or not case.gpu_only or options.force, f"case={options.case!r}: hours on a CPU; give "
            "--device cuda, or --force")  # fmt: skip
    work = functions(case, options.device)
    chosen = [name for name in work if not options.only or any(word in name for word in ["plain", *options.only])]
    measured = harness.alternate({name: work[name] for name in chosen}, options.repeats, device=options.device)
    print(harness.measurement_table(measured))
    settings = {
        "case": options.case, "work": case, "repeats": options.repeats, "device": options.device, "dtype": "float32",
        "tf32": options.tf32, "ours": our_settings(case.draws),
        "parameters": count_parameters(build_model(get_preset(case.preset).unet)),
    }  # fmt: skip
    results = {name: measurement.summary() for name, measurement in measured.items()}
    print(harness.write_results(options.name or f"fit-{options.case}", settings, results, options.out))


def _parser() -> argparse.ArgumentParser:
    parser = harness.arguments(__doc__)
    parser.add_argument("--case", choices=CASES, default="digits")
    parser.add_argument("--images", type=int, help="number of images; default: the case's")
    parser.add_argument("--draws", type=int, help="draws of each image, an even number; default: the case's")
    parser.add_argument("--batch-size", type=int, help="draws a batch; default: the case's")
    parser.add_argument("--only", nargs="*", help="parts of the names of what to measure beside the unit")
    parser.add_argument("--force", action="store_true", help="run a case for GPUs on the CPU")
    return parser


if __name__ == "__main__":
    main()
