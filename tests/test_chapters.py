"""The chapters as texts: what a page shows of their code, and that every term and symbol is told somewhere."""

import re

import jupytext
import pytest

from diffinf_lib.artifacts import project_root

ROOT = project_root()
CHAPTERS = sorted(ROOT.glob("notebooks/[0-9]*.py"))
LAYOUT = set(
    re.findall(
        r"\\\w+",
        r"\frac \tfrac \dfrac \sqrt \sum \prod \int \lVert \rVert \lvert \rvert \langle \rangle \top \bar \hat \tilde "
        r"\bigl \bigr \Bigl \Bigr \sim \mid \le \ge \ne \neq \approx \equiv \propto \cdot \cdots \ldots \dots \times \otimes "
        r"\left \right \odot \quad \qquad \in \to \mapsto \log \exp \sin \cos \tanh \max \min \arg \det \partial \nabla "
        r"\overset \infty \pm \ll \gg \underbrace \Rightarrow \iff \forall \ln \dot",
    )
)
"""What shapes a formula without standing for anything of ours."""


def prose(path):
    return "\n".join(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown")


def symbols(text):
    """The letters of the formulas, Greek ones as commands; words in them are no symbols."""
    formulas = " ".join(map("".join, re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.DOTALL)))
    formulas = re.sub(r"\\(text|mathrm|operatorname|mathbb|mathcal|begin|end)\*?\{[^}]*\}", " ", formulas)
    return set(re.findall(r"\\[A-Za-z]+|[A-Za-z]", formulas)) - LAYOUT


def rows(text):
    """The cells of the tables of a page in Markdown."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]


def test_chapter_cells_are_short_and_figures_described():
    for path in CHAPTERS:
        for cell in jupytext.read(path).cells:
            if cell.cell_type == "code":
                assert cell.source.count("\n") < 30, f"{path.name}: {cell.source[:60]}"
                options = cell.metadata.get("mystnb", {})
                assert ("figure" in options) == ("image" in options), f"{path.name}: a caption needs its alt text"
                assert "image" not in options or options["image"]["alt"]


def test_chapters_fit_the_page_and_degrade_gracefully():
    """A page shows 78 characters of code; where notebooks open without an extension, fences of colons still read as text."""
    for path in CHAPTERS:
        for cell in jupytext.read(path).cells:
            if cell.cell_type == "code":
                assert not [line for line in cell.source.splitlines() if len(line) > 78], path.name
            else:
                assert "```{" not in cell.source, path.name
                assert not re.search(r"^[+*] ", cell.source, re.MULTILINE), (
                    f"{path.name}: a formula's sign begins a list"
                )


def test_every_chapter_has_a_checked_exercise():
    for path in CHAPTERS:
        assert "di.checks." in "".join(cell.source for cell in jupytext.read(path).cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_terms_stand_in_the_glossary(path):
    """What is bold inside a sentence is a term; a bold sentence, or one that ends in a colon, is not."""
    glossary = " ".join((ROOT / "book/glossary.md").read_text().lower().split())
    bold = {" ".join(found.lower().split()) for found in re.findall(r"(?<!\*)\*\*([^*]+)\*\*", prose(path))}
    terms = {found for found in bold if found[-1] not in ".:?!"}
    assert terms and not {term for term in terms if term not in glossary}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_symbols_stand_in_the_notation(path):
    """Those of the whole book, or those of the chapter alone."""
    general, local = (ROOT / "book/notation.md").read_text().split("## In one chapter only")
    own = next((row[1] for row in rows(local) if row[0] == f"{{doc}}`../notebooks/{path.stem}`"), "")
    assert not symbols(prose(path)) - symbols(general) - symbols(own)
    assert not symbols(own) - symbols(prose(path)), "the notation lists what the chapter does not use"


def test_purposes_of_draws_stand_in_the_conventions():
    """Whoever computes scores of his own needs the names to have the same draws; those of single studies aside."""
    folders = [path for path in (ROOT / "diffinf_lib").iterdir() if path.name not in ("studies", "planner")]
    files = [file for path in folders for file in ([path] if path.is_file() else path.rglob("*.py"))]
    code = "\n".join(file.read_text() for file in files if file.suffix == ".py")
    calls = r'_PURPOSE = "([\w-]+)"|Expectation\(\w+, (?:purpose=)?"([\w-]+)"|self\.means\(\s*"([\w-]+)"'
    purposes = {name for names in re.findall(calls, code) for name in names if name}
    page = (ROOT / "book/conventions.md").read_text()
    assert {"train-gradients", "measurement", "factors", "corrections"} < purposes
    assert not {name for name in purposes if f"`{name}`" not in page}


def test_a_symbol_has_one_row():
    general, _ = (ROOT / "book/notation.md").read_text().split("## In one chapter only")
    listed = [symbol for row in rows(general) for symbol in re.findall(r"\$[^$]+\$|`[^`]+`", row[0])]
    assert len(set(listed)) == len(listed)


def test_labels_are_unique():
    """One name for two things is a warning of the build, which stops it."""
    labels: list[str] = []
    for path in [*CHAPTERS, *(project_root() / "book").glob("*.md")]:
        text = path.read_text()
        labels += re.findall(r"^(?:# )?:label: (\S+)", text, re.MULTILINE)
        labels += re.findall(r"\bname=\"((?:tab|fig)-[\w-]+)\"", text)
        labels += re.findall(r"\"name\": \"(fig-[\w-]+)\"", text) + re.findall(
            r"^ +name: (fig-[\w-]+)", text, re.MULTILINE
        )
        labels += re.findall(r"\$\$ \((eq-[\w-]+)\)", text) + re.findall(r"^(?:# )?\(([\w-]+)\)=$", text, re.MULTILINE)
    assert len(labels) > 100
    assert {label for label in labels if labels.count(label) > 1} == set()
