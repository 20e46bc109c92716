"""Sources: where images come from and a report goes, checked before anything is loaded."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffinf_lib.artifacts.paths import resolved, spelt_out
from diffinf_lib.errors import DataError, require
from diffinf_lib.model_sources import check_model_source, local_folder
from diffinf_lib.options import WholeNumber, checked

Source = str | Path


def check_sources(
    model: Source | Any,
    images: Source | Sequence[Source],
    queries: Source | Sequence[Source] | None,
    generate: int,
    out: Source,
    autoencoder: Source | None = None,
) -> Source | list[Source] | None:
    """Refuse what is not there; the queries, or None where they are to be generated.

    Raises:
        ConfigurationError: something that is no path, neither queries nor a number to generate, or both; `out` lies inside a
            folder of images, or is the model's.
        DataError: a folder or file is not there.
        ArtifactError: the model is neither a folder with a network in it nor called as those of a hub are; or there is no
            such autoencoder.
    """
    trained, asked = _listed("images", images), [] if queries is None else _listed("queries", queries)
    require(isinstance(out, Source) and str(out) != "", f"out={out!r}: give a folder, . for the current directory")
    checked("generate", generate, WholeNumber)
    require(bool(asked) != bool(generate), "queries: give a folder or files to explain, or generate=16 (--generate 16) for "
            "samples of the model; one of the two")  # fmt: skip
    for what, sources in (("images", trained), ("queries", asked)):
        for source in sources:
            there = str(source) != "" and os.path.exists(spelt_out(source))
            require(there, f"{what}={source}: there is no such folder or file", DataError)
            _check_apart(Path(out), source)
    if isinstance(model, Source):
        check_model_source(model)
    if autoencoder is not None:
        local_folder(autoencoder, "autoencoder")
    for what, read in (("model", model), ("autoencoder", autoencoder)):
        same = isinstance(read, Source) and resolved(read) == resolved(out)
        require(
            not same,
            f"out={out}: that is the {what}'s folder, and the report's files would spoil it; give another folder",
        )
    return asked[0] if len(asked) == 1 else asked or None


def _listed(what: str, sources: Source | Sequence[Source]) -> list[Source]:
    """The paths that were given, one or several."""
    found = [sources] if isinstance(sources, Source) or not isinstance(sources, Sequence) else list(sources)
    for source in found:
        require(isinstance(source, Source), f"{what}: a {type(source).__name__} is no path; give a folder or files, or score "
                "tensors with di.fit_curvature and di.influence")  # fmt: skip
    return found


def _check_apart(out: Path, source: Source) -> None:
    """A report inside a folder of images would be read as images the next time, and images inside a report deleted with it."""
    below, there = resolved(source), resolved(out)
    for name in ("samples", "scores", "curvature", "gradients", "latents"):
        require(not below.is_relative_to(there / name), f"out={out}: {source} lies where the report keeps its {name}; give "
                "another folder")  # fmt: skip
    inside = there.is_relative_to(below)
    require(not inside, f"out={out}: it lies inside {source}, and its pictures would be read as images of it; give another "
            "folder")  # fmt: skip
