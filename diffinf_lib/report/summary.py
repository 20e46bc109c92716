"""Summary: what was run, in words for the foot of the page."""

from typing import Any

from diffinf_lib.errors import first_few
from diffinf_lib.planner.plan import readable_time
from diffinf_lib.report.options import ReportOptions
from diffinf_lib.report.text import counted
from diffinf_lib.shapes import ImageShape


def in_words(
    made: dict[str, Any], options: ReportOptions, shape: ImageShape, latent: ImageShape | None, told_classes: bool
) -> dict[str, str]:
    """Options, versions and cost by name.

    Args:
        made: the same as plain values.
        shape: of the images in pixels.
        latent: of what the network took of them, where that is not their pixels.
        told_classes: whether the network is told classes.
    """
    draws, curvature = options.draws, options.curvature
    rule = (
        f"{draws.count} draws, timesteps {draws.timestep_rule}, noise {draws.noise_rule}"
        f"{', shared' if draws.shared else ''}"
    )
    versions = " · ".join(f"{name} {number}" for name, number in made["environment"]["versions"].items())
    seconds = " · ".join(f"{name} {readable_time(value)}" for name, value in made["measured_seconds"].items())
    planned = sum(made["planned_seconds"].values())
    return {
        "images as read": f"{shape[1]} × {shape[2]} pixels, {counted(shape[0], 'channel')}",
        **_coded_as(latent, made["asked"]),
        **(_classes_in_order(made["classes"]) if told_classes else {}),
        "curvature": f"{curvature.approximation} of GGN^{curvature.partition}, {curvature.draws.count} draws an image",
        "training gradients": rule,
        "query gradients": f"of {options.measurement.label}, {options.measurement.draws.count} draws",
        "damping": ", ".join(f"{value:g}" for value in options.dampings),
        "seed": str(options.seed),
        "time": f"{seconds}{f' (planned: {readable_time(planned)})' if planned else ''}",
        "device": f"{made['environment']['device']}, {counted(made['environment']['threads'], 'thread')}",
        "versions": versions,
        "diffinf commit": made["environment"]["git_commit"],
    }


def _coded_as(latent: ImageShape | None, asked: dict[str, Any]) -> dict[str, str]:
    """What the network took of the images, where that is not their pixels."""
    if latent is None:
        return {}
    numbers = " × ".join(map(str, latent))
    return {
        "images as attributed": f"the means of their latents, {numbers} numbers, by the autoencoder {asked['autoencoder']}"
    }


def _classes_in_order(class_names: list[str]) -> dict[str, str]:
    """Which folder is which class of a network that is told classes: whoever trained it may have counted otherwise."""
    counted_names = [f"{label} {name}" for label, name in enumerate(class_names)]
    return {"classes as the network counts them": first_few(counted_names, 50)}
