"""The printed book: what the extensions make of a small page for LaTeX, written by Sphinx; LaTeX itself is not needed."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import nbformat.v4 as nbformat
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from jupyter_client.jsonutil import json_default

from diffinf_lib import figures, interactive
from diffinf_lib.artifacts import project_root

EXTENSIONS = project_root() / "book/_ext"
CONFIGURATION = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_nb", "sphinx_exercise", "sphinx_jupyterbook_latex", "printed_pages", "printed_tables"]
myst_enable_extensions = ["colon_fence", "dollarmath"]
nb_execution_mode = "off"
"""
INDEX = """
# Index

Do {ref}`ex-one`.

:::{toctree}
page
:::
"""
# Sphinx runs tables of more than 30 rows over pages; of these the words take two lines each
ROWS = "\n".join(f"| {'a row with words, ' * 7} number {n} | {n}.5 [−{n}, +{n}] |" for n in range(28))
LONG = f"| what | how much |\n|:--|--:|\n{ROWS}"
WORDS = f"""
# Page

:::{{exercise}} Half of $N$
:label: ex-one
Write it.
:::

:::{{solution-start}} ex-one
:label: sol-one
:::

{LONG}

:::{{solution-end}}
:::

:::{{admonition}} In a frame

{LONG}
:::

```{{py:function}} one(first, second={"[" + "1, " * 900 + "]"}, third=3)
```
"""


def output(shown):
    """A notebook's output as the book's kernels give it."""
    data, metadata = DisplayFormatter().format(shown)
    return nbformat.new_output(
        "display_data", data=json.loads(json.dumps(data, default=json_default)), metadata=metadata
    )


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    moving = interactive.Points(np.arange(5.0), np.arange(5.0), "across", "up", caption="Points on a line.")
    still = figures.training_curve(np.linspace(1, 0.1, 60))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFINF_SITE", "1")
        cells = [nbformat.new_code_cell("show", outputs=[output(shown)]) for shown in (moving, still)]
    (folder / "page.ipynb").write_text(
        nbformat.writes(nbformat.new_notebook(cells=[nbformat.new_markdown_cell(WORDS), *cells]))
    )
    (folder / "index.md").write_text(INDEX)
    (folder / "conf.py").write_text(CONFIGURATION)
    words = [sys.executable, "-m", "sphinx", "-q", "-b", "latex", folder, folder / "out"]
    ran = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(project_root())})
    assert ran.returncode == 0, ran.stderr
    return SimpleNamespace(
        folder=folder / "out", tex=next((folder / "out").glob("*.tex")).read_text(), said=ran.stderr, moving=moving
    )


def test_an_interactive_figure_is_its_still_and_names_its_page(printed):
    assert "Points(" not in printed.tex  # how Python writes the object
    assert "Points on a line." in printed.tex and printed.moving.told() in printed.tex
    assert re.search(r"The figure moves on the page \\sphinxcode\{\\sphinxupquote\{page\.html\}\}", printed.tex)
    pictures = re.findall(r"includegraphics\S*?\{\{(\w+)\}\.(\w+)\}", printed.tex)
    assert [kind for _, kind in pictures] == ["png", "pdf"]  # Matplotlib's own figures stay sharp at any size
    assert all((printed.folder / f"{name}.{kind}").stat().st_size > 1000 for name, kind in pictures)


def test_a_reference_from_another_page_has_the_exercise_s_number(printed):
    (label,) = set(re.findall(r"\\label\{(exercise:[\w-]+)\}", printed.tex))
    assert re.search(rf"Do \\hyperref\[{label}\]\{{Exercise \d[.\d]*\}}", printed.tex)


def test_a_solution_is_in_no_frame_and_keeps_its_formula(printed):
    solution = printed.tex.split("diffinf-solution}")[1].split(r"\end{longtable}")[0]
    assert "Solution to" in solution and r"\(N\)" in solution and "sphinxadmonition" not in solution


def test_numbers_stand_to_the_right_and_hold_together(printed):
    specs = re.findall(r"\\begin\{(longtable|tabulary)\}.*?(\{>.*)", printed.tex)
    assert [kind for kind, _ in specs] == ["longtable", "tabulary"]  # no table runs over pages inside a frame
    for _, spec in specs:
        assert re.fullmatch(r"\{>\{\\raggedright\S*\}p\{[\d.]+em\}>\{\\raggedleft\S*\}p\{[\d.]+em\}\}", spec)
    assert printed.tex.count("7.5\u00a0{[}−7,\u00a0+7{]}") == 2


def test_a_signature_that_would_fill_a_page_is_cut(printed):
    signature = printed.tex.split(r"\pysigstartsignatures")[1].split(r"\pysigstopsignatures")[0]
    assert "first" in signature and "…" in signature and len(signature) < 900


def test_the_look_lies_beside_the_book(printed):
    assert r"\usepackage{diffinf-print}" in printed.tex
    assert (printed.folder / "diffinf-print.sty").read_text() == (
        EXTENSIONS.parent / "_static/diffinf-print.sty"
    ).read_text()


@pytest.fixture
def tables():
    spec = importlib.util.spec_from_file_location("printed_tables", EXTENSIONS / "printed_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_columns_fill_at_most_a_line_and_cut_no_word(tables):
    words = tables.Column("what", ["many short words " * 20, "one"], False)
    numbers = tables.Column("how much", ["12.3 [−4.5, +6.7]", "1"], True)
    for line in (30.0, 60.0, 400.0):
        found = tables.shares([words, numbers], line, False)
        assert sum(found) <= line and found[1] >= tables.CHARACTER * len("12.3 [−4.5, +6.7]")
        assert found[0] >= tables.CHARACTER * len("short")
    assert tables.shares([words, numbers], 9.0, False) is None
    assert sum(tables.shares([words, numbers], 400.0, False)) < 200  # no wider than what stands in it


def test_the_narrower_the_line_the_smaller(tables):
    columns = [tables.Column("LDS", ["+12.3 [+10.5, +14.1]"], True)] * 4
    found = [tables.laid_out(columns, line) for line in range(int(tables.LINE), 160, -4)]
    places = [tables.LOOKS.index((size, broken)) for size, _, broken in found]
    assert places == sorted(places) and set(places) == set(range(len(tables.LOOKS)))


def test_without_latex_one_line_says_what_to_install(tmp_path):
    make = shutil.which("make")
    assert make
    ran = subprocess.run(
        [make, "-s", "pdf", "BIN=/nowhere"],
        cwd=project_root(),
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    (line,) = ran.stdout.splitlines()
    assert "needs LaTeX" in line and "apt install latexmk" in line
