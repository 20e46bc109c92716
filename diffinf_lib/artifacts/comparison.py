"""Comparison: configurations as JSON holds them, and where what was asked for differs from what is there."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from diffinf_lib.errors import ArtifactError, require


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as what JSON gives back, so that written and read configurations compare equal."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def differences(found: Any, asked: Any, prefix: str = "") -> list[str]:
    """Where two plain configurations differ, one short sentence a leaf."""
    if isinstance(found, dict) and isinstance(asked, dict):
        return [
            line
            for key in sorted(found.keys() | asked.keys())
            for line in differences(found.get(key), asked.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if found == asked else [f"{prefix} is {found} there, {asked} asked"]


def check_same(found: Any, asked: Any, where: Path | str) -> None:
    """Refuse to go on with something that another configuration made.

    Raises:
        ArtifactError: `found` and `asked` differ; the message names the first differences.
    """
    lines = differences(found, plain(asked))
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    require(not lines, f"{where}: made by another configuration: {'; '.join(lines[:3])}{more}; "
            "give another folder, or --force to redo it", ArtifactError)  # fmt: skip
