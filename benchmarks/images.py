"""Images: private memory of a training as a folder of images grows, beyond what memory is meant to hold.

    python -m benchmarks.images

Folders of made-up coloured pictures of 64×64. Each size has a process of its own, which opens the folder (decodes it), opens
it again, as a resumed run does, and trains a small UNet for some steps on a random half. Up to 1 GiB of images stay in
memory (`diffinf_lib.data.mapped.LARGEST_IN_MEMORY`), more are mapped from a file. The peak is of private pages: those of a
mapped file are the system's, which drops them when it needs room.
"""

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import diffinf_lib as di
from benchmarks import harness
from diffinf_lib.configuration import UNetConfig
from diffinf_lib.data.mapped import LARGEST_IN_MEMORY

SIZES, SIDE, STEPS, BATCH = (1_000, 10_000, 100_000), 64, 5, 4
EVERY = 0.005
"""Seconds between two looks at the memory."""
UNET = UNetConfig(
    sample_size=SIDE, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(16, 32),
    down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
)  # fmt: skip


def write_pictures(folder: Path, count: int) -> None:
    """`count` pictures of one class, no two alike: blocks of colours."""
    (folder / "one").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for place in range(count):
        blocks = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((SIDE // 8, SIDE // 8, 1), np.uint8))).save(
            folder / "one" / f"{place:06d}.png", compress_level=1
        )


def private_bytes() -> int:
    """Resident pages of this process that are in no file (Linux only)."""
    return harness.resident("RssAnon")


@contextmanager
def watched(found: dict[str, float], name: str) -> Iterator[None]:
    """The largest growth of private memory while the block runs, in bytes, and its seconds."""
    before, peak, ended = private_bytes(), [0], threading.Event()

    def look() -> None:
        while not ended.wait(EVERY):
            peak[0] = max(peak[0], private_bytes() - before)

    thread, started = threading.Thread(target=look), time.perf_counter()
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    found[name], found[f"{name} (seconds)"] = max(peak[0], private_bytes() - before), time.perf_counter() - started


def measured(folder: str, threads: int) -> dict[str, float]:
    """What opening a folder twice and training on half of it takes; called in a process of its own."""
    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    with watched(found, "decode and open"):
        data = di.load_dataset(f"folder:{folder}")
    images = len(data.train) + len(data.queries)
    size = images * data.train.images[0].numel() * data.train.images.element_size()
    del data
    with watched(found, "open again"):
        data = di.load_dataset(f"folder:{folder}")
    model = di.build_model(UNET)
    config = di.TrainingConfig(steps=STEPS, batch_size=BATCH)
    with watched(found, "train on a half"):
        half = data.train.subset(torch.randperm(len(data.train))[: len(data.train) // 2])
        di.train(model, half, config, progress=False)
    return {"images": images, "image_bytes": size} | found


def main(arguments: list[str] | None = None) -> None:
    """Measure every size, print the table, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    options = parser.parse_args(arguments)
    harness.settle(options)
    results = []
    for count in options.sizes:
        with tempfile.TemporaryDirectory() as root:
            write_pictures(Path(root) / "pictures", count)
            os.environ["DIFFINF_DATA"] = str(Path(root) / "data")
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                results.append(pool.apply(measured, (str(Path(root) / "pictures"), options.threads)))
        print(results[-1], flush=True)
    stages = ("decode and open", "open again", "train on a half")
    rows = [(row["images"], harness.mebibytes(row["image_bytes"]), *(harness.mebibytes(row[name]) for name in stages))
            for row in results]  # fmt: skip
    print(harness.table(rows, ["images", "all of them, MiB", *stages]))
    settings: dict[str, Any] = {
        "side": SIDE, "steps": STEPS, "batch": BATCH, "unet": UNET, "largest_in_memory": LARGEST_IN_MEMORY,
    }  # fmt: skip
    print(harness.write_results(options.name or "images", settings, {"sizes": results}, options.out))


if __name__ == "__main__":
    main()
