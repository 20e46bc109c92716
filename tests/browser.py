"""A browser for tests: Chromium without a network, pages opened from disk, and what every page must hold to.

The fixtures are everyone's (conftest.py). Without Chromium they skip, or fail where
DIFFINF_REQUIRE_BROWSER=1 asks for it.
"""

import os
import re
import shutil

import pytest

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]


def required(variable, present, what):
    """Skip where something is missing; fail where the environment says that it must be there."""
    if present:
        return
    if os.environ.get(variable) == "1":
        pytest.fail(f"{what} is missing, and {variable}=1 asks for it")
    pytest.skip(f"{what} is missing")


@pytest.fixture(scope="module")
def browser():
    """One Chromium for the tests of a module."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    required("DIFFINF_REQUIRE_BROWSER", found, "Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def opened(browser):
    """A function that opens a file with the network off; errors, failed or outward requests fail the test at its end."""
    contexts, problems = [], []

    def open_file(path, *, scheme="light", width=1200, scripts=True, query=""):
        size = {"width": width, "height": 800}
        context = browser.new_context(offline=True, color_scheme=scheme, viewport=size, java_script_enabled=scripts)
        contexts.append(context)
        tab = context.new_page()
        tab.on("pageerror", lambda error: problems.append(f"error: {error}"))
        tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        tab.on("requestfailed", lambda request: problems.append(f"failed: {request.url}"))
        tab.on(
            "request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(f"asked: {r.url}")
        )
        tab.goto(path.as_uri() + query)
        tab.wait_for_load_state("load")
        return tab

    yield open_file
    for context in contexts:
        context.close()
    assert not problems, problems[:3]


COLOURS = """(root, selectors) => selectors.flatMap(selector => [...root.querySelectorAll(selector)].map(element => {
    const ground = [255, 255, 255], layers = [];
    for (let parent = element; parent; parent = parent.parentElement) {
        const [r, g, b, a = 1] = getComputedStyle(parent).backgroundColor.match(/[0-9.]+/g).map(Number);
        layers.unshift([[r, g, b], a]);
        if (a === 1) break;
    }
    for (const [colour, share] of layers) colour.forEach((value, i) => ground[i] += share * (value - ground[i]));
    const style = getComputedStyle(element), text = element.namespaceURI.endsWith('svg') ? style.fill : style.color;
    return [selector, text, `rgb(${ground.map(Math.round)})`];
}))"""
"""Of each element its text's colour, and the colour behind it, tints that let others through included."""


def unreadable(locator, selectors, least=4.5):
    """Texts below the least contrast against what lies behind them, as (selector, colour, ground)."""
    found = locator.evaluate(f"(root, selectors) => ({COLOURS})(root, selectors)", selectors)
    assert found, f"nothing there of {selectors}"
    return [(selector, text, ground) for selector, text, ground in found if contrast(text, ground) < least]


def contrast(first, second):
    """The ratio of the luminances of two colours as CSS writes them (WCAG 2)."""

    def luminance(colour):
        channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)
