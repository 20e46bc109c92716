"""Sphinx extension: the book in print, through LaTeX; nothing here touches the site.

An interactive figure becomes the still picture and the words of the state it opens in, and names the page on which it
moves. The look is set in `book/_static/diffinf-print.sty`.
"""

import base64
import hashlib
import re
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import exercise_latex_number_reference, solution_node

STYLE = Path(__file__).parents[1] / "_static" / "diffinf-print.sty"
LONGEST_SIGNATURE, CUT_SIGNATURE = 1500, 300  # characters


def _configure(app: Any, config: Any) -> None:
    """The book's own look, after jupyter-book's LaTeX extension has set another; its class asks for packages of 600 MB."""
    config.latex_engine, config.latex_theme = "lualatex", "manual"
    config.latex_elements = {
        "papersize": "a4paper", "extraclassoptions": "openany,oneside", "babel": "", "fncychap": "", "fontpkg": "",
        "preamble": rf"\usepackage{{{STYLE.stem}}}", "figure_align": "H",
        "tableofcontents": r"\sphinxtableofcontents\opening", "makeindex": "", "printindex": "",
    }  # fmt: skip
    config.latex_additional_files = [str(STYLE)]
    config.latex_domain_indices = False


def _lines(texts: Iterable[str]) -> nodes.line_block:
    return nodes.line_block("", *(nodes.line("", text) for text in texts))


class Stills(SphinxPostTransform):
    """Puts the still of an interactive figure where MyST-NB would print how Python writes the object."""

    default_priority = 3  # MyST-NB chooses between HTML and plain text at 4
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        """Called by Sphinx."""
        for raw in list(self.document.findall(nodes.raw)):
            if 'class="diffinf-interactive"' in raw.astext():
                raw.parent.parent.replace_self(self._printed(raw))

    def _printed(self, raw: nodes.raw) -> list[nodes.Node]:
        figure = BeautifulSoup(raw.astext(), "html.parser").select_one("figure")
        still = [node for part in figure.select_one(".diffinf-fallback").children for node in self._still(part)]
        caption = [nodes.emphasis("", figure.figcaption.get_text()), nodes.Text(" ")] if figure.figcaption else []
        return [*still, nodes.paragraph("", "", *caption, *self._where(raw))]

    def _still(self, part: Any) -> list[nodes.Node]:
        """A part of a still as document nodes."""
        if part.name == "table":
            rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in part.find_all("tr")]
            return [_lines(f"{first}: {', '.join(others)}" for first, *others in rows)]
        if part.name == "svg":  # drawn by hand for the screen; its description has all its numbers
            return [_lines(part["aria-label"].split("; "))]
        if part.name == "img":
            return [self._picture(part)]
        if part.name == "p" and part.img:
            return [node for inner in part.children for node in self._still(inner)]
        if not (text := part.get_text().strip()):
            return []
        return [nodes.paragraph("", "", nodes.strong("", text) if part.name == "strong" else nodes.Text(text))]

    def _picture(self, image: Tag) -> nodes.Node:
        """An image that stands in the HTML, written to a file for LaTeX, in its size on a page of 96 px to the inch."""
        kind, data = re.fullmatch(r"data:image/(\w+);base64,(.*)", image["src"]).groups()
        content = base64.b64decode(data)
        path = Path(self.app.doctreedir) / "images" / f"{hashlib.sha256(content).hexdigest()}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.env.images.add_file(self.env.docname, str(path))
        size = {side: f"{image[side]}px" for side in ("width", "height") if image.has_attr(side)}
        align = "left" if "diffinf-still-strip" in image["class"] else "center"
        return nodes.image(uri=str(path), candidates={"*": str(path)}, alt=image["alt"], align=align, **size)

    def _where(self, raw: nodes.Node) -> list[nodes.Node]:
        """The sentence that leads to the page."""
        node = raw
        while not isinstance(node, nodes.document):
            node = node.parent
        page = self.env.path2doc(node["source"])
        base = self.config.html_baseurl
        name = nodes.literal("", f"{page}.html")
        where = nodes.reference("", "", name, refuri=f"{base.rstrip('/')}/{page}.html") if base else name
        return [nodes.Text("The figure moves on the page "), where, nodes.Text(" of the built book.")]


class ExerciseNumbers(SphinxPostTransform):
    """References from one page to an exercise of another carry its number; sphinx-exercise does so within a page."""

    default_priority = 23  # after sphinx-exercise
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        """Called by Sphinx."""
        exercises = getattr(self.env, "sphinx_exercise_registry", {})
        for found in list(self.document.findall(addnodes.number_reference)):
            label = found.get("refuri", "").rpartition("#")[2]
            if label in exercises:
                found.replace_self(exercise_latex_number_reference("", found.astext(), refid=label))


class Solutions(SphinxPostTransform):
    """Solutions stand between two rules, not in a frame: LaTeX breaks neither code nor tables in frames over pages."""

    default_priority = 24  # after sphinx-exercise
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        """Called by Sphinx."""
        for solution in list(self.document.findall(solution_node)):
            title, *rest = solution.children
            page = self.env.sphinx_exercise_registry[solution["label"]]["docname"]
            label = nodes.raw("", rf"\phantomsection\label{{{page}:{solution['label']}}}", format="latex")
            words = [word for part in title.children for word in (part.children if part.children else [part])]
            heading = nodes.paragraph("", "", nodes.strong("", "", *words))
            solution.replace_self(nodes.container("", label, heading, *rest, classes=["diffinf-solution"]))


class Signatures(SphinxPostTransform):
    """A signature that would fill half a page breaks off."""

    default_priority = 25
    formats = ("latex",)

    def run(self, **options: Any) -> None:
        """Called by Sphinx."""
        for arguments in self.document.findall(addnodes.desc_parameterlist):
            ends = list(accumulate(len(one.astext()) for one in arguments))
            if ends and ends[-1] > LONGEST_SIGNATURE:
                kept = [one for one, end in zip(arguments, ends, strict=True) if end <= CUT_SIGNATURE]
                arguments.children = [*kept, addnodes.desc_parameter("", "…")]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("config-inited", _configure, priority=900)
    for transform in (Stills, ExerciseNumbers, Solutions, Signatures):
        app.add_post_transform(transform)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
