"""The built book: self-contained pages that render in a browser without a network."""

import re
from html.parser import HTMLParser

import pytest
import yaml
from browser import contrast, required, unreadable

from diffinf_lib.artifacts import project_root

HTML = project_root() / "_build" / "html"
GENERATED = ("genindex.html", "search.html", "py-modindex.html", "index.html", "_static")
BOOK = project_root() / "book"
PAGES = sorted(path for path in HTML.rglob("*.html") if path.relative_to(HTML).parts[0] not in GENERATED)
CONTENTS = yaml.safe_load((project_root() / "_toc.yml").read_text())["parts"]
RESULTS = [HTML / f"{entry['file']}.html" for part in CONTENTS if part["caption"] == "Results"
           for chapter in part["chapters"] for entry in (chapter, *chapter.get("sections", []))]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _built():
    required("DIFFINF_REQUIRE_BOOK", bool(PAGES), "the built book (make book)")


class Links(HTMLParser):
    """What a page loads by itself: scripts, styles, images."""

    def __init__(self):
        super().__init__()
        self.loaded, self.images, self.drawings = [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "script" and "src" in found:
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.loaded.append(found["href"])
        if tag == "img":
            self.loaded.append(found.get("src", ""))
            self.images.append(found)
        if tag == "svg" and found.get("role") == "img":
            self.drawings.append(found.get("aria-label", ""))


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
        assert all(len(words) >= 10 for words in links.drawings), path.name


def test_pages_are_light():
    for path in PAGES:
        assert path.stat().st_size < 2_000_000, path.name


def test_results_are_tables_and_sentences():
    """No columns printed as text, no raw citation, no role that was not understood."""
    for path in RESULTS:
        text = path.read_text()
        assert "output stream" not in text, f"{path.name} prints text"
        body = re.sub(r"<(script|style|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        keys = re.findall(r"@\w+{(\w+),", (project_root() / "book" / "references.bib").read_text())
        words = re.sub(r"<[^>]*>", " ", body)
        assert not [key for key in keys if re.search(rf"\b{key}\b", words)], path.name
        assert not re.search(r"\{(eval|cite|term|doc|numref)", words), path.name


def test_every_cell_of_a_page_runs():
    """A page's cells run when they are shown: one that is removed would not, and its asserts would never be checked."""
    for path in [*BOOK.glob("*.md"), *(project_root() / "notebooks").glob("*.py")]:
        assert "remove-cell" not in path.read_text() and "remove_cell" not in path.read_text(), path.name


def test_interactive_figures_are_small_and_leave_the_script_to_the_site():
    figures = 0
    for path in PAGES:
        page = path.read_text()
        assert len(re.findall(r'<script[^>]* src="[^"]*_static/diffinf-interactive\.js', page)) == 1, path.name
        for fragment in re.findall(r'<figure class="diffinf-interactive"[^>]*>.*?</figure>', page, re.DOTALL):
            assert len(fragment.encode()) <= 150_000 and fragment.count("<script") == 1, path.name
            figures += 1
    assert figures >= 3


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
    assert page.locator(".diffinf-interactive").count() == page.locator(".diffinf-live").count()


@pytest.mark.browser
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_nothing_is_cut_on_a_phone(opened, path):
    """At 390 pixels the page does not scroll sideways, and what is wider than it scrolls inside itself."""
    page = opened(path, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.bd-article :is(pre, table, div.math, .diffinf-figure)')].filter(element => {
            if (!element.offsetParent || element.scrollWidth <= element.clientWidth + 1) return false;
            for (let box = element; box.matches('.bd-article *'); box = box.parentElement)
                if (['auto', 'scroll'].includes(getComputedStyle(box).overflowX)) return false;
            return true;
        }).map(element => element.outerHTML.slice(0, 80))"""
    )
    assert not cut


@pytest.mark.browser
@pytest.mark.parametrize(
    "path", [path for path in PAGES if 'class="math' in path.read_text()], ids=lambda path: path.stem
)
def test_a_long_formula_opens_at_its_beginning(opened, path):
    page = opened(path, width=390)
    page.wait_for_selector("mjx-container", timeout=20_000)
    begun = page.evaluate(
        """() => [...document.querySelectorAll('.bd-article div.math')].filter(box => box.offsetParent).map(box => {
            const formula = box.querySelector('mjx-math'), number = box.querySelector('.eqno');
            const left = formula.getBoundingClientRect().left;
            return left >= box.getBoundingClientRect().left - 1 && (!number || number.getBoundingClientRect().left > left);
        })"""
    )
    assert all(begun)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1400, 390])
def test_there_is_one_search_field(opened, width):
    page = opened(HTML / "book" / "methods.html", width=width)
    fields = page.locator(".search-button:visible, .search-button-field:visible, input[type=search]:visible")
    assert fields.count() == 1


@pytest.mark.browser
def test_folded_cells_with_nothing_between_are_one_fold(opened):
    """All of the code stays, in its order."""
    path = next(page for page in PAGES if page.stem == "12_methods")
    tab, written = opened(path), path.read_text().count('class="admonition hide above-input"')
    assert 0 < tab.locator("details.above-input").count() < written
    assert tab.locator("details.above-input .cell_input").count() == written
    assert tab.locator(".cell.tag_hide-input:not(:has(> .cell_output)) + .cell.tag_hide-input").count() == 0


@pytest.mark.browser
def test_long_tables_sort(opened):
    page = opened(HTML / "book" / "methods.html")
    table = page.locator("table.sortable").first

    def column(place):
        texts = table.locator(f"tbody tr td:nth-child({place})").all_inner_texts()
        return [float(text.split("[")[0].replace("−", "-").replace(",", "")) for text in texts if text.strip()]

    table.locator("th button").nth(1).focus()
    page.keyboard.press("Enter")
    assert column(2) == sorted(column(2), reverse=True)
    page.keyboard.press("Enter")
    assert column(2) == sorted(column(2)) and len(column(2)) > 20
    assert table.locator("th[aria-sort=ascending]").count() == 1


@pytest.mark.browser
def test_figures_can_be_read_in_the_dark(opened):
    """The words and lines of a figure against the page, 4.5 and 3 to 1."""
    page = opened(HTML / "book" / "methods.html", scheme="dark")
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    words, lines, below = page.evaluate(
        """() => {
            const figure = document.querySelector('.diffinf-figure'), style = element => getComputedStyle(element);
            const colours = (query, what) => [...new Set(Array.from(figure.querySelectorAll(query)).map(e => style(e)[what]))];
            let box = figure;
            while (style(box).backgroundColor === 'rgba(0, 0, 0, 0)') box = box.parentElement;
            const lines = colours('path, use', 'stroke').filter(colour => colour !== 'none');
            return [colours('text', 'fill'), lines, style(box).backgroundColor];
        }"""
    )
    assert words and lines
    assert all(contrast(colour, below) >= 4.5 for colour in words), (words, below)
    assert all(contrast(colour, below) >= 3 for colour in lines), (lines, below)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_the_light_and_in_the_dark(opened, scheme):
    """The theme takes the system's choice; figures and the text around them follow it."""
    article = opened(HTML / "notebooks" / "01_quickstart.html", scheme=scheme).locator(".bd-article")
    mat = article.locator(".text_html:has(.diffinf-interactive)").first.evaluate(
        "e => getComputedStyle(e).backgroundColor"
    )
    assert mat == "rgba(0, 0, 0, 0)"  # the theme puts other HTML on a light mat in the dark
    assert unreadable(article, ["p", ".diffinf-status", ".diffinf-label", ".diffinf-score", "figcaption"]) == []
