"""Paths: where data, runs and results lie. No other module joins these folders by hand."""

import os
from pathlib import Path

from diffinf_lib.errors import ArtifactError, require


def project_root() -> Path:
    """The checkout this library was imported from."""
    return Path(__file__).resolve().parents[2]


def _from_environment(variable: str, default: Path) -> Path:
    return spelt_out(os.environ[variable]) if os.environ.get(variable) else default


def data_root() -> Path:
    """Datasets: `$DIFFINF_DATA`, or `data/` in the checkout."""
    return _from_environment("DIFFINF_DATA", project_root() / "data")


def runs_root() -> Path:
    """Run folders: `$DIFFINF_RUNS`, or `runs/` in the checkout."""
    return _from_environment("DIFFINF_RUNS", project_root() / "runs")


def spelt_out(path: os.PathLike[str] | str) -> Path:
    """A path with `~` as the home folder; that of nobody stays as it is, a path that does not exist."""
    return Path(os.path.expanduser(path))  # pathlib's own raises where there is no such user


def resolved(path: Path | str) -> Path:
    """A path in its one spelling: absolute, links followed, `~` spelt out, no slash at the end."""
    return spelt_out(path).resolve()


def run_folder(preset: str, folder: Path | str | None = None) -> Path:
    """The folder of a run; default `<runs>/<preset>`."""
    return resolved(folder or runs_root() / preset.replace(":", "-"))


def results_root() -> Path:
    """Bundles shipped with the book: `book/results/` in the checkout."""
    return project_root() / "book" / "results"


def ground_truth_folder(bundle: str, root: Path | str | None = None) -> Path:
    """The folder of a ground truth's bundle; default below `results_root`.

    Raises:
        ArtifactError: none of that name; the message lists those there are.
    """
    folder = Path(root or results_root())
    known = sorted(path.parent.name for path in folder.glob("*-ground-truth/manifest.json"))
    require((folder / bundle / "manifest.json").exists(), f"ground_truth={bundle!r}: none of that name; there are: "
            f"{', '.join(known) or 'none'}; make one with `diffinf reproduce PRESET`", ArtifactError)  # fmt: skip
    return folder / bundle


def benchmarks_root() -> Path:
    """Measurements beside other libraries: `benchmarks/results/` in the checkout."""
    return project_root() / "benchmarks" / "results"
