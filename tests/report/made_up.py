"""A report by construction: images, scores and findings that no model was needed for, and names that want to do harm."""

import torch

from diffinf_lib.configuration import MeasurementConfig
from diffinf_lib.data import ImageSet
from diffinf_lib.report.findings import compare, find_copies, find_label_doubts, find_unusual
from diffinf_lib.report.result import Findings, Named, Report, pixel_distances

HOSTILE = (
    "</script><script>window.hacked = 1</script>.png",
    "\"><img src=x onerror='window.hacked = 1'>.png",
    "' onclick='window.hacked = 1.png",
    "<!--.png",
    "a/]]></svg><b>b.png",
    "=cmd|' /C calc'!A0.png",
    "evil\u202egnp.exe.png",
    "line\nbreak\ttab.png",
    "stray\udcff byte.png",
    "&lt;b&gt; & ${x} `y` \\u003c.png",
    "very-long-" + 60 * "name" + ".png",
    "שלום/日本語 🖼.png",
)
CLASSES = ("<b>cats</b>", "dogs & more")


def made_up_report(folder, count=30, queries=5, side=8, channels=3, names=HOSTILE):
    """N random images, of which 4 and 5 are copies and the first ones carry hostile names."""
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.randn(count, channels, side, side, generator=generator) / 2).clamp(-1, 1)
    vectors = torch.randn(count, 40, generator=generator, dtype=torch.float64)
    pixels[5], vectors[5] = pixels[4], vectors[4]
    vectors[2] *= 40
    labels = torch.arange(count) % 2
    directions = 9 * torch.linalg.qr(torch.randn(40, 2, generator=generator, dtype=torch.float64)).Q.T
    vectors[6:] += directions[labels[6:]]
    labels[9] = 0  # it was a 1
    asked = (torch.randn(queries, channels, side, side, generator=generator) / 2).clamp(-1, 1)
    asked[0] = pixels[3]
    train = Named(
        ImageSet(pixels, labels, torch.arange(count)), (*names, *(f"{i}.png" for i in range(len(names), count))), CLASSES,
        ("3 hidden files <i>skipped</i>",),
    )  # fmt: skip
    asked_names = (*names[:queries], *(f"asked-{i}.png" for i in range(len(names), queries)))
    named = Named(ImageSet(asked, torch.full((queries,), -1), torch.arange(queries)), asked_names)
    alike = compare(vectors, pixels)
    itself = vectors.square().sum(1)
    return Report(
        folder, train, named, (1e-8, 1e-6), MeasurementConfig(),
        torch.randn(2, queries, count, generator=generator, dtype=torch.float64), pixel_distances(asked, pixels), itself, alike,
        Findings(find_copies(pixels, alike), find_unusual(itself), find_label_doubts(alike, labels)),
        {"summary": {"model": "<u>model</u>", "seed": 0}},
    )  # fmt: skip
