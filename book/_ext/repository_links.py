"""Sphinx extension: buttons that open a chapter in Colab and on GitHub, of whichever fork the book is built from.

The repository is the environment variable `DIFFINF_REPOSITORY`, or else git's remote `origin`. Without either there are no
buttons.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

VARIABLE = "DIFFINF_REPOSITORY"
REMOTE = re.compile(r"(?:https://|git@|ssh://git@)github\.com[/:]([\w.-]+)/([\w.-]+?)(?:\.git)?/?")


def _git(folder: Path, *words: str) -> str:
    found = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


def repository(folder: Path) -> str | None:
    """`https://github.com/OWNER/NAME` of what `folder` was cloned from; None where that is nowhere on GitHub."""
    match = REMOTE.fullmatch(os.environ.get(VARIABLE) or _git(folder, "remote", "get-url", "origin"))
    return match and "https://github.com/{}/{}".format(*match.groups())


def _link(app: Any, config: Any) -> None:
    found = repository(Path(app.srcdir))
    if found:
        config.html_theme_options |= {
            "repository_url": found, "repository_branch": _git(Path(app.srcdir), "branch", "--show-current") or "main",
            "use_repository_button": True, "launch_buttons": {"colab_url": "https://colab.research.google.com"},
        }  # fmt: skip


def _notebooks_alone(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Colab opens notebooks; pages of Markdown with cells it does not."""
    if context.get("page_source_suffix") != ".ipynb":
        buttons = context.get("header_buttons", [])
        context["header_buttons"] = [button for button in buttons if button.get("label") != "launch-buttons"]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", _link)
    app.connect("html-page-context", _notebooks_alone, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
