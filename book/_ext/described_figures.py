"""Sphinx extension: the alternative text in a cell's metadata overrules what a figure says of itself."""

import html
import re
from typing import Any

from docutils import nodes


def _alternative(node: nodes.Node) -> str | None:
    """`mystnb: {image: {alt: …}}` of the cell that a node is an output of."""
    while node is not None:
        if isinstance(node, nodes.Element) and "cell_metadata" in node:
            metadata = node["cell_metadata"]
            return (metadata.get("mystnb") or {}).get("image", {}).get("alt")
        node = node.parent
    return None


def _describe(app: Any, doctree: nodes.document) -> None:
    for raw in doctree.findall(nodes.raw):
        text = raw.astext()
        if 'class="diffinf-figure"' in text and (alt := _alternative(raw)):
            before, _, after = re.split(r'aria-label="([^"]*)"', text, maxsplit=1)
            raw.children = [nodes.Text(f'{before}aria-label="{html.escape(alt)}"{after}')]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
