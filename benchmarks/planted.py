"""Planted: `diffinf attribute` as its users meet it. A model of a plain diffusers loop, a folder with planted faults, the page.

    python -m benchmarks.planted                      # 200 sneakers and bags, about ten minutes on one thread
    python -m benchmarks.planted --preset digits --steps 300

The model is trained and saved by diffusers alone, on a folder of PNGs: some are copies of others, some are copies made brighter
and moved, some lie in the other class's folder. Asked are slightly edited training images, whose originals should come first,
and images that the model never saw. What the report says is held against what was planted.
"""

import csv
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import diffinf_lib as di
from benchmarks import harness

COPIES, EDITED, WRONG, ASKED = 6, 4, 5, 5
"""Exact copies, edited copies, wrong labels; queries of each of the two kinds."""


def edited(image: Tensor) -> Tensor:
    """Moved by a pixel and made a little brighter, as a second download of a picture may be."""
    return (image.roll(1, -1) * 0.9 + 0.08).clamp(-1, 1)


def noisy(image: Tensor, seed: int) -> Tensor:
    """With the noise of a camera: a query that its original should come first for."""
    generator = torch.Generator().manual_seed(seed)
    return (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


def write_png(path: Path, image: Tensor) -> None:
    """One grey or colour picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    Image.fromarray(np.moveaxis(levels, 0, -1).squeeze()).save(path)


def plant(folder: Path, preset: str, count: int) -> dict[str, Any]:
    """Write `count` training images with faults, and ten to ask about; say what was planted, by file name."""
    data = di.load_dataset(di.get_preset(preset).dataset)
    whole = count - COPIES - EDITED
    names = [f"class-{label}" for label in sorted(set(data.train.labels.tolist()))]
    labels = [names.index(f"class-{label}") for label in data.train.labels.tolist()]
    truth: dict[str, Any] = {"copies": [], "edited": [], "wrong": {}, "asked": {}}
    for place in range(whole):
        shown = names[labels[place] if place >= WRONG else 1 - labels[place]]
        name = f"{shown}/{place:04d}.png"
        write_png(folder / "images" / name, data.train.images[place])
        if place < WRONG:
            truth["wrong"][name] = names[labels[place]]
        for kind, start, stop, made in (("copies", 20, 20 + COPIES, lambda x: x), ("edited", 40, 40 + EDITED, edited)):
            if start <= place < stop:
                other = f"{shown}/{place:04d}-{kind}.png"
                write_png(folder / "images" / other, made(data.train.images[place]))
                truth[kind].append({name, other})
        if 60 <= place < 60 + ASKED:
            write_png(folder / "asked" / f"seen-{place:04d}.png", noisy(data.train.images[place], place))
            truth["asked"][f"seen-{place:04d}.png"] = name
    for place in range(ASKED):
        write_png(folder / "asked" / f"unseen-{place:04d}.png", data.queries.images[place])
    return truth


def train_with_diffusers(folder: Path, preset: str, steps: int, seed: int = 0) -> float:
    """The loop of diffusers' own example: read the PNGs, add noise, predict it, save a pipeline. Nothing of this library."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    paths = sorted((folder / "images").rglob("*.png"))
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(path))).float() for path in paths])
    pixels = (pixels if pixels.ndim == 4 else pixels.unsqueeze(-1)).movedim(-1, 1) / 127.5 - 1
    torch.manual_seed(seed)
    sizes = vars(di.get_preset(preset).unet)
    kept = ("sample_size", "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types",
            "layers_per_block", "norm_num_groups", "attention_head_dim")  # fmt: skip
    network = UNet2DModel(**{name: sizes[name] for name in kept if name in sizes})
    scheduler, optimizer = DDPMScheduler(num_train_timesteps=1000), torch.optim.AdamW(network.parameters(), lr=1e-3)

    def loop() -> None:
        for _ in range(steps):
            x = pixels[torch.randint(len(pixels), (16,))]
            noise, t = torch.randn_like(x), torch.randint(1000, (16,))
            loss = torch.nn.functional.mse_loss(network(scheduler.add_noise(x, noise, t), t).sample, noise)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    seconds = harness.timed(loop)
    DDPMPipeline(network, scheduler).save_pretrained(folder / "model")
    return seconds


def rows_of(path: Path) -> list[dict[str, str]]:
    """A table of the report."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def judged(report: Path, truth: dict[str, Any]) -> dict[str, Any]:
    """How much of what was planted the report names, and what else it names."""
    groups: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, str] = {}
    for row in rows_of(report / "findings.csv"):
        if row["kind"] in ("copy", "near-copy"):
            groups[row["group"]].add(row["image"])
        elif row["kind"] == "label":
            labels[row["image"]] = row["suggested_class"]
    first = {row["query"]: row["image"] for row in rows_of(report / "scores.csv") if row["rank"] == "1"}
    by_pixels = {row["query"]: row["image"] for row in rows_of(report / "scores.csv") if row["rank_by_pixels"] == "1"}
    found, planted = list(groups.values()), [*truth["copies"], *truth["edited"]]
    asked = truth["asked"].items()
    return {
        "copies": [sum(pair in found for pair in truth["copies"]), len(truth["copies"])],
        "edited copies": [sum(pair in found for pair in truth["edited"]), len(truth["edited"])],
        "other groups of copies": sum(group not in planted for group in found),
        "wrong labels": [sum(labels.get(name) == right for name, right in truth["wrong"].items()), len(truth["wrong"])],
        "other labels doubted": len(labels.keys() - truth["wrong"].keys()),
        "original first, of edited queries": [sum(first[query] == name for query, name in asked), len(asked)],
        "original nearest in pixels": [sum(by_pixels[query] == name for query, name in asked), len(asked)],
    }


def main(arguments: list[str] | None = None) -> None:
    """Plant, train, attribute, judge, and write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--preset", default="fashion", help="whose images and whose size of network; default: fashion")
    parser.add_argument("--count", type=int, default=200, help="training images; default: 200")
    parser.add_argument("--steps", type=int, default=1_200, help="steps of training; default: 1,200")
    parser.add_argument("--folder", help="keep images, model and report here; default: a temporary one")
    options = parser.parse_args(arguments)
    harness.settle(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        truth = plant(folder, options.preset, options.count)
        trained = train_with_diffusers(folder, options.preset, options.steps)
        command = [sys.executable, "-m", "diffinf_lib", "attribute", *map(str, (folder / "model", folder / "images",
                   folder / "asked")), "--out", str(folder / "report"), "--threads", "1", "--quiet"]  # fmt: skip
        taken = harness.timed(lambda: subprocess.run(command, check=True))
        results = {"seconds": {"training": trained, "attribute": taken}} | judged(folder / "report", truth)
    print(harness.table([(name, value) for name, value in results.items()], ["planted", "found"]))
    settings = {"preset": options.preset, "images": options.count, "steps": options.steps}
    print(harness.write_results(f"planted-{options.preset}", settings, results, options.out))


if __name__ == "__main__":
    main()
