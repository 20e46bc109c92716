"""Every kind in a real browser: whatever is moved, what is drawn and written is what Python computes."""

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from browser import contrast, unreadable
from made_figures import MADE, ground_truth
from scipy.stats import rankdata

from diffinf_lib.evaluation import spearman
from diffinf_lib.interactive import Line, Lines, Readouts, Scatter, Slider, by, texts_by
from diffinf_lib.interactive.figure import asset
from diffinf_lib.interactive.numbers import text
from diffinf_lib.interactive.planner import in_units
from diffinf_lib.planner import estimate

pytestmark = pytest.mark.browser
KINDS = pytest.mark.parametrize("kind", MADE)
made = cache(lambda kind: MADE[kind]())


def page_of(*figures, site=True, theme=""):
    """A page as the book has it, the script a file's worth at its end; or fragments that bring the script along."""
    head = f"<style>{asset('diffinf-interactive.css')}</style>" if site else ""
    body = "<p>Some text.</p>".join(figure.html(site=site) for figure in figures)
    tail = f"<script>{asset('diffinf-interactive.js')}</script>" if site else ""
    return (
        f'<!DOCTYPE html><html lang="en"{theme}><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<style>body {{ margin: 8px; font-family: sans-serif }}</style>{head}</head><body>{body}{tail}</body></html>"
    )


@pytest.fixture
def shown(opened, tmp_path):
    """A function that opens figures in a page and returns the tab."""

    def show(*figures, site=True, theme="", **options):
        (tmp_path / "page.html").write_text(page_of(*figures, site=site, theme=theme), encoding="utf-8")
        return opened(tmp_path / "page.html", **options)

    return show


def status(box):
    return box.locator(".diffinf-status").text_content()


def told(figure, state):
    return " ".join(filter(None, (view.tell(state) for view in figure.views)))


def focus_by_tab(tab, box, control):
    """Press Tab from the top of the page until the control has the focus."""
    tab.evaluate("document.activeElement.blur()")
    at = """(box, name) => { const e = document.activeElement, group = e.closest('[role=radiogroup]');
        return box.contains(e) && (group || e).getAttribute('aria-label') === name && !e.closest('svg'); }"""
    for _ in range(80):
        tab.keyboard.press("Tab")
        if box.evaluate(at, control.name):
            return
    raise AssertionError(f"{control.name} is not reached by Tab")


def moves(look, last, place):
    """Keys, and the place of the option that they lead to."""
    if look == "slider":
        yield from (("End", last), ("ArrowLeft", max(0, last - 1)), ("Home", 0), ("ArrowRight", min(1, last)))
        return
    for _ in range(last + 1):
        place = (place + 1) % (last + 1) if look == "radio" else min(place + 1, last)
        yield "ArrowDown", place


def choosable(figure):
    return [control for control in figure.controls if len(control.options) > 1]


@KINDS
@pytest.mark.parametrize("count", [1, 2])
def test_every_control_moves_by_keyboard_alone(shown, kind, count):
    """In a page of its own, and as the second of two figures; the first one stays as it is."""
    figure = made(kind)
    tab = shown(*[made(kind) for _ in range(count)])
    box, state = tab.locator(".diffinf-interactive").nth(count - 1), dict(figure.state())
    assert status(box) == figure.told()
    for control in choosable(figure):
        focus_by_tab(tab, box, control)
        look = "radio" if any(view.option_pictures(control) for view in figure.views) else control.look
        for key, place in moves(look, len(control.options) - 1, state[control.name]):
            tab.keyboard.press(key)
            state[control.name] = place
            assert status(box) == told(figure, state), (control.name, key)
    if count == 2:
        assert status(tab.locator(".diffinf-interactive").first) == figure.told()


@KINDS
def test_every_control_moves_by_mouse(shown, kind):
    figure = made(kind)
    tab = shown(figure)
    state = dict(figure.state())
    for control in choosable(figure):
        target, last = tab.locator(f'.diffinf-controls [aria-label="{control.name}"]'), len(control.options) - 1
        if control.look == "slider":
            area = target.bounding_box()
            tab.mouse.click(area["x"] + area["width"] - 8, area["y"] + area["height"] / 2)
        elif target.get_attribute("role") == "radiogroup":
            target.locator("label").nth(last).click()
        else:
            target.select_option(str(last))
        state[control.name] = last
        assert status(tab) == told(figure, state)


@KINDS
def test_any_state_says_what_python_says(shown, kind):
    """Thirty states at random."""
    figure, generator = made(kind), np.random.default_rng(0)
    tab = shown(figure)
    for _ in range(30):
        state = {control.name: int(generator.integers(len(control.options))) for control in figure.controls}
        put(tab, state)
        assert status(tab) == told(figure, state), state


def put(tab, state):
    tab.evaluate(
        """state => Object.entries(state).forEach(([name, place]) => {
            const control = document.querySelector(`.diffinf-controls [aria-label="${name}"]`);
            if (!control) return;
            const input = control.matches('[role=radiogroup]') ? control.querySelectorAll('input')[place] : control;
            if (input.type === 'radio') input.checked = true; else input.value = place;
            input.dispatchEvent(new Event('input', { bubbles: true }));
        })""",
        state,
    )


@pytest.mark.parametrize("kind", [kind for kind in MADE if made(kind).presets])
def test_presets_make_their_point(shown, kind):
    figure = made(kind)
    tab = shown(figure)
    for place, preset in enumerate(figure.presets):
        button = tab.locator(".diffinf-preset").nth(place)
        button.focus()
        tab.keyboard.press("Enter")
        assert button.get_attribute("aria-pressed") == "true"
        assert tab.locator(".diffinf-note").text_content() == preset.note
        state = figure.state(**preset.state)
        for name in preset.state:
            option = next(control.options[state[name]] for control in figure.controls if control.name == name)
            chosen = tab.locator(f'.diffinf-controls [aria-label="{name}"]')
            if chosen.get_attribute("role") == "radiogroup":
                checked = chosen.locator("input:checked")
                assert checked.get_attribute("aria-label") in (option, None) and checked.count() == 1
            else:
                assert (
                    chosen.evaluate("e => e.getAttribute('aria-valuetext') || e.selectedOptions[0].textContent")
                    == option
                )


# --- what holds for all of them, on one page of every kind


@pytest.fixture
def every(shown):
    """A function that opens a page of all kinds, and their boxes by kind."""

    def show(**options):
        tab = shown(*map(made, MADE), **options)
        return tab, {kind: tab.locator(".diffinf-interactive").nth(place) for place, kind in enumerate(MADE)}

    return show


def test_a_phone_scrolls_down_only(every):
    tab, _ = every(width=390)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    small = tab.evaluate(
        """[...document.querySelectorAll('.diffinf-live :is(button, select, input)')]
            .filter(e => e.getBoundingClientRect().height < 24).map(e => e.outerHTML)"""
    )
    assert small == []


TEXTS = [
    ".diffinf-label",
    ".diffinf-status",
    ".diffinf-detail",
    ".diffinf-value",
    ".diffinf-preset",
    ".diffinf-score",
    "text",
    "figcaption",
    "td",
    "th",
    "dt",
    "dd",
    ".diffinf-legend span",
    ".diffinf-segments span",
    "select",
]


@pytest.mark.parametrize("theme", ["", ' data-theme="light"', ' data-theme="dark"'])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_the_light_and_in_the_dark(every, theme, scheme):
    """The theme that a page names counts for more than the system's."""
    _, boxes = every(scheme=scheme, theme=theme)
    dark = "dark" in theme or (not theme and scheme == "dark")
    for kind, box in boxes.items():
        assert unreadable(box, TEXTS) == [], kind
        ground = box.evaluate("e => getComputedStyle(e).backgroundColor")
        assert (contrast(ground, "rgb(0, 0, 0)") < 3) == dark


def test_print_and_pages_without_a_script_show_a_still(every):
    tab, boxes = every()
    for box in boxes.values():
        assert not box.locator(".diffinf-fallback").is_visible() and box.locator(".diffinf-live").is_visible()
    tab.emulate_media(media="print")
    for box in boxes.values():
        assert box.locator(".diffinf-fallback").is_visible() and not box.locator(".diffinf-live").is_visible()
    silent, boxes = every(scripts=False)
    assert silent.locator(".diffinf-live").count() == 0
    for kind, box in boxes.items():
        assert box.locator(".diffinf-fallback").is_visible()
        assert box.locator(".diffinf-fallback > p").last.text_content().startswith(made(kind).told())
        broken = box.locator("img").evaluate_all("all => all.filter(i => !i.naturalWidth || !i.alt).length")
        assert broken == 0


def test_drawings_are_described(every):
    tab, _ = every()
    silent = tab.evaluate(
        """() => [...document.querySelectorAll('.diffinf-live :is(canvas, svg, [tabindex="0"], input, select, button)')]
            .filter(e => e.checkVisibility() && !e.closest('[aria-hidden=true]'))
            .filter(e => !(e.getAttribute('aria-label') || e.textContent.trim()
                           || e.closest('label')?.textContent.trim() || e.closest('button')?.getAttribute('aria-label')))
            .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert silent == []


# --- how a figure comes into a page


def test_fragments_that_bring_their_script_work_beside_each_other(shown):
    figures = [made("readouts"), made("scrubber")]
    tab = shown(*figures, site=False)
    assert [status(tab.locator(".diffinf-interactive").nth(i)) for i in range(2)] == [
        figure.told() for figure in figures
    ]
    assert tab.locator(".diffinf-live").count() == 2


def test_a_cell_can_be_run_again(shown):
    """An output is put into a live page as JupyterLab does it, twice in a row, beside one that is there already."""
    figure = made("readouts")
    tab = shown(made("curve"), site=False)
    for _ in range(2):
        tab.evaluate(
            """fragment => {
                let output = document.getElementById('output');
                if (!output) { output = document.createElement('div'); output.id = 'output'; document.body.append(output); }
                output.innerHTML = fragment;
                output.querySelectorAll('script').forEach(old => {
                    const script = document.createElement('script');
                    for (const { name, value } of old.attributes) script.setAttribute(name, value);
                    script.textContent = old.textContent;
                    old.replaceWith(script);
                });
            }""",
            figure.html(),
        )
        assert tab.locator("#output .diffinf-live").count() == 1 and status(tab.locator("#output")) == figure.told()
    assert status(tab.locator(".diffinf-interactive").first) == made("curve").told()


def test_a_page_saved_while_live_comes_to_life_again(shown, opened, tmp_path):
    figure = made("readouts")
    tab = shown(figure)
    put(tab, {"Images": 2})
    (tmp_path / "saved.html").write_text(tab.content(), encoding="utf-8")
    again = opened(tmp_path / "saved.html")
    assert again.locator(".diffinf-live").count() == 1 and status(again) == figure.told()


def test_names_are_text_and_nothing_else(shown):
    tab = shown(made("explorer"), made("budget"))
    assert not tab.evaluate("window.hacked") and tab.locator("img[onerror]").count() == 0
    shown(made("explorer"), made("budget"), scripts=False)


# --- what is drawn


def test_numbers_are_written_as_python_writes_them(shown):
    generator = np.random.default_rng(0)
    values = generator.normal(size=60) * 10.0 ** generator.integers(-9, 9, 60)
    values[:12] = [0, 0.5, 1.5, -2.5, 0.125, 999.96, 9.996, 1e-4, 123456.5, -0.04, np.nan, 99999.5]
    forms = ["d", ".0f", ".2f", "+.3f", ".1e", "+.2e", ".3g", "+.4g", ".1%", "+.0%"]
    place = Slider("place", range(60))
    tab = shown(Readouts({form: by(values, place) for form in forms}, {form: form for form in forms}))
    for i, value in enumerate(values.astype(np.float32).astype(float)):
        put(tab, {"place": i})
        assert tab.locator("dd").all_text_contents() == [text(value, form) for form in forms]


def pixels(canvas):
    """What a canvas holds, `[height, width, 4]`."""
    values = canvas.evaluate("""async c => { await new Promise(done => setTimeout(done, 50));
        return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]; }""")
    return np.array(values[2]).reshape(values[1], values[0], 4)


def grey(image):
    return ((image.numpy()[0] + 1) * 127.5).round()


def test_the_explorer_shows_the_images_of_the_ranks(shown):
    figure = made("explorer")
    tab = shown(figure)
    for wanted in ({"Query": 0}, {"Query": 3, "Method": "gradients", "Damping λ": 1e-4}):
        state = figure.state(**wanted)
        put(tab, state)
        raw = figure.scores.at(state)[state["Query"]]
        order = np.argsort(-raw, kind="stable")
        rows = tab.locator(".diffinf-cards")
        for row, expected in enumerate((order, order[::-1], np.argsort(np.abs(raw), kind="stable"))):
            labels = rows.nth(row).locator("button").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))")
            for label, n in zip(labels, expected[:8], strict=True):
                assert label.startswith(f"training image {n}: score {text(raw[n], '+.1e')}")
            bars = (
                rows.nth(row)
                .locator(".diffinf-bar")
                .evaluate_all("all => all.map(e => +e.style.getPropertyValue('--_length'))")
            )
            np.testing.assert_allclose(bars, np.abs(raw[expected[:8]]) / np.abs(raw).max(), rtol=1e-9)
            shown_first = pixels(rows.nth(row).locator("canvas").first)
            assert np.abs(shown_first[..., 0] - grey(figure.train.images[expected[0]])).max() <= 1
        assert (
            np.abs(
                pixels(tab.locator(".diffinf-asked canvas").first)[..., 0] - grey(figure.queries.images[state["Query"]])
            ).max()
            <= 1
        )


def test_the_explorer_crosses_out_what_was_left_out(shown):
    figure = made("explorer")
    tab = shown(figure)
    put(tab, {"Query": 1, "Left out": 1})
    assert (
        tab.locator(".diffinf-row-0 .diffinf-gone").count() == 4
        and tab.locator(".diffinf-row-1 .diffinf-gone").count() == 0
    )
    outcome = figure.removals[0]
    assert f"{text(outcome.before[1], '.4f')} → {text(outcome.after[1], '.4f')}" in status(tab)
    after = tab.locator(".diffinf-asked canvas").nth(1)
    assert after.is_visible() and np.abs(pixels(after)[..., 0] - grey(outcome.images[1])).max() <= 1
    put(tab, {"Left out": 0})
    assert tab.locator(".diffinf-gone").count() == 0 and not after.is_visible()


def test_images_of_the_explorer_answer_keyboard_and_pointer(shown):
    figure = made("explorer")
    tab = shown(figure)
    cards, detail = tab.locator(".diffinf-row-0 .diffinf-card"), tab.locator(".diffinf-asked .diffinf-detail")
    cards.first.focus()
    tab.keyboard.press("ArrowRight")
    assert detail.text_content() == cards.nth(1).get_attribute("aria-label") and "2nd of 40" in detail.text_content()
    tab.keyboard.press("End")
    assert "8th of 40" in detail.text_content()
    tab.locator(".diffinf-row-1 .diffinf-card").first.hover()
    assert "40th of 40" in detail.text_content()
    assert tab.locator(".diffinf-row-0 .diffinf-card[tabindex='0']").count() == 1  # one tab stop a row


def test_the_explorer_says_where_there_are_no_scores(shown):
    figure = made("explorer")
    scores = figure.scores.values.copy()
    scores[1] = np.nan
    figure = replace(figure, scores=by(scores, *figure.scores.controls), missing="not run.")
    tab = shown(figure)
    for method, there in (("K-FAC", False), ("gradients", True)):
        put(tab, figure.state(Method=method))
        assert tab.locator(".diffinf-rows").is_visible() == there
        assert status(tab) == figure.told(Method=method) and ("not run." in status(tab)) != there


def test_the_explorer_names_its_rows_and_hints_by_the_state(shown):
    """Where all scores have one sign, nothing is called negative."""
    figure = made("explorer")
    scores = figure.scores.values.copy()
    scores[1] = np.abs(scores[1]) + 1e-6
    scores[2, :, :, :37], scores[2, :, :, 37:] = np.abs(scores[2, :, :, :37]) + 1e-6, -1e-4
    method = figure.scores.controls[0]
    hint = texts_by(["Both signs.", "One sign.", "Few below."], method)
    figure = replace(figure, scores=by(scores, *figure.scores.controls), hint=hint)
    tab = shown(figure)
    for place, option in enumerate(method.options):
        state = figure.state(Method=option)
        put(tab, state)
        sections = tab.locator(".diffinf-row:visible")
        titles = tuple(sections.locator(".diffinf-row-title").all_text_contents())
        assert titles == figure.row_titles(figure.ends[1].at(state))
        assert sections.locator("ul").evaluate_all("all => all.map(e => e.getAttribute('aria-label'))") == list(titles)
        assert len(titles) == (2 if option == "K-FAC" else 3)
        assert tab.locator(".diffinf-asked .diffinf-detail").text_content() == hint.values[place]


def test_scores_that_are_nearly_alike_are_told_apart(shown):
    """One digit after the point, and more only where the highest and the lowest would read the same."""
    figure = made("explorer")
    usual = figure.scores.values
    alike = 0.0155 * (1 + 0.01 * usual / np.abs(usual).max())
    for scores, digits in ((alike, (2, 3)), (usual, (1,)), (np.full_like(alike, 0.5), (1,))):
        now = replace(figure, scores=by(scores, *figure.scores.controls))
        tab = shown(now)
        firsts = [tab.locator(".diffinf-cards").nth(row).locator("button").first for row in (0, 1)]
        written = [re.search(r"score ([^ ,]+)", first.get_attribute("aria-label"))[1] for first in firsts]
        assert all(len(re.search(r"\.(\d+)", one)[1]) in digits for one in written)
        assert (written[0] == written[1]) == (np.ptp(scores) == 0)
        assert status(tab) == now.told()


def centres(tab, selector):
    """Places of drawn marks in pixels, `[n, 2]`."""
    written = tab.locator(selector).evaluate_all("all => all.map(e => e.getAttribute('transform'))")
    return np.array([[float(x) for x in re.findall(r"-?[\d.]+", one)] for one in written])


def assert_drawn_to_scale(pixels, values, within=0.02):
    """Pixels are a straight line of the values, to the hundredths in which they are written."""
    slope, start = np.polyfit(values, pixels, 1)
    assert np.abs(slope * values + start - pixels).max() <= within


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"Query": 1, "Scores": "negative ones set to 0", "Subsets": 12, "Seeds": 2, "Method": 1},
        {"Query": 2, "Axes": "ranks", "Scores": "shuffled"},
    ],
)
def test_the_scatter_draws_its_points(shown, state):
    figure = made("scatter")
    tab = shown(figure)
    places = figure.state(**state)
    put(tab, places)
    x, y = (values[places["Query"]] for values in figure.points(places))
    if places["Axes"]:
        x, y = rankdata(x), rankdata(y)
    found = centres(tab, ".diffinf-dot")
    assert len(found) == len(x)
    assert_drawn_to_scale(found[:, 0], x)
    assert_drawn_to_scale(-found[:, 1], y)


def test_the_interval_of_the_scatter_is_the_library_s(shown):
    """Ties in predictions and measurements, few subsets and many."""
    truth = ground_truth(subsets=40)
    figure = Scatter(np.random.default_rng(0).integers(-1, 2, (4, 30)).astype(float), truth)
    tab = shown(figure)
    for wanted in (
        {"Query": 1, "Subsets": 9},
        {"Query": 1, "Subsets": 40, "Seeds": 1},
        {"Query": 3, "Scores": "absolute values"},
    ):
        state = figure.state(**wanted)
        put(tab, state)
        value, (low, high) = figure.estimate(state)
        assert f"{text(value, '.3f')} [{text(low, '.2f')}, {text(high, '.2f')}]" in status(tab)
        assert value == pytest.approx(
            float(spearman(*(part[state["Query"]] for part in figure.points(state)))), abs=1e-12
        )


def test_points_are_read_by_arrow_keys(shown):
    figure = made("points")
    tab = shown(figure)
    x, y = (part.at(figure.state()) for part in (figure.x, figure.y))
    tab.locator(".diffinf-zone").focus()
    tab.keyboard.press("Home")
    first = int(np.argsort(x, kind="stable")[0])
    assert (
        tab.locator(".diffinf-detail").text_content()
        == f"point {first + 1}: {text(x[first], '+.2e')}, {text(y[first], '+.2e')}"
    )
    tab.keyboard.press("Escape")
    assert tab.locator(".diffinf-detail").text_content() == ""


def test_a_state_may_have_fewer_points(shown):
    figure = made("points")
    tab = shown(figure)
    put(tab, {"Share": 1})
    which, x, y = figure.there(figure.state(Share=1))
    assert which.tolist() == list(range(9)) and "over 9 points" in status(tab)
    order = np.argsort(np.isin(which, figure.marked), kind="stable")  # those that stand out are drawn on top
    found = centres(tab, ".diffinf-dot")
    assert_drawn_to_scale(found[:, 0], x[order])
    assert_drawn_to_scale(-found[:, 1], y[order])
    assert "diffinf-series-1" in tab.locator(".diffinf-dot").last.get_attribute("class")
    tab.locator(".diffinf-zone").focus()
    tab.keyboard.press("End")
    last = int(which[np.argsort(x, kind="stable")[-1]])
    assert tab.locator(".diffinf-detail").text_content().startswith(f"point {last + 1}: ")


def test_the_budget_reads_every_line_off(shown):
    figure = made("budget")
    tab = shown(figure)
    for budget in (3, 32, 0.5):
        state = figure.state(Budget=budget)
        put(tab, state)
        rows = tab.locator(".diffinf-readings tbody tr").all()
        for row, line, found in zip(rows, figure.lines, figure.readings(state).values(), strict=True):
            word, *cells = row.locator("td").all_text_contents()
            assert cells[0] == text(found.x, ".3g") and cells[1].startswith(text(found.y, ".1f"))
            which = figure.lines.index(line)
            words, spent = figure.labels["rule"][which], figure.costs["bytes"][which]
            assert word == ("–" if found.place is None else words[found.place])
            assert cells[2] == ("–" if found.place is None else text(spent[found.place], "d"))


def test_a_short_logarithmic_axis_has_ones_twos_and_fives(shown):
    x = np.geomspace(0.16, 67, 13)
    tab = shown(Lines([Line("a", x, x)], "bytes", "points", log_x=True, limits=(None, (-9.0, 1.0))))
    written = tab.locator(".diffinf-axes text").all_text_contents()
    assert [t for t in written if "." in t or len(t) < 3][-8:] == ["0.2", "0.5", "1", "2", "5", "10", "20", "50"]


def path(tab, selector):
    drawn = tab.locator(selector).first.get_attribute("d")
    return np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", drawn)[1:]])


def test_lines_are_drawn_to_scale(shown):
    figure = made("budget")
    tab = shown(figure)
    put(tab, {"Queries": 1})
    state = figure.state(Queries="generated")
    for s, line in enumerate(figure.lines):
        found = path(tab, f"svg.diffinf-plot .diffinf-line.diffinf-series-{s}")
        assert_drawn_to_scale(found[:, 0], np.log(line.parts["x"].at(state)))
        assert_drawn_to_scale(-found[:, 1], line.parts["y"].at(state))


def test_equal_axes_draw_circles_round(shown):
    tab = shown(made("ellipses"))
    found = path(tab, "svg.diffinf-plot .diffinf-series-0")
    wide, high = np.ptp(found, axis=0)
    assert abs(wide - high) < 0.5


@pytest.mark.parametrize("kind", ["curve", "moving-tangent"])
def test_tangent_and_secant_have_their_slopes(shown, kind):
    figure = made(kind)
    tab = shown(figure)
    for wanted in ({"ε": 0.1}, {"ε": -0.1, "Damping λ": 1e-4}):
        state = figure.state(**wanted)
        put(tab, state)
        x, y = np.array(figure.moving.values), figure.y.at(state)
        curve = path(tab, "svg.diffinf-plot path.diffinf-series-0")
        unit = np.polyfit(x, curve[:, 0], 1)[0], np.polyfit(y, curve[:, 1], 1)[0]
        here, foot = state["ε"], figure.anchor if figure.anchor is not None else state["ε"]
        expected = [figure.slope(state)] + ([(y[here] - y[foot]) / (x[here] - x[foot])] if here != foot else [])
        drawn = tab.locator("svg.diffinf-plot line.diffinf-line").evaluate_all(
            "all => all.map(e => ['x1', 'y1', 'x2', 'y2'].map(k => +e.getAttribute(k)))"
        )
        found = [(y2 - y1) / (x2 - x1) * unit[0] / unit[1] for x1, y1, x2, y2 in drawn]
        np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_the_point_of_a_curve_is_dragged_and_moved_by_keys(shown):
    figure = made("curve")
    tab = shown(figure)
    point = tab.locator(".diffinf-handle")
    curve, frame = path(tab, "svg.diffinf-plot path.diffinf-series-0"), tab.locator("svg.diffinf-chart").bounding_box()
    box = point.locator("circle").last.bounding_box()
    tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tab.mouse.down()
    tab.mouse.move(frame["x"] + curve[9, 0] + 2, frame["y"] + curve[9, 1] - 6, steps=4)
    tab.mouse.up()
    assert status(tab) == figure.told(**{"ε": figure.moving.values[9]})
    tab.keyboard.press("ArrowRight")
    assert status(tab) == figure.told(**{"ε": figure.moving.values[10]})
    assert point.get_attribute("aria-valuetext") == figure.moving.options[10]
    assert tab.locator('input[aria-label="ε"]').input_value() == "10"


def test_a_handle_moves_the_outlier(shown):
    figure = made("points")
    tab = shown(figure)
    tab.locator(".diffinf-handle").focus()
    tab.keyboard.press("End")
    assert status(tab) == figure.told(Outlier=3)
    marked = centres(tab, ".diffinf-dot.diffinf-series-1")[0]
    knob = centres(tab, ".diffinf-handle")[0]
    assert np.abs(marked - knob).max() < 0.01


def test_a_handle_has_the_colour_of_what_it_drags(shown):
    fill = "e => getComputedStyle(e).fill"
    tab = shown(made("points"))
    assert tab.locator(".diffinf-knob").evaluate(fill) == tab.locator(".diffinf-dot.diffinf-series-1").evaluate(fill)
    tab = shown(made("curve"))
    curve = tab.locator("path.diffinf-line.diffinf-series-0").evaluate("e => getComputedStyle(e).stroke")
    assert tab.locator(".diffinf-knob").evaluate(fill) == curve


@pytest.mark.parametrize("kind", ["matrices", "grid"])
def test_heat_maps_hold_the_cells(shown, kind):
    figure = made(kind)
    tab = shown(figure)
    put(tab, {"Dial": 2})
    state = figure.state(Dial=1)
    exact, near = figure.exact.at(state), figure.approximation.at(state)
    every = [figure.exact.values, figure.approximation.values, figure.approximation.values - figure.exact.values]
    largest = [np.abs(values).max() for values in every]
    largest = [max(largest[:2])] * 2 + largest[2:] if figure.own_scale else [max(largest)] * 3
    ends = [text(sign * end, figure.form) for end in sorted({largest[0], largest[2]}, reverse=True) for sign in (-1, 1)]
    shown_ends = [end for end in tab.locator(".diffinf-scale > span").all_text_contents() if end and end[-1] != ":"]
    assert sorted(shown_ends) == sorted(ends)
    for canvas, values, end in zip(
        tab.locator(".diffinf-heat").all(), (exact, near, near - exact), largest, strict=True
    ):
        found = pixels(canvas)
        assert np.abs(found[..., 3] - 255 * np.abs(values) / end).max() <= 1
        clear = found[..., 3] > 25
        assert ((found[..., 0] > found[..., 2]) == (values < 0))[clear].all()


def test_numbers_stand_in_the_cells(shown):
    figure = made("grid")
    tab = shown(figure)
    put(tab, {"Dial": 2})
    state = figure.state(Dial=1)
    exact, near = figure.exact.at(state), figure.approximation.at(state)
    for panel, values in zip(tab.locator(".diffinf-written").all(), (exact, near, near - exact), strict=True):
        assert panel.locator("span").all_text_contents() == [text(value, "+.1f") for value in values.flatten()]
        assert (
            panel.locator("span").first.bounding_box()["width"] < panel.locator("xpath=..").bounding_box()["width"] / 6
        )
        assert len({box.bounding_box()["height"] for box in panel.locator("span").all()}) == 1  # none is broken in two
    assert status(tab) == ""


@pytest.mark.parametrize("width", [390, 1200])
def test_names_stand_beside_their_cells(shown, width):
    figure = made("grid")
    tab = shown(figure, width=width)
    for kind, axis, size, names in (
        (".diffinf-row-names", "y", "height", figure.row_names),
        (".diffinf-column-names", "x", "width", figure.column_names),
    ):
        for panel in tab.locator(".diffinf-named").all():
            area = panel.locator(".diffinf-zone").bounding_box()
            for place, (name, word) in enumerate(zip(names, panel.locator(f"{kind} span").all(), strict=True)):
                box = word.bounding_box()
                middle = area[axis] + (place + 0.5) / len(names) * area[size]
                assert word.text_content() == name and abs(box[axis] + box[size] / 2 - middle) < 1.5
    assert made("matrices").data()["views"][0]["named"] is False


def test_cells_are_told_by_keys_and_pointer(shown):
    figure = made("matrices")
    tab = shown(figure)
    state = figure.state()
    exact, near = figure.exact.at(state), figure.approximation.at(state)
    zone, detail = tab.locator(".diffinf-zone").first, tab.locator(".diffinf-detail")

    def told(i, j):
        values = (exact[i, j], near[i, j], near[i, j] - exact[i, j])
        written = ", ".join(f"{name} {text(value, '.3g')}" for name, value in zip(figure.names, values, strict=True))
        return f"row {i + 1}, column {j + 1}: {written}. state 0, cell {6 * i + j}"

    zone.focus()
    tab.keyboard.press("Home")
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    assert detail.text_content() == told(1, 1)
    area = zone.bounding_box()
    tab.mouse.move(area["x"] + 4.5 / 6 * area["width"], area["y"] + 2.5 / 6 * area["height"])
    assert detail.text_content() == told(2, 4)


@pytest.mark.parametrize("kind", ["scrubber", "side-by-side"])
def test_frames_show_their_pixels(shown, kind):
    figure = made(kind)
    tab = shown(figure)
    for wanted in ({}, {"Timestep": 999} if kind == "scrubber" else {"Share": "10 %", "Without": "random"}):
        state = figure.state(**wanted)
        put(tab, state)
        images = figure.frames.at(state).reshape(-1, 8, 8).clip(-1, 1)
        for canvas, image in zip(tab.locator(".diffinf-strip canvas").all(), images, strict=True):
            assert np.abs(pixels(canvas)[..., 0] - (image + 1) * 127.5).max() <= 1


def test_the_planner_draws_the_plan_of_the_library(shown):
    """Every preset of the figure: the cells of the table and the lengths of the bars, against `planner.estimate`."""
    figure = made("planner")
    tab = shown(figure)
    for preset in figure.experiments:
        put(tab, figure.state(**figure.asked(preset.name, 20)))
        plan = estimate(preset, flops_per_second=2e13)
        for kind, measure in (("time", "seconds"), ("disk", "disk_bytes")):
            expected = {stage.name: getattr(stage, measure) for stage in plan.stages}
            expected["samples"] += expected.pop("trajectories", 0.0)
            whole = sum(expected.values())
            for place, (name, value) in enumerate(expected.items()):
                cells = tab.locator(f'tr[data-stage="{name}"] td').all_text_contents()
                found = cells[:2] if kind == "time" else cells[2:]
                assert found == [in_units(value, kind), text(value / whole, ".1%")], (preset.name, name)
                bars = tab.locator(f'rect[data-stage="{name}"]')
                width = float(bars.nth(int(kind == "disk")).get_attribute("width"))
                full = tab.locator(".diffinf-chart").first.evaluate("e => e.viewBox.baseVal.width")
                assert abs(width / full - value / whole) < 0.01 / full + 1e-9, place
    assert "cifar2" in figure.controls[0].options[2] and "38.3M weights" in figure.controls[0].options[2]


@pytest.mark.parametrize("width", [390, 1200])
def test_names_below_the_bars_of_the_planner_stay_apart(shown, width):
    tab = shown(made("planner"), width=width)
    area = tab.locator(".diffinf-chart").first.bounding_box()
    boxes = [word.bounding_box() for word in tab.locator(".diffinf-chart text").all()]
    for i, one in enumerate(boxes):
        assert area["x"] - 1 <= one["x"] and one["x"] + one["width"] <= area["x"] + area["width"] + 1
        for other in boxes[:i]:
            apart = one["x"] >= other["x"] + other["width"] or other["x"] >= one["x"] + one["width"]
            assert apart or abs(one["y"] - other["y"]) > 8
