"""Sphinx extension: `di.name` in a sentence or table leads to the name's entry in the API."""

import re
from typing import Any

from docutils import nodes
from sphinx import addnodes

NAME = re.compile(r"di((?:\.\w+)+)")


def _link(app: Any, doctree: nodes.document) -> None:
    for literal in list(doctree.findall(nodes.literal)):
        name = NAME.fullmatch(literal.astext().split("(")[0])
        if name and not isinstance(literal.parent, nodes.reference | addnodes.pending_xref):
            target = {"refdomain": "py", "reftype": "obj", "reftarget": f"diffinf_lib{name[1]}", "refexplicit": True}
            link = addnodes.pending_xref("", refdoc=app.env.docname, refwarn=False, **target)
            literal.replace_self(link)
            link += literal


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
