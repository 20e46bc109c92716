"""Sphinx extension: one script and one style for the interactive figures of all pages, taken from the library."""

import os
from importlib.resources import files
from typing import Any

# Read by the kernels that the build starts: figures then carry their data only, and a form for print.
VARIABLE = "DIFFINF_SITE"


def _serve(app: Any, config: Any) -> None:
    os.environ[VARIABLE] = "1"
    config.html_static_path.append(str(files("diffinf_lib.interactive") / "static"))


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", _serve)
    app.add_js_file("diffinf-interactive.js", loading_method="defer")
    app.add_css_file("diffinf-interactive.css")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
