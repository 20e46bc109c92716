"""Gradients: gradients in the eigenbasis plus scores, as a multiple of plain forward and backward over the same draws.

    python -m benchmarks.gradients                     # 300 × 57, 250 draws, one and ten dampings
    python -m benchmarks.gradients --grouping          # few draws: one batch an example, or examples that share batches

Plain is a forward and backward pass over all draws of the 300 training images and the 57 queries, made while the clock
runs, in batches of one example's draws: what any method that takes gradients over these draws has to pay.
"""

from collections.abc import Callable
from typing import Any

import torch

import diffinf_lib as di
from benchmarks import harness, peers
from diffinf_lib.gradients import compute, grouped_gradients

DAMPINGS = [10.0**power for power in range(-10, 0)]


def scoring(train: di.ImageSet, queries: di.ImageSet, draws: di.DrawConfig) -> dict[str, Callable[[], Any]]:
    """Plain passes, and influence with one damping and with ten, of both approximations."""
    preset = di.get_preset("digits")
    model = di.build_model(preset.unet, preset.process)
    curvature = di.fit_curvature(model, train.subset(list(range(20))), preset.curvature)
    measurement = di.MeasurementConfig(draws=draws)

    def plain() -> None:
        for images in (train, queries):
            peers.plain_forward_backward(model, di.Expectation(draws).batches(model, images, draws.count))

    def influence(dampings: list[float], approximations: list[Any]) -> Callable[[], Any]:
        return lambda: di.influence(
            model, curvature, train, queries, measurement=measurement, draws=draws, damping=dampings,
            approximation=approximations,
        )  # fmt: skip

    return {
        "plain forward + backward": plain,
        "one damping": influence([1e-8], ["ekfac"]),
        "ten dampings": influence(DAMPINGS, ["ekfac"]),
        "ten dampings, EK-FAC and K-FAC": influence(DAMPINGS, ["ekfac", "kfac"]),
    }


def grouping(images: di.ImageSet, count: int) -> dict[str, Callable[[], Any]]:
    """Per-example gradients of few draws, each example in a batch of its own, or 256 draws of several in one."""
    model = di.build_model(di.get_preset("digits").unet)
    blocks = di.curvature.curvature_blocks(model)
    expectation = di.Expectation(di.DrawConfig(count, noise_rule="independent"))
    return {
        f"{count} draws, one example a batch": lambda: compute.separate_gradients(model, images, expectation, blocks),
        f"{count} draws, examples share batches": lambda: grouped_gradients(model, images, expectation, blocks),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table, write the JSON file."""
    parser = harness.arguments(__doc__)
    parser.add_argument("--draws", type=int, default=250, help="draws of each image")
    parser.add_argument("--train", type=int, default=300, help="number of training images")
    parser.add_argument("--grouping", action="store_true", help="compare the two ways to few draws instead")
    options = parser.parse_args(arguments)
    harness.settle(options)
    data = di.load_dataset(di.get_preset("digits").dataset)
    train = data.train.subset(list(range(options.train)))
    if options.grouping:
        rounds = [grouping(train, count) for count in (1, 2, 4, 8, 16, 32)]
        measured = {k: v for work in rounds for k, v in harness.alternate(work, options.repeats).items()}
    else:
        measured = harness.alternate(scoring(train, data.queries, di.DrawConfig(options.draws)), options.repeats)
    print(harness.measurement_table(measured))
    settings = {"train": len(train), "queries": len(data.queries), "draws": options.draws, "dampings": DAMPINGS,
                "repeats": options.repeats, "dtype": str(torch.float32)}  # fmt: skip
    name = options.name or ("gradients-few-draws" if options.grouping else "gradients-digits")
    print(harness.write_results(name, settings, {k: m.summary() for k, m in measured.items()}, options.out))


if __name__ == "__main__":
    main()
