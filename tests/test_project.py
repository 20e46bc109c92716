"""The project itself: paired notebooks, stripped outputs, pins that agree, no traces of one machine."""

import hashlib
import inspect
import re
import subprocess
import tomllib

import jupytext
import nbformat
import pytest
import yaml
from jupytext.compare import compare_notebooks
from PIL import Image

import diffinf_lib
from diffinf_lib.artifacts import project_root

ROOT = project_root()
NOTEBOOKS = sorted([*ROOT.glob("notebooks/*.py"), *ROOT.glob("notebooks/experiments/*.py")])


def tracked():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_pairs_agree_and_hold_no_outputs(path):
    script, notebook = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    compare_notebooks(notebook, script, fmt="py:percent", compare_outputs=False)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_every_notebook_has_its_script():
    assert NOTEBOOKS
    found = {path.with_suffix(".py") for path in (*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("notebooks/*/*.ipynb"))}
    assert found == set(NOTEBOOKS)


def test_no_absolute_paths_and_no_large_files():
    for path in tracked():
        assert path.stat().st_size < 2_000_000, path
        if path.suffix in (".npz", ".png"):
            continue
        text = path.read_text()
        assert not re.search(r"(?<![\w.])/(home|root|Users|work)/\w", text), path


def test_the_api_page_names_everything_public():
    page = (ROOT / "book" / "api.md").read_text()
    lists = re.findall(r"automodule:: \S+\n   :members: (.+)", page)
    listed = {name.strip() for line in lists for name in line.split(",")} | set(dir(diffinf_lib.errors))
    names = {n for n in dir(diffinf_lib) if n[0] != "_" and not inspect.ismodule(getattr(diffinf_lib, n))}
    missing = {name for name in names - listed if not re.search(rf":: diffinf_lib\.([a-z_.]+\.)?{name}\n", page)}
    assert not missing, f"book/api.md leaves out {', '.join(sorted(missing))}"


def test_environment_and_constraints_agree():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["-c constraints.txt", "-e .[book,dev,bench,likelihood,clip,runs]"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = [
        *project["dependencies"],
        *project["optional-dependencies"]["book"],
        *project["optional-dependencies"]["dev"],
        *project["optional-dependencies"]["bench"],
        *project["optional-dependencies"]["likelihood"],
        *project["optional-dependencies"]["clip"],
        *project["optional-dependencies"]["runs"],
    ]
    for requirement in wanted:
        name, exact = re.fullmatch(r"([\w.-]+)(?:==([\w.]+))?.*", requirement).groups()
        pinned = pins.get(re.sub(r"[-_.]+", "-", name).lower())
        assert pinned, f"{name} has no pin in constraints.txt"
        assert exact in (None, pinned), requirement


def test_everything_public_is_documented():
    import diffinf_lib as di

    for name in dir(di):
        value = getattr(di, name)
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("diffinf_lib"):
            assert value.__doc__, name


def test_every_reference_has_a_link():
    entries = re.split(r"\n(?=@)", (ROOT / "book/references.bib").read_text().strip())
    without = [entry.splitlines()[0] for entry in entries if not re.search(r"^  (doi|url|eprint) = \{.", entry, re.M)]
    assert len(entries) > 20 and not without


def test_the_readme_s_tables_and_links_are_whole():
    text = (project_root() / "README.md").read_text()
    for lines in text.split("\n\n"):
        rows = lines.strip().splitlines()
        if rows and rows[0].startswith("|"):
            assert set(rows[1]) <= set("|-"), f"a row without its table: {rows[0]}"
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (project_root() / target).exists(), target
        assert not target.startswith("notebooks/") or target.endswith(".ipynb"), f"{target}: readers want the page"


def test_the_readme_s_picture_is_made_from_the_bundle_that_is_there():
    arrays = (ROOT / "book/results/fashion-removal/arrays.npz").read_bytes()
    made_from = Image.open(ROOT / "book/_static/top-influence.png").info["Source"]
    assert made_from == hashlib.sha256(arrays).hexdigest(), "make it anew: python book/readme_picture.py"
