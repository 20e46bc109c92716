"""What a reader does with the built book: moves its figures, searches it, follows its links, prints it."""

from functools import cache
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from browser import required

from diffinf_lib.artifacts import project_root

HTML = project_root() / "_build" / "html"
PAGES = sorted(path for folder in ("book", "notebooks") for path in (HTML / folder).rglob("*.html"))
FIGURES = [path for path in PAGES if 'class="diffinf-interactive"' in path.read_text()]
SEARCHED = {
    "Kronecker": "book/glossary", "damping": "book/curvatures", "antithetic": "notebooks/02_ddpm", "ceiling": "book/glossary",
    "checkpoint": "book/api", "Spearman": "book/evaluation", "TRAK": "book/methods", "influence_scores": "book/api",
    "LoRA": "book/questions", "kronfluence": "book/conventions", "likelihood": "book/measurements", "int8": "book/savings",
    "removal": "book/removal", "disk": "book/troubleshooting",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _built():
    required("DIFFINF_REQUIRE_BOOK", bool(PAGES), "the built book (make book)")


class Anchors(HTMLParser):
    """The links of a page, and the names that links may lead to."""

    def __init__(self, text):
        super().__init__()
        self.links, self.names = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.names |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])


@cache
def anchors(path):
    return Anchors(path.read_text())


def leads_nowhere(page, link):
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return False
    target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not target.is_file():
        return True
    return bool(parts.fragment) and target.suffix == ".html" and unquote(parts.fragment) not in anchors(target).names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path):
    assert anchors(path).links
    assert not [link for link in anchors(path).links if link != "#" and leads_nowhere(path, link)]


PRESS = {"select": ("ArrowDown", "ArrowUp"), "input[type=range]": ("ArrowRight", "ArrowLeft")}


@pytest.mark.browser
@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_every_control_of_every_figure_changes_what_it_says(opened, path):
    """The numbers themselves are held against Python's for every kind, in tests/interactive."""
    tab = opened(path)
    boxes = tab.locator(".diffinf-interactive")
    assert boxes.count()
    for i in range(boxes.count()):
        box = boxes.nth(i)
        moved = [
            answers(box, control, keys) for selector, keys in PRESS.items() for control in box.locator(selector).all()
        ]
        moved += [turns(box, group) for group in box.locator("[role=radiogroup]").all()]
        assert moved and all(moved), f"figure {i + 1}: {moved}"


def seen(box):
    """What a figure says and draws at the moment; a canvas by its pixels."""
    return box.evaluate(
        "box => box.innerText + [...box.querySelectorAll('canvas')].map(c => c.toDataURL()).join() "
        "+ [...box.querySelectorAll('svg')].map(s => s.outerHTML).join()"
    )


def answers(box, control, keys):
    before = seen(box)
    for key in keys:
        control.press(key)
        if seen(box) != before:
            return True
    return control.is_disabled() or control.evaluate("e => e.options?.length === 1 || e.min === e.max && e.min !== ''")


def turns(box, group):
    before, options = seen(box), group.locator("[role=radio], input[type=radio]")
    (group.locator("[aria-checked=true], :checked").first if options.count() else group).press("ArrowDown")
    return options.count() == 1 or seen(box) != before


@pytest.mark.browser
def test_search_finds_the_words_of_the_field(opened):
    for word, wanted in SEARCHED.items():
        tab = opened(HTML / "search.html", query=f"?q={word}")
        found = tab.locator("#search-results li a")
        found.first.wait_for(timeout=20_000)
        tab.wait_for_timeout(300)
        places = {
            link.split("?")[0].split("#")[0]
            for link in found.evaluate_all("links => links.map(l => l.getAttribute('href'))")
        }
        assert any(place.endswith(f"{wanted}.html") for place in places), f"{word}: {sorted(places)}"


@pytest.mark.browser
@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_print_shows_every_figure(opened, path):
    """On paper nothing can be moved: a still picture with its words stands in place of the controls."""
    tab = opened(path)
    tab.emulate_media(media="print")
    for box in tab.locator(".diffinf-interactive").all():
        still = box.locator(".diffinf-fallback")
        assert still.is_visible() and still.locator("svg, img, table").first.is_visible() and still.inner_text().strip()
        assert not box.locator(".diffinf-live").first.is_visible()


TOO_WIDE = """() => [...document.querySelectorAll('.bd-article .cell_input pre, .bd-article div.math')]
    .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent.trim().slice(0, 60))"""


CHAPTERS = [path for path in PAGES if path.parent.name == "notebooks"]


@pytest.mark.browser
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_code_and_formulas_of_chapters_fit_the_column(opened, path):
    tab = opened(path)
    tab.evaluate("() => MathJax.startup.promise")  # until formulas are set
    assert tab.locator("mjx-container").count() or not tab.locator(".math").count()
    for width in (1200, 1400):
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate(TOO_WIDE) == [], width


def test_every_page_is_in_the_contents():
    contents = yaml.safe_load((project_root() / "_toc.yml").read_text())
    listed = {
        entry["file"]
        for part in contents["parts"]
        for chapter in part["chapters"]
        for entry in (chapter, *chapter.get("sections", []))
    }
    assert {path.relative_to(HTML).with_suffix("").as_posix() for path in PAGES} <= listed | {contents["root"]}
