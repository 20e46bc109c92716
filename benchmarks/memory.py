"""Memory: peak memory of scoring as images and queries grow, beside what the planner says of it.

    python -m benchmarks.memory

A UNet of 2.2M parameters for 8×8 pixels, random weights and images, 10 draws a gradient. Queries are kept in full in a folder;
training gradients are scored as they are computed and forgotten, as the paper's presets do it. Q stays at 20 while N grows,
N at 50 while Q grows. 80 queries stay in memory, 320 do not (`diffinf_lib.gradients.sets.HELD_BYTES`): they are read a
block at a time for each part of the training images.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffinf_lib as di
from benchmarks import harness
from benchmarks.fit import random_images
from diffinf_lib.attribution.scoring import scores_of_sets
from diffinf_lib.curvature.damping import Inverses
from diffinf_lib.gradients import gradients_of
from diffinf_lib.planner import Rates
from diffinf_lib.planner.network import NetworkCount
from diffinf_lib.planner.plan import Estimator

DIGITS = di.get_preset("digits")
DRAWS, SHAPE = di.DrawConfig(10), (1, 8, 8)
UNET = replace(
    DIGITS.unet, sample_size=8, block_out_channels=(64, 64, 64), layers_per_block=2, norm_num_groups=32,
    down_block_types=("DownBlock2D",) * 3, up_block_types=("UpBlock2D",) * 3,
)  # fmt: skip
PRESET = replace(
    DIGITS, unet=UNET, gradient_draws=DRAWS, measurement=di.MeasurementConfig(draws=DRAWS), further_measurements=(),
    store_budget=0.0,
)  # fmt: skip
IMAGES, QUERIES = (50, 200, 800), (20, 80, 320)
SIZES = [(n, QUERIES[0]) for n in IMAGES] + [(IMAGES[0], q) for q in QUERIES[1:]]
DAMPINGS = [1e-8, 1e-6]


class Case:
    """One model with its curvature, scored at several sizes."""

    def __init__(self, device: str):
        self.model = di.build_model(PRESET.unet).to(device)
        self.curvature = di.fit_curvature(
            self.model, random_images(16, SHAPE), di.CurvatureConfig(draws=di.DrawConfig(8))
        )
        self.count, self.device = NetworkCount(PRESET.unet, PRESET.curvature), device

    def estimated(self, images: int, queries: int) -> dict[str, float]:
        """Peak bytes by the plan."""
        plan = Estimator(PRESET, self.count, Rates.uniform(1.0), images, queries, self.device == "cpu", generated=0)
        return {"query gradients": plan.query_gradients().peak_bytes, "scores": plan.scores().peak_bytes}

    def measured(self, images: int, queries: int) -> dict[str, int | None]:
        """Peak bytes of making the store of queries, and of scoring with it."""
        train, asked = random_images(images, SHAPE), random_images(queries, SHAPE, seed=1)
        with tempfile.TemporaryDirectory() as folder:
            kept = gradients_of(
                self.model, self.curvature, asked, PRESET.measurement.expectation(0), store=Path(folder) / "queries"
            )
            given = gradients_of(self.model, self.curvature, train, di.Expectation(DRAWS))

            def make() -> None:
                for part in kept.shards(1):
                    del part  # as whoever reads them does

            def score() -> None:
                scores_of_sets([kept], given, self.curvature, Inverses(DAMPINGS), folder=Path(folder) / "pieces")

            return {"query gradients": harness.peak_bytes(make, self.device),
                    "scores": harness.peak_bytes(score, self.device)}  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Estimate and measure every size, print the table, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--points", type=int, help="only the first so many sizes")
    options = parser.parse_args(arguments)
    harness.settle(options)
    case, results = Case(options.device), []
    for images, queries in SIZES[: options.points]:
        found, planned = case.measured(images, queries), case.estimated(images, queries)
        results.append({"images": images, "queries": queries, "peak_bytes": found, "estimated_peak_bytes": planned})
        print(results[-1], flush=True)
    rows = [
        (f"{stage}, N = {row['images']}, Q = {row['queries']}", harness.mebibytes(int(row["estimated_peak_bytes"][stage])),
         harness.mebibytes(row["peak_bytes"][stage]))
        for stage in ("query gradients", "scores") for row in results
    ]  # fmt: skip
    print(harness.table(rows, ["", "planned MiB", "took MiB"]))
    settings: dict[str, Any] = {
        "unet": PRESET.unet, "parameters": case.count.parameters, "gradient_bytes": 4 * case.count.entries,
        "draws": DRAWS, "dampings": DAMPINGS, "device": options.device,
        "held_bytes": di.gradients.sets.HELD_BYTES, "shard_bytes": di.gradients.sets.SHARD_BYTES,
    }  # fmt: skip
    print(harness.write_results(options.name or "memory", settings, {"sizes": results}, options.out))


if __name__ == "__main__":
    main()
