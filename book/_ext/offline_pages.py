"""Sphinx extension: leave out the scripts of Thebe, which jupyter-book adds to every page and which ask for a network."""

from typing import Any


def _without_thebe(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    def asks_for_thebe(script: Any) -> bool:
        body = str(getattr(script, "attributes", {}).get("body", ""))
        return "thebe" in f"{getattr(script, 'filename', script)} {body}".lower()

    context["script_files"] = [script for script in context.get("script_files", []) if not asks_for_thebe(script)]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", _without_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
