"""The built book: self-contained pages that render in a browser without a network."""

import re
from html.parser import HTMLParser

import pytest
from browser import required, unreadable

from diffinf_lib.artifacts import project_root

HTML = project_root() / "_build" / "html"
GENERATED = ("genindex.html", "search.html", "py-modindex.html", "index.html", "_static")
PAGES = sorted(path for path in HTML.rglob("*.html") if path.relative_to(HTML).parts[0] not in GENERATED)


@pytest.fixture(scope="module", autouse=True)
def _built():
    required("DIFFINF_REQUIRE_BOOK", bool(PAGES), "the built book (make book)")


class Links(HTMLParser):
    """What a page loads by itself: scripts, styles, images."""

    def __init__(self):
        super().__init__()
        self.loaded, self.images = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "script" and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(found["href"])
        if tag == "img":
            self.loaded.append(found.get("src", ""))
            self.images.append(found)


def test_every_page_of_the_contents_is_there():
    names = {path.relative_to(HTML).as_posix() for path in PAGES}
    contents = (project_root() / "_toc.yml").read_text()
    for name in re.findall(r"(?:file|root): (\S+)", contents):
        assert f"{name}.html" in names


def test_pages_load_nothing_from_elsewhere():
    for path in PAGES:
        links = Links()
        links.feed(path.read_text())
        outside = [url for url in links.loaded if re.match(r"(https?:)?//", url)]
        assert not outside, f"{path.name}: {outside[:3]}"


def test_every_image_is_described():
    for path in PAGES:
        links = Links()
        links.feed(path.read_text())
        assert all("alt" in image for image in links.images), path.name
        generated = [image for image in links.images if "_images" in image.get("src", "")]
        vague = [image["src"] for image in generated if len(image["alt"]) < 20 or image["alt"].startswith("../_images")]
        assert not vague, f"{path.name}: {vague}"


def test_interactive_figures_are_small_and_leave_the_script_to_the_site():
    figures = 0
    for path in PAGES:
        page = path.read_text()
        assert len(re.findall(r'<script[^>]* src="[^"]*_static/diffinf\.js', page)) == 1, path.name
        for fragment in re.findall(r'<figure class="diffinf-figure">.*?</figure>', page, re.DOTALL):
            assert len(fragment.encode()) <= 150_000 and fragment.count("<script") == 1, path.name
            figures += 1
    assert figures >= 2


@pytest.mark.browser
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_renders_offline(opened, path):
    page = opened(path)
    if page.locator(".math").count():
        page.wait_for_selector("mjx-container", timeout=20_000)
        assert page.locator("mjx-merror").count() == 0
    broken = page.evaluate(
        "Array.from(document.images).filter(i => i.complete && !i.naturalWidth && i.offsetParent).map(i => i.src.slice(0, 80))"
    )
    assert not broken
    assert page.locator(".diffinf-figure").count() == page.locator(".diffinf-live").count()


@pytest.mark.browser
def test_interactive_figures_answer_the_keyboard(opened):
    box = opened(HTML / "notebooks" / "02_ddpm.html").locator(".diffinf-figure").first
    before = box.locator(".diffinf-status").inner_text()
    box.locator("input[type=range]").press("ArrowRight")
    assert box.locator(".diffinf-status").inner_text() != before


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_the_light_and_in_the_dark(opened, scheme):
    """The theme takes the system's choice; figures and the text around them follow it."""
    article = opened(HTML / "notebooks" / "01_quickstart.html", scheme=scheme).locator(".bd-article")
    assert unreadable(article, ["p", ".diffinf-status", ".diffinf-label", ".diffinf-score", "figcaption"]) == []
