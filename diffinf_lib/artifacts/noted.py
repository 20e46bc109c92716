"""Noted manifests: which stages and bundles a process made or found whole, for whoever started it."""

import os
from pathlib import Path

NOTED = "DIFFINF_NOTED"
"""The variable that names the file in which they are noted; without it nothing is."""


def note(manifest: Path) -> None:
    """Add a finished manifest to the file that `$DIFFINF_NOTED` names, if it names one."""
    if file := os.environ.get(NOTED):
        with open(file, "a") as notes:
            notes.write(f"{manifest.absolute()}\n")
