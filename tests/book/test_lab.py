"""JupyterLab as a reader opens it: `make lab`, chapter 01, all cells, a figure moved, an edit saved."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

from diffinf_lib.artifacts import project_root, runs_root

ROOT = project_root()
CHAPTER = "01_quickstart"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab on a copy of the notebooks, with nobody's settings but the project's."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(tmp_path / name.lower()) for name in ("SETTINGS", "WORKSPACES")}
    port = free_port()
    options = (
        f"--no-browser --allow-root --ServerApp.port={port} --ServerApp.port_retries=0 --IdentityProvider.token=reader"
    )
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            ["make", "lab", f"FOLDER={tmp_path / 'notebooks'}", f"LAB={options}"],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
            env=os.environ | own | {"DIFFINF_RUNS": str(runs_root()), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}/lab/tree/{CHAPTER}.ipynb?token=reader"
    deadline = time.monotonic() + 120
    while not answers(address):
        assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.5)
    yield address
    os.killpg(server.pid, signal.SIGTERM)
    server.wait(60)


@pytest.fixture
def tab(browser, lab):
    """JupyterLab in a browser that may speak to this machine only; what else it asks for fails the test."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    outside = []

    def local(route):
        if route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            return route.continue_()
        outside.append(route.request.url)
        return route.abort()

    context.route("**/*", local)
    opened = context.new_page()
    opened.goto(lab)
    opened.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=120_000)
    yield opened
    context.close()
    assert not outside


@pytest.mark.browser
def test_a_chapter_is_read_run_moved_and_saved(tab, tmp_path):
    tab.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=120_000)
    tab.wait_for_timeout(3000)  # long enough for what would be asked or marked by then
    asked = tab.locator(".jp-Dialog, .Toastify__toast").all_text_contents()
    assert not asked, "JupyterLab asks something"
    changed = tab.locator(".lm-TabBar-tab.jp-mod-dirty")
    assert changed.count() == 0, "opening a chapter marks it as changed"
    assert tab.locator(".myst .katex-display").count() > 0
    reads_as_text(tab)

    tab.get_by_role("menuitem", name="Run", exact=True).click()
    tab.get_by_text("Run All Cells", exact=True).click()
    box = tab.locator(".diffinf-interactive.diffinf-is-live").first
    box.wait_for(timeout=300_000, state="attached")
    tab.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=300_000)
    assert (
        tab.locator(".jp-OutputArea-output[data-mime-type*=stderr], .jp-RenderedText[data-mime-type*=error]").count()
        == 0
    )
    status = box.locator(".diffinf-status")
    before = status.text_content()
    control = box.locator("select, input").first
    control.scroll_into_view_if_needed()
    control.focus()
    control.press("ArrowDown")
    control.press("ArrowDown")
    assert status.text_content() != before

    scroll(tab, "1e9")
    tab.locator(".myst-exercise").first.wait_for(timeout=60_000)
    reads_as_text(tab)

    scroll(tab, "0")
    edit_the_first_cell(tab, " It was read by a test.")
    tab.keyboard.press("Control+s")
    changed.wait_for(state="detached", timeout=60_000)
    script = (tmp_path / "notebooks" / f"{CHAPTER}.py").read_text()
    assert "It was read by a test." in script
    assert "outputs" not in script and script.startswith("# ---\n# jupyter:")


def reads_as_text(tab):
    """Equations are set, notes are boxes, and no directive stands as code, in what is on the screen."""
    prose = tab.locator(".jp-MarkdownCell .myst")
    assert prose.count() > 2
    raw = [text for text in prose.all_text_contents() if re.search(r":::|\{(cite|doc|eq|term)\}", text)]
    assert not raw, raw[:1]


def scroll(tab, top):
    tab.locator(".jp-WindowedPanel-outer").first.evaluate(f"panel => panel.scrollTo(0, {top})")


def edit_the_first_cell(tab, words):
    """Type at the end of the first cell, as a reader would: double click, end of the text, leave."""
    first = tab.locator(".jp-Notebook .jp-Cell").first
    first.scroll_into_view_if_needed()
    first.locator(".myst").dblclick()
    first.locator(".cm-content").press("Control+End")
    tab.keyboard.type("\n\n" + words)
