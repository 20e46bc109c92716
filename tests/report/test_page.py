"""The page: whole without a network, safe with any name, and usable by keyboard, in the dark and on a phone."""

import csv
import json
import re
from functools import partial
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import unreadable
from made_up import CLASSES, HOSTILE, made_up_report

from diffinf_lib.configuration import MeasurementConfig
from diffinf_lib.report.page import render
from diffinf_lib.report.shown import Shown
from diffinf_lib.report.tables import write_tables
from diffinf_lib.report.text import readable


class Elements(HTMLParser):
    """Every element with its attributes, and the text outside scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.text, self._silent, self._open = [], "", False, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        self.text += "" if self._silent else data


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return made_up_report(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def page(report):
    return render(report)


def test_names_are_text_and_nothing_else(report, page):
    elements = Elements(page)
    tags = {tag for tag, _ in elements.found}
    assert not tags & {"img", "b", "i", "u", "iframe", "object"}
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    titles = {attributes.get("title") for _, attributes in elements.found}
    shown = {readable(report.train.names[n]) for n in Shown(report).images}
    assert shown <= titles
    assert "3 hidden files <i>skipped</i>" in elements.text and CLASSES[0] in elements.text


def test_it_loads_nothing_and_may_run_its_own_script_only(page):
    links = [value for _, a in Elements(page).found for name, value in a.items() if name in ("src", "href", "action")]
    assert links and all(link.startswith(("#", "data:image/")) for link in links)
    assert "default-src 'none'" in page and "script-src 'sha256-" in page and "'unsafe-eval'" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_every_thumbnail_is_embedded_once_and_every_reference_is_there(report, page):
    elements = Elements(page).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for tag, a in elements if tag in ("use", "a")}
    assert used <= set(ids)
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert {int(a["data-image"]) for _, a in elements if "data-image" in a} <= {int(n) for n in data["images"]}
    assert {f"t{n}" for n in data["images"]} | {f"q{q}" for q in data["queries"]} <= set(ids)


def test_headings_follow_one_another_and_images_are_described(page):
    elements = Elements(page).found
    levels = [int(tag[1]) for tag, _ in elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(levels, levels[1:], strict=False))
    for tag, attributes in elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_supporting_images_follow_the_direction_of_the_measurement(report, tmp_path):
    """A positive score raises the measurement when the image is left out: support for the loss, the opposite for the ELBO."""
    shown = Shown(report)
    assert shown.supporting(1)[0] == int(report.scores[0, 1].argmax())
    assert shown.opposing(1)[0] == int(report.scores[0, 1].argmin())
    turned = made_up_report(tmp_path)
    object.__setattr__(turned, "measurement", MeasurementConfig("elbo", levels=17))
    assert Shown(turned).supporting(1)[0] == int(report.scores[0, 1].argmin())


def test_what_the_page_says_of_planted_images(report, page):
    text = Elements(page).text
    assert "pixel for pixel the training image" in text  # the first query is training image 3
    assert [group.members for group in report.findings.copies] == [(4, 5)] and "The same pixels" in text
    assert report.findings.unusual[0].image == 2
    assert 9 in [doubt.image for doubt in report.findings.label_doubts]


def test_a_page_of_many_images_stays_small(tmp_path):
    many = made_up_report(tmp_path, count=1200, queries=100, side=64)
    whole = render(many)
    assert len(whole) < 6_000_000
    assert "52 more are in" in Elements(whole).text


def test_tables_by_file_name(report, tmp_path):
    write_tables(report, tmp_path)
    rows = list(csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 5 * 30 and [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    best = int(report.scores[0, 0].argmax())
    assert rows[0]["query"] == HOSTILE[0] and float(rows[0]["score"]) == pytest.approx(
        float(report.scores[0, 0, best]), 1e-5
    )
    assert not [row for row in rows for value in row.values() if value[:1] in "=+@"]
    kinds = [row["kind"] for row in csv.DictReader((tmp_path / "findings.csv").open(encoding="utf-8", newline=""))]
    assert kinds.count("copy") == 2 and "unusual" in kinds and "label" in kinds
    arrays = np.load(tmp_path / "scores.npz")
    assert np.array_equal(arrays["scores"], report.scores.numpy()) and tuple(arrays["images"]) == report.train.names
    assert (
        arrays["direction"] == "less likely"
        and arrays["measurement"] == "loss"
        and list(arrays["dampings"]) == [1e-8, 1e-6]
    )


def test_a_table_of_too_many_rows_keeps_both_ends(report, tmp_path, monkeypatch):
    monkeypatch.setattr("diffinf_lib.report.tables.MOST_ROWS", 50)
    assert write_tables(report, tmp_path) == {"rows_of_each_query": 10}
    ranks = [int(row["rank"]) for row in csv.DictReader((tmp_path / "scores.csv").open(encoding="utf-8", newline=""))]
    assert ranks[:10] == [1, 2, 3, 4, 5, 26, 27, 28, 29, 30]


def test_a_report_in_a_few_lines(report):
    lines = str(report).splitlines()
    assert lines[0] == "5 queries, 30 training images of 2 classes" and "1 group of copies" in lines[1]
    assert report.top(0, 2)[0][1] == float(report.scores[0, 0].max())


# --- in a browser


@pytest.fixture
def tab_of(opened, page, tmp_path):
    """A function that opens the page from disk with the network off."""
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    return partial(opened, tmp_path / "index.html")


@pytest.mark.browser
def test_a_click_tells_which_queries_an_image_counts_for(tab_of, report):
    tab = tab_of()
    assert not tab.evaluate("window.hacked")
    first = tab.locator(".query [data-image]").first
    n = int(first.get_attribute("data-image"))
    first.click()
    dialog = tab.locator("dialog[open]")
    assert dialog.locator("h2").inner_text() == readable(report.train.names[n])
    assert dialog.locator(".told a").count() >= 1
    assert "1st most supporting of 30" in dialog.locator(".told a").first.inner_text()
    target = dialog.locator(".told a").last.get_attribute("href")
    dialog.locator(".told a").last.click()
    assert tab.locator("dialog[open]").count() == 0
    assert tab.url.endswith(target) and not tab.evaluate("window.hacked")


@pytest.mark.browser
def test_the_keyboard_reaches_everything(tab_of):
    tab = tab_of()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.className") == "skip"
    tab.keyboard.press("Enter")
    tab.locator(".card").nth(2).focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.querySelector('dialog').open && document.activeElement.closest('dialog') !== null")
    tab.keyboard.press("Escape")
    assert tab.evaluate("!document.querySelector('dialog').open")
    assert tab.evaluate("[...document.querySelectorAll('.card')].indexOf(document.activeElement)") == 2


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1200])
def test_nothing_is_wider_than_the_screen(tab_of, scheme, width):
    tab = tab_of(scheme=scheme, width=width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.locator(".card").first.click()
    assert tab.locator("dialog").evaluate("d => d.scrollWidth - d.clientWidth") <= 0
    box = tab.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(tab_of, scheme):
    """Contrast of every kind of text against what lies behind it, at least 4.5 to 1."""
    tab = tab_of(scheme=scheme)
    tab.locator(".card").first.click()
    assert unreadable(tab.locator("html"), ["p", "h2", "h4", ".name", ".meta", "a", "th", "dialog p", "dialog a"]) == []
