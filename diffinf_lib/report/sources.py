"""Sources: where images come from and a report goes, checked before anything is loaded."""

from collections.abc import Sequence
from pathlib import Path

from diffinf_lib.errors import DataError, require

Source = str | Path


def check_sources(
    images: Source | Sequence[Source], queries: Source | Sequence[Source] | None, generate: int, out: Source
) -> Source | list[Source] | None:
    """Refuse what is not there; the queries, or None where they are to be generated.

    Raises:
        ConfigurationError: neither queries nor a number to generate, or both; or `out` lies inside a folder of images.
        DataError: a folder or file is not there.
    """
    asked = _listed(queries or [])
    require(str(out) != "", "out='': give a folder, . for the current directory")
    require(generate >= 0, f"generate={generate}: give a positive number")
    require(bool(asked) != bool(generate), "queries: give a folder or files to explain, or generate=16 (--generate 16) for "
            "samples of the model; one of the two")  # fmt: skip
    for what, sources in (("images", _listed(images)), ("queries", asked)):
        for source in sources:
            there = str(source) != "" and Path(source).expanduser().exists()
            require(there, f"{what}={source}: there is no such folder or file", DataError)
            _check_apart(Path(out), source)
    return asked[0] if len(asked) == 1 else asked or None


def _listed(sources: Source | Sequence[Source]) -> list[Source]:
    return [sources] if isinstance(sources, (str, Path)) else list(sources)


def _check_apart(out: Path, source: Source) -> None:
    """A report inside a folder of images would be read as images the next time, and images inside a report deleted with it."""
    below, there = Path(source).expanduser().resolve(), out.expanduser().resolve()
    for name in ("samples", "scores", "curvature", "gradients"):
        require(not below.is_relative_to(there / name), f"out={out}: {source} lies where the report keeps its {name}; give "
                "another folder")  # fmt: skip
    inside = out.expanduser().resolve().is_relative_to(Path(source).expanduser().resolve())
    require(not inside, f"out={out}: it lies inside {source}, and its pictures would be read as images of it; give another "
            "folder")  # fmt: skip
