"""Sphinx extension: what a cell's metadata says of its figure, for those who cannot see it, overrules the figure's own words."""

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
            label = f'aria-label="{html.escape(alt)}"'
            raw.children = [nodes.Text(re.sub(r'aria-label="[^"]*"', lambda _: label, text, count=1))]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("doctree-read", _describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
