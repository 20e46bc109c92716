"""One figure of every kind, small and made up, with ties, hostile names and several controls."""

from dataclasses import replace

import numpy as np
import torch
from cases import images

from diffinf_lib.data import ImageSet
from diffinf_lib.evaluation import GroundTruth
from diffinf_lib.interactive import (
    Choice,
    Curve,
    Explorer,
    Handle,
    Line,
    Lines,
    Matrices,
    Planner,
    Points,
    Preset,
    Readouts,
    Removal,
    Scatter,
    Scrubber,
    Slider,
    Together,
    by,
    texts_by,
)
from diffinf_lib.presets import get_preset

HOSTILE = '</script><img src=x onerror="window.hacked=1">&\''
METHOD = Choice("Method", ("EK-FAC", "K-FAC", "gradients"))
DAMPING = Slider("Damping λ", (1e-8, 1e-6, 1e-4))


def explorer(**options) -> Explorer:
    generator = torch.Generator().manual_seed(0)
    train, queries = images(40, 8), images(5, 8, seed=1)
    named = ImageSet(
        queries.images, queries.labels, queries.ids, names=tuple(f"{q}{HOSTILE}.png" for q in range(len(queries)))
    )
    scores = torch.randn(3, 3, 5, 40, generator=generator) * 1e-4
    options = {
        "presets": [
            Preset("the top is gone", {"Query": 2, "Left out": "the top 10 %"}, "Every one of the first row is out.")
        ]
    } | options
    return Explorer(train, named, by(scores, METHOD, DAMPING), removals=removals(scores[0, 0]), **options)


def removals(scores) -> list[Removal]:
    order, generator = scores.argsort(descending=True), np.random.default_rng(1)
    before, pictures = generator.uniform(0.05, 0.1, 5), images(10, 8, seed=2).images
    return [
        Removal("the top 10 %", order[:, :4].tolist(), before, before + 0.01, pictures[:5]),
        Removal("the bottom 10 %", order[:, -4:].tolist(), before, before - 0.002, pictures[5:]),
    ]


def ground_truth(subsets=24, count=30, queries=4) -> GroundTruth:
    """Halves of the training images; the measurements of one query have many ties."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(subsets, count, dtype=torch.bool)
    for mask in masks:
        mask[torch.randperm(count, generator=generator)[: count // 2]] = True
    effect = torch.randn(queries, count, generator=generator, dtype=torch.float64)
    measured = (~masks).double() @ effect.T
    noisy = measured[:, None] + torch.randn(subsets, 3, queries, generator=generator, dtype=torch.float64)
    noisy[:, :, 1] = noisy[:, :, 1].div(4).round()
    return GroundTruth(masks, noisy.float().double(), torch.arange(count), torch.arange(queries) + 100)


def scatter(**options) -> Scatter:
    truth = replace(ground_truth(), query_images=images(4, 8, seed=7).images)
    generator = torch.Generator().manual_seed(4)
    masks = (~truth.masks).double()
    fitted = torch.linalg.lstsq(masks, truth.measurements.mean(1)).solution.T
    scores = torch.stack([fitted, fitted + fitted.std() * torch.randn(fitted.shape, generator=generator)]).float()
    presets = [
        Preset("as they are", {"Scores": "as they are"}, "A rising cloud."),
        Preset("add a constant", {"Scores": "plus a constant"}, "Nothing changes."),
    ]
    return Scatter(by(scores, Choice("Method", ("fitted", "noisy"))), truth, presets=presets, **options)


def scrubber() -> Scrubber:
    noise = torch.randn(1, 8, 8, generator=torch.Generator().manual_seed(5))
    return Scrubber.noising(images(1, 8).images[0], noise, timesteps=range(0, 1000, 111))


def side_by_side() -> Scrubber:
    """Three pictures for each share and condition, and HTML of its own would look the same."""
    share, condition = Choice("Share", ("2 %", "10 %")), Choice("Without", ("top", "bottom", "random"))
    pictures = images(18, 8, seed=6).images.reshape(2, 3, 3, 1, 8, 8)
    captions = [[f"{s} without {c}" for c in condition.options] for s in share.options]
    return Scrubber(by(pictures, share, condition), texts_by(captions, share, condition), names=("A", "B", "C"))


def pieces_of_html() -> Scrubber:
    step = Slider("Step", (1, 2, 3))
    frames = [f"<p><em>step {i}</em></p>" for i in (1, 2, 3)]
    return Scrubber(texts_by(frames, step), texts_by(["one", "two", "three"], step))


def lines(rule="within") -> Lines:
    draws, generator = np.array([1, 2, 4, 8, 16, 32]), np.random.default_rng(7)
    which = Choice("Queries", ("held-out", "generated"))
    rows = []
    for name, best in (("uniform", 60), ("stratified", 66), (HOSTILE, 70)):
        y = best * (1 - np.exp(-draws / 6)) + generator.normal(size=(2, 6))
        rows.append(Line(name, draws, by(y, which), by(y - 2, which), by(y + 2, which)))
    budget = Slider("Budget", (0.5, 1, 2, 3, 4, 8, 16, 32) if rule == "within" else (1, 1.5, 3, 8, 20, 32, 40))
    return Lines(
        rows,
        "draws",
        "LDS, %",
        log_x=True,
        references={"ceiling": 88.0},
        reading=budget,
        rule=rule,
        costs={"bytes": [draws * 1000.0 * (k + 1) for k in range(3)]},
        cost_forms={"bytes": "d"},
        labels={"rule": [[f"{name} {count}" for count in draws] for name in ("u", "s", HOSTILE)]},
        x_form=".3g",
        y_form=".1f",
        start={"Budget": 8},
    )


def ellipses() -> Lines:
    """Closed curves with a handle, as chapter 5 draws curvatures."""
    angle, distance = np.linspace(0, 2 * np.pi, 49), Slider("Distance", (0, 0.5, 1, 2))
    stretch = np.array([1 + d for d in distance.values])[:, None]
    rows = [
        Line("Hessian", by(stretch * np.cos(angle), distance), by(np.sin(angle) + 0 * stretch, distance)),
        Line("GGN", np.cos(angle), 0.8 * np.sin(angle)),
    ]
    places = np.array(distance.values)
    return Lines(rows, "w", "b", equal=True, handle=Handle(distance, places, 0.3 * places))


def curve(anchor=5) -> Curve:
    x = np.linspace(-0.1, 0.1, 13)
    rates = np.array(DAMPING.values) * 1e4 + 2.0
    y = np.exp(rates[:, None] * 5 * x)
    return Curve(
        x,
        by(y, DAMPING),
        by(5 * rates[:, None] * y if anchor is None else 5 * rates * y[:, anchor], DAMPING),
        "ε",
        "measurement",
        point="ε",
        anchor=anchor,
        start={"ε": x[2]},
        presets=[
            Preset("removal", {"ε": x[0]}, "Leaving out is ε = −1/N."),
            Preset("λ too large", {"Damping λ": 1e-4}),
        ],
    )


def matrices() -> Matrices:
    dial, generator = Slider("Dial", (0, 0.5, 1)), np.random.default_rng(8)
    exact = generator.normal(size=(3, 6, 6))
    near = exact + np.array(dial.values)[:, None, None] * generator.normal(size=(3, 6, 6))
    notes = texts_by([[f"state {s}, cell {i}" for i in range(36)] for s in range(3)], dial)
    return Matrices(by(exact, dial, bits=16), by(near, dial, bits=16), names=("exact", "K-FAC", "error"), notes=notes)


def points() -> Points:
    generator = np.random.default_rng(9)
    x = generator.normal(size=(2, 12)).round(1)
    share = Choice("Share", ("2 %", "10 %"))
    outlier = Slider("Outlier", (0, 1, 2, 3))
    y = 1.5 * x[:, None] + np.array(outlier.values)[None, :, None] * np.eye(12)[3]
    y[1, :, 9:] = np.nan  # fewer points for the other share
    handle = Handle(outlier, by(np.repeat(x[:, 3, None], 4, 1), share), by(y[:, :, 3], share), series=1)
    return Points(
        by(x, share), by(y, share, outlier), "measured", "predicted", marked=[3], identity=True, handle=handle
    )


def readouts() -> Readouts:
    count, device = Slider("Images", (100, 1000, 10_000)), Choice("Device", ("GPU", "CPU"))
    hours = np.outer(count.values, (1e-3, 1e-1))
    return Readouts(
        {"hours": by(hours, count, device), "bytes": by(1e3 * hours[:, 0], count)}, {"hours": ".1f", "bytes": "d"}
    )


def planner() -> Planner:
    """Presets with trajectories, with a store that pays, and with one that does not."""
    plain = Planner([get_preset(name) for name in ("digits", "cifar2-small", "cifar2")])
    return replace(
        plain,
        start=plain.asked("cifar2", 150),
        presets=[
            Preset("cifar2", plain.asked("cifar2", 150), "Retraining and measuring."),
            Preset("fewer draws", plain.asked("cifar2", 150, measurement_draws=250), "Retraining is left."),
            Preset("a store", plain.asked("cifar2", 150, keep=True), "The disk fills."),
            Preset("digits", plain.asked("digits", 0.05), "A laptop."),
        ],
    )


def together() -> Together:
    """A curve, what all curves say, and numbers, under the same slider."""
    return Together(
        [curve(), Readouts({"rate": by([1.0, 2.0, 4.0], DAMPING)})], caption="Two views of one λ.", start={"ε": "0.1"}
    )


MADE = {
    "explorer": explorer,
    "scatter": scatter,
    "scrubber": scrubber,
    "side-by-side": side_by_side,
    "html": pieces_of_html,
    "budget": lines,
    "reading": lambda: lines("at"),
    "ellipses": ellipses,
    "curve": curve,
    "moving-tangent": lambda: curve(None),
    "matrices": matrices,
    "grid": lambda: replace(
        matrices(),
        error_form=None,
        written=True,
        own_scale=True,
        form="+.1f",
        row_names="abcdef",
        column_names="uvwxyz",
    ),
    "points": points,
    "readouts": readouts,
    "planner": planner,
    "together": together,
}
