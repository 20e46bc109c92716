import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from cases import images

from diffinf_lib import figures
from diffinf_lib.figures.style import INK

SVG = "{http://www.w3.org/2000/svg}"


def shown(figure):
    """The SVG in what a figure shows of itself, parsed."""
    html = figure._repr_html_()
    return html, ElementTree.fromstring(html).find(f"{SVG}svg")


def test_ink_and_palette_are_those_of_the_page():
    html, _ = shown(
        figures.against({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, horizontal="h", vertical="v", diagonal=True)
    )
    assert INK not in html and "#000000" not in html and "currentColor" in html
    for name, colour in (("blue", figures.BLUE), ("vermilion", figures.VERMILION), ("grey", figures.GREY)):
        assert f"var(--diffinf-{name}, {colour})" in html
        assert f": {colour.lower()}" not in html
    assert "#ffffff" not in html  # neither a white page nor a legend's box


def test_words_stay_words_and_the_figure_has_a_name():
    figure = figures.training_curve(np.linspace(1, 0.1, 60))
    html, svg = shown(figure)
    assert svg.get("role") == "img" and svg.get("aria-label") == figure.alt == (
        "Training loss over 60 steps; its running mean goes from 0.626 to 0.474"
    )
    words = {text.text for text in svg.iter(f"{SVG}text")}
    assert {"step", "loss", "one batch", "mean of 50 steps"} <= words
    assert "font-family" not in html


def test_names_are_escaped():
    figure, _ = figures.subplots(alt='a "quoted" <name>')
    assert shown(figure)[1].get("aria-label") == 'a "quoted" <name>'


def test_while_the_book_is_built_a_figure_is_pdf_too(monkeypatch):
    figure = figures.training_curve(np.linspace(1, 0.1, 60))
    monkeypatch.delenv("DIFFINF_SITE", raising=False)
    assert figure._repr_pdf_() is None
    monkeypatch.setenv("DIFFINF_SITE", "1")
    assert figure._repr_pdf_().startswith(b"%PDF") and figure._repr_pdf_() == figure._repr_pdf_()


def test_figures_of_one_page_do_not_disturb_each_other():
    """No style for the whole page, and an id that two figures share means the same thing in both."""
    first, second = (figures.image_grid(images(3, 4).images, titles=["a", "b", "c"])._repr_html_() for _ in range(2))
    assert "<style" not in first and not re.search(r'<g id="', first)
    assert first == second
    definition = re.compile(r'<(path|clipPath|image) id="([^"]+)"(.*?)/>', re.DOTALL)
    drawn = (figures.schedule_curves(), figures.training_curve(np.linspace(1, 0.1, 60)))
    found = [{name: body for _, name, body in definition.findall(figure._repr_html_())} for figure in drawn]
    assert all(found[0][name] == found[1][name] for name in found[0].keys() & found[1].keys())


@pytest.mark.parametrize("draw", [
    lambda: figures.heat_map({"t": [[1, 2], [3, 4]]}, ["p", "q"], ["1", "2"], row="scores", column="measured"),
    lambda: figures.intervals({"g": {"a": (0.5, (0.4, 0.6))}}),
    lambda: figures.option_curves({"p": {"x": ([1e-8, 1e-6], [70, 60])}}),
    lambda: figures.power_curves({"a": {1: [0.1, 0.05]}}, [16, 64]),
    lambda: figures.nested_dots({"loss": np.random.default_rng(0).normal(size=(5, 3, 4))}),
    lambda: figures.image_grid(images(3, 4).images),
    lambda: figures.schedule_curves(),
])  # fmt: skip
def test_every_figure_says_what_it_shows(draw):
    assert len(shown(draw())[1].get("aria-label")) > 10
