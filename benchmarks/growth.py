"""Growth: time and peak memory of the fit and of gradients plus scores against N, Q, S and the width of the layers.

    python -m benchmarks.growth

One of them grows, the others stay at a base: N = 64 images, Q = 8 queries, S = 32 draws for a training gradient, channels
16 and 32 (a UNet of preset `digits`, random weights and images). Query gradients take 32 draws, the fit 30. Scores are
streamed (nothing is stored): memory grows with N up to the size of the shards that are scored together
(`diffinf_lib.gradients.sets.SHARD_BYTES`), and stays there. The points of N reach well beyond that.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import diffinf_lib as di
from benchmarks import harness
from benchmarks.fit import random_images

QUERY_DRAWS = di.DrawConfig(32)


@dataclass(frozen=True)
class Size:
    """How large the problem is: images N, queries Q, draws S of a training gradient, channels of the widest layers."""

    images: int = 64
    queries: int = 8
    draws: int = 32
    width: int = 32


POINTS: dict[str, tuple[int, ...]] = {
    "images": (64, 256, 512, 1024, 2048),
    "queries": (4, 8, 16, 32, 64),
    "draws": (8, 16, 32, 64, 128),
    "width": (16, 32, 64, 128),
}

FIT_DEPENDS_ON = ("images", "width")


def work(size: Size, device: str) -> dict[str, Callable[[], Any]]:
    """The two halves of an attribution of this size."""
    unet = replace(di.get_preset("digits").unet, block_out_channels=(size.width // 2, size.width))
    model = di.build_model(unet).to(device)
    train, queries = random_images(size.images, (1, 8, 8)), random_images(size.queries, (1, 8, 8), seed=1)
    curvature = di.fit_curvature(model, train.subset(slice(8)))
    measurement = di.MeasurementConfig(draws=QUERY_DRAWS)
    return {
        "fit": lambda: di.fit_curvature(model, train),
        "gradients and scores": lambda: di.influence(
            model, curvature, train, queries, measurement=measurement, draws=di.DrawConfig(size.draws)
        ),
    }


def measured(size: Size, parts: list[str], repeats: int, device: str) -> dict[str, Any]:
    """Median seconds and peak memory of the parts at one size."""
    chosen = {name: function for name, function in work(size, device).items() if name in parts}
    found = harness.alternate(chosen, repeats, device=device)
    return {
        name: {"seconds": statistics.median(m.seconds), "rounds": m.seconds, "peak_bytes": m.peak_bytes}
        for name, m in found.items()
    }


def growth(axis: str, values: tuple[int, ...], repeats: int, device: str) -> list[dict[str, Any]]:
    """One axis: a record for each value, the size it was taken at included."""
    parts = ["fit", "gradients and scores"] if axis in FIT_DEPENDS_ON else ["gradients and scores"]
    records = []
    for value in values:
        size = replace(Size(), **{axis: value})
        records.append({"size": asdict(size), "measured": measured(size, parts, repeats, device)})
        print(f"{axis} = {value}", flush=True)
    return records


def main(arguments: list[str] | None = None) -> None:
    """Measure every axis, print the table, write the JSON file."""
    options = _parser().parse_args(arguments)
    harness.settle(options)
    points = {axis: POINTS[axis][: options.points] for axis in options.axes}
    results = {axis: growth(axis, values, options.repeats, options.device) for axis, values in points.items()}
    print(_table(results))
    settings = {
        "base": Size(), "points": points, "repeats": options.repeats, "device": options.device,
        "dtype": "float32", "tf32": options.tf32,
        "query_draws": QUERY_DRAWS, "curvature": di.CurvatureConfig(),
    }  # fmt: skip
    print(harness.write_results(options.name or "growth", settings, results, options.out))


def _table(results: dict[str, list[dict[str, Any]]]) -> str:
    rows = [
        (f"{part}, {axis}", record["size"][axis], taken["seconds"], harness.mebibytes(taken["peak_bytes"]))
        for axis, records in results.items()
        for record in records
        for part, taken in record["measured"].items()
    ]
    return harness.table(sorted(rows, key=lambda row: row[0]), ["", "value", "median s", "peak MiB"])


def _parser() -> argparse.ArgumentParser:
    parser = harness.arguments(__doc__)
    parser.set_defaults(repeats=3)
    parser.add_argument("--axes", nargs="+", choices=POINTS, default=list(POINTS))
    parser.add_argument("--points", type=int, help="only the first so many values of each axis")
    return parser


if __name__ == "__main__":
    main()
