"""Figures in Python: whole fragments, data as exact as it says, and refusals; what a browser shows is tested beside this."""

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from cases import images
from made_figures import DAMPING, HOSTILE, MADE, METHOD, explorer, ground_truth, matrices, points, removals
from PIL import Image

from diffinf_lib.artifacts import load_bundle
from diffinf_lib.errors import ConfigurationError
from diffinf_lib.evaluation.resampling import Resamples, resample_spearman
from diffinf_lib.interactive import (
    Choice,
    Curve,
    Explorer,
    Handle,
    Line,
    Lines,
    Matrices,
    Planner,
    Points,
    Preset,
    Readouts,
    Removal,
    Scatter,
    Scrubber,
    Slider,
    Together,
    by,
    computed,
    texts_by,
)
from diffinf_lib.interactive.lines import reading
from diffinf_lib.interactive.numbers import text
from diffinf_lib.interactive.packing import packed_numbers, rounded, sheet
from diffinf_lib.interactive.scatter import resampled_subsets
from diffinf_lib.presets import get_preset

KINDS = pytest.mark.parametrize("kind", MADE)


class Checker(HTMLParser):
    """Collects elements, and checks that tags close."""

    def __init__(self, fragment):
        super().__init__()
        self.found, self.open = [], []
        self.feed(fragment)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@KINDS
def test_a_fragment_is_whole_and_loads_nothing(kind):
    fragment = MADE[kind]().fragment
    found = Checker(fragment).found
    assert [tag for tag, _ in found].count("script") == 1 and len(fragment.encode()) < 150_000
    assert all(a["alt"] and a["src"].startswith("data:image/") for tag, a in found if tag == "img")
    assert not [name for _, attributes in found for name in attributes if name.startswith("on") or name == "id"]
    assert not re.search(r"https?://", fragment)


def test_the_script_comes_along_unless_the_site_has_it(monkeypatch):
    figure = MADE["readouts"]()
    monkeypatch.delenv("DIFFINF_SITE", raising=False)
    assert figure._repr_html_() == figure.html() and "<style>" in figure.html() and figure.html().count("<script") == 2
    monkeypatch.setenv("DIFFINF_SITE", "1")
    assert figure._repr_html_() == figure.fragment and figure.fragment.count("<script") == 1


def test_script_and_style_ask_for_nothing_from_elsewhere():
    from diffinf_lib.interactive.figure import asset

    for name in ("diffinf-interactive.js", "diffinf-interactive.css"):
        found = [url for url in re.findall(r"https?://[^\s\"']+", asset(name)) if "www.w3.org/2000/svg" not in url]
        assert not found and "</script" not in asset(name) and "</style" not in asset(name)
    assert not re.search(
        r"\b(fetch|XMLHttpRequest|WebSocket|import\(|eval|sendBeacon)\b", asset("diffinf-interactive.js")
    )


def test_names_cannot_end_the_script():
    for kind in ("explorer", "budget"):
        fragment = MADE[kind]().fragment
        assert fragment.count("</script>") == 1 and "<img src=x" not in fragment
        data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', fragment, re.DOTALL)[1])
        names = json.dumps(data, ensure_ascii=False)
        assert json.dumps(HOSTILE, ensure_ascii=False)[1:-1] in names


def test_a_figure_too_large_for_a_page_is_refused():
    many = Slider("i", range(400))
    figure = Readouts({f"{i}": by(np.random.default_rng(0).normal(size=400), many) for i in range(100)})
    with pytest.raises(ConfigurationError, match=r"Readouts of \d+ kB: a figure may have 150"):
        _ = figure.fragment


# --- data


@pytest.mark.parametrize("bits", [16, 32])
def test_numbers_are_held_as_exactly_as_they_are_told(bits):
    values = np.random.default_rng(0).normal(size=(3, 50))
    held = rounded(values, bits)
    packed = packed_numbers(held, bits)
    codes = np.frombuffer(base64.b64decode(packed["data"]), "<f4" if bits == 32 else "<u2").astype(float)
    read = codes if bits == 32 else packed["low"] + packed["step"] * codes
    np.testing.assert_allclose(read.reshape(3, 50), held, rtol=0, atol=1e-12)
    assert np.abs(held - values).max() <= (np.ptp(values) / 65535 / 2 * 1.001 if bits == 16 else 1e-6)
    np.testing.assert_allclose(by(held, bits=bits).values, held, rtol=0, atol=1e-12)  # rounding again changes nothing


def test_a_sheet_holds_every_image():
    train = images(37, 8).images
    found = sheet(train)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["uri"].partition(",")[2]))))
    for n in (0, 15, 16, 36):
        top, left = n // found["columns"] * 8, n % found["columns"] * 8
        expected = ((train[n, 0] + 1) * 127.5).numpy()
        assert np.abs(pixels[top : top + 8, left : left + 8] - expected).max() <= 0.5


def test_large_sheets_are_packed_with_loss_and_colour():
    generator = torch.Generator().manual_seed(0)
    smooth = (
        torch.nn.functional.interpolate(torch.rand(150, 3, 4, 4, generator=generator), size=32, mode="bilinear") * 2 - 1
    )
    found = sheet(smooth)
    assert found["uri"].startswith("data:image/webp") and len(found["uri"]) < 100_000
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["uri"].partition(",")[2]))).convert("RGB"))
    expected = ((smooth[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(pixels[:32, :32] - expected).mean() < 8


@pytest.mark.parametrize(
    ("value", "form", "written"),
    [
        (0.125, ".2f", "0.13"),
        (-0.125, ".2f", "−0.13"),
        (-0.001, ".2f", "0.00"),
        (1234567, "d", "1,234,567"),
        (0.0000123, "+.1e", "+1.2e−5"),
        (9.96, ".1e", "1.0e1"),
        (-0.996, "+.1e", "−1.0"),
        (0.00012345, ".3g", "0.000123"),
        (1234567.0, ".3g", "1.23e6"),
        (0.729, ".1%", "72.9 %"),
        (float("nan"), ".2f", "–"),
        (0.0, "+.1f", "+0.0"),
    ],
)
def test_numbers_as_readers_see_them(value, form, written):
    assert text(value, form) == written


# --- definitions


def test_resamples_are_even_and_complete():
    counts = resampled_subsets(20, 2000)
    assert (counts.sum(1) == 20).all()
    assert np.abs(counts.mean(0) - 1).max() < 0.12 and abs(counts.var() - 0.95) < 0.03


def test_intervals_agree_with_those_of_other_resamples():
    figure = MADE["scatter"]()
    for query in (0, 1):
        state = figure.state(Query=query, Method="noisy")
        predicted, measured = (part[[query]] for part in figure.points(state))
        expected = resample_spearman(predicted[None], measured, Resamples.draw(1, measured.shape[1], 4000, 0))[
            0
        ].estimate()
        found = figure.estimate(state)
        assert found.value == pytest.approx(expected.value, abs=1e-12)
        np.testing.assert_allclose(found.interval, expected.interval, atol=0.05)


def test_queries_of_a_scatter_are_chosen_by_picture_where_there_are_some():
    figure = MADE["scatter"]()
    shown = replace(figure, shown=(3, 1))
    (query,) = (control for control in shown.data()["controls"] if control["name"] == "Query")
    assert query["look"] == "radio" and query["sheet"] == sheet(figure.truth.query_images[[3, 1]])
    without = replace(figure, truth=replace(figure.truth, query_images=None))
    assert not any("sheet" in control for control in without.data()["controls"])


def test_adding_a_constant_changes_no_rank():
    figure = MADE["scatter"]()
    assert figure.told(Scores="plus a constant", Method="noisy") == figure.told(Method="noisy")
    assert figure.told(Scores="shuffled", Method="noisy") != figure.told(Method="noisy")


def test_a_line_is_read_off_by_hand():
    x, y = np.array([1.0, 10.0, 100.0]), np.array([0.0, 2.0, 1.0])
    assert reading(x, y, 10**0.5, "at", log=True).y == pytest.approx(1.0)
    assert reading(x, y, 5.5, "at", log=False).y == pytest.approx(1.0)
    assert reading(x, y, 100, "at", log=True) == (100, 1.0, 2)
    assert reading(x, y, 100, "within", log=True) == (10, 2.0, 1)
    assert np.isnan(reading(x, y, 0.5, "within", log=True).y) and np.isnan(reading(x, y, 200, "at", log=True).y)
    for kind, budget, told in (
        ("budget", 0.5, "nothing is to be had for so little."),
        ("reading", 40, "no line is there."),
    ):
        figure = MADE[kind]()
        assert figure.tell(figure.state(Budget=budget)) == f"Budget {budget}: {told}"


def test_the_best_is_told_with_those_whose_intervals_overlap():
    """By hand: a's interval is [1, 3]; b's overlaps, c's does not, d has none."""
    points = {"a": (2, 1, 3), "b": (0.5, 0, 1), "c": (-1, -2, 0.9)}
    rows = [Line(name, [1], [y], [low], [high]) for name, (y, low, high) in points.items()]
    figure = Lines(
        [*rows, Line("d", [1], [1.9])], "x", "y", reading=Slider("Budget", (1,)), rule="within", y_form="d", x_form="d"
    )
    assert figure.told() == "Budget 1: best is a with 2 at 1; its interval overlaps with b."
    assert replace(figure, lines=[rows[0], rows[2]]).told() == "Budget 1: best is a with 2 at 1."


def test_the_relative_error_is_frobenius():
    figure = matrices()
    state = figure.state(Dial=1)
    exact, near = (torch.from_numpy(m.at(state)) for m in (figure.exact, figure.approximation))
    assert figure.relative_error(state) == pytest.approx(float((near - exact).norm() / exact.norm()))


def test_matrices_that_are_no_approximation_tell_no_error():
    figure = replace(matrices(), error_form=None)
    assert figure.told(Dial=1) == "" and figure.data()["views"][0]["errorForm"] is None


def test_the_slope_is_least_squares():
    figure = points()
    state = figure.state(Outlier=2)
    found = np.polyfit(figure.x.at(state), figure.y.at(state), 1)
    np.testing.assert_allclose(figure.fit(state), found)


# --- states


def test_states_are_named_by_option_value_or_place():
    figure = explorer(start={"Damping λ": 1e-6})
    assert figure.state(Method="K-FAC", Query=3) == {"Query": 3, "Method": 1, "Damping λ": 1, "Left out": 0}
    assert MADE["scatter"]().state()["Subsets"] == 16  # all 24 of them, from 8 on


def test_numbers_are_computed_for_every_state():
    rates = {"a": 1.0, "b": 10.0, "c": 100.0}
    found = computed(lambda damping, which: torch.tensor([damping, rates[which]]), DAMPING, THREE)
    assert found.values.shape == (3, 3, 2) and found.controls == (DAMPING, THREE)
    state = {"Damping λ": 2, "which": 1}
    np.testing.assert_allclose(found.at(state), [1e-4, 10.0], rtol=1e-6)


def test_parts_of_one_figure_share_controls_and_differ_in_none():
    figure = MADE["together"]()
    assert [control.name for control in figure.controls] == ["ε", "Damping λ"]
    other = Readouts({"rate": by([1.0, 2.0], Choice("Damping λ", ("small", "large")))})
    with pytest.raises(ConfigurationError, match="Damping λ: two controls of one name"):
        _ = Together([MADE["curve"](), other]).fragment


TRUTH, SMOKE = ground_truth(), get_preset("smoke")
TRAIN, QUERIES = images(40, 8), images(5, 8, seed=1)
THREE = Choice("which", ("a", "b", "c"))
ABC = texts_by(["a", "b", "c"], THREE)
HALF_KNOWN = torch.full((5, 40), torch.nan)
HALF_KNOWN[0, 0] = 1.0
NOTHING, UNSEEN = torch.zeros(5, 40), Removal("x", [[0]] * 5, np.zeros(5), np.zeros(5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Explorer(TRAIN, QUERIES, torch.zeros(5, 39)), r"scores of shape \(5, 39\): .* \(5, 40\)"),
        (lambda: Explorer(TRAIN, QUERIES, torch.full((5, 40), torch.nan)), "scores: some are NaN"),
        (lambda: Explorer(TRAIN, QUERIES, HALF_KNOWN, missing="not run"), "scores: some are NaN"),
        (lambda: Explorer(TRAIN, QUERIES, NOTHING, shown=[5]), r"shown=\[5\]: give positions from 0 to 4"),
        (lambda: Explorer(TRAIN, QUERIES, NOTHING, shown=[]), "shown: give at least one"),
        (lambda: Explorer(TRAIN, QUERIES, NOTHING, images=41), "images=41: give 1 to 40"),
        (lambda: Explorer(TRAIN, QUERIES, NOTHING, shown=[0], removals=removals(NOTHING)), "removals: the top 10 % is of"),
        (lambda: Explorer(TRAIN, QUERIES, NOTHING, removals=[UNSEEN, *removals(NOTHING)]), "some have images"),
        (lambda: Scatter(torch.zeros(4, 29), TRUTH), r"scores of shape \(4, 29\)"),
        (lambda: Scatter(torch.zeros(4, 30), TRUTH.first_subsets(3)), "3 subsets: too few"),
        (lambda: by(np.zeros((2, 4)), THREE), r"values of shape \(2, 4\): the leading axes must be which \(3\)"),
        (lambda: by([1.0], bits=8), "bits=8: give 32, or 16"),
        (lambda: computed(lambda which: [0.0] * ord(which), THREE), r"results of shapes \(97,\), \(98,\), \(99,\)"),
        (lambda: texts_by(["x", "y"], THREE), "texts: which has 3 options"),
        (lambda: Slider("λ", (1, 1)), "λ: values must ascend"),
        (lambda: Slider("λ", (1, 2), "3"), "form='3': give d, or"),
        (lambda: Choice("which", ()), "which: no options"),
        (lambda: Choice("which", ("a", "a")), "which: an option is there twice"),
        (lambda: Line("a", [1, 2], [1, 2, 3]), "a: parts of shapes"),
        (lambda: Line("a", [1, 2], [1, 2], low=[0, 0]), "a: give both ends"),
        (lambda: Lines([], "x", "y"), "0 lines: give 1 to 6"),
        (lambda: Lines([Line("a", [0, 1], [1, 2])], "x", "y", log_x=True), "log_x: values of 0 or less"),
        (lambda: Lines([Line("a", [0, 1], [1, 2])], "x", "y", rule="near"), "rule='near'"),
        (lambda: Lines([Line("a", [0, 1], [1, 2])], "x", "y", costs={"bytes": [[1.0]]}), "costs: bytes has shapes"),
        (lambda: Lines([Line("a", [0, 1], [1, 2])], "x", "y", labels={"kind": [["b"]]}), "labels: kind has .1. words"),
        (lambda: Handle(DAMPING, [0.0], [0.0]), "handle: places of shapes"),
        (lambda: Handle(DAMPING, [0.0], [0.0], series=6), "handle: series=6; give 0 to 5"),
        (lambda: Curve([0, 1], [0, 1, 2], [0, 1, 2], "x", "y"), "y of shape"),
        (lambda: Curve([0, 1], [0, 1], [0, 1], "x", "y", anchor=0), r"slopes of shape \(2,\): with an anchor they need"),
        (lambda: Curve([0, 1], [0, 1], 1.0, "x", "y"), r"slopes of shape \(\): without an anchor they need \(2,\)"),
        (lambda: Curve([0, 1], [0, 1], 1.0, "x", "y", anchor=2), "anchor=2: give a place of the grid, 0 to 1"),
        (lambda: Matrices(np.zeros((2, 2)), np.zeros((2, 3))), "matrices of shapes"),
        (lambda: Matrices(np.zeros((65, 2)), np.zeros((65, 2))), "more than 64 a side"),
        (lambda: Matrices(np.zeros((7, 2)), np.zeros((7, 2)), written=True), "numbers have room up to 6 a side"),
        (lambda: Planner([]), "experiments: none given"),
        (lambda: Planner([SMOKE, SMOKE]), "experiments=smoke, smoke: one is there twice"),
        (lambda: Planner([replace(SMOKE, store_budget=1.0)]), "experiments=smoke: of another store_budget"),
        (lambda: Planner([SMOKE]).asked("digits", 1), "preset='digits': not in this figure; give one of smoke"),
        (lambda: Planner([SMOKE]).state(**Planner([SMOKE]).asked("smoke", 3)), "TFLOP/s of each=3: give one of"),
        (lambda: Points([1.0, 2], [1.0], "x", "y"), "2 values of x and 1 of y"),
        (lambda: Readouts({"h": by([1.0, 2.0])}), "h: a value of shape"),
        (lambda: Scrubber(by(np.zeros((3, 2, 1, 4, 4)), THREE), ABC, names=("one",)), "names: 1 for 2 pictures"),
        (lambda: Scrubber.noising(TRAIN.images[0], TRAIN.images[1], timesteps=[]), "timesteps: give at least one"),
        (lambda: explorer(start={"Method": "X"}).fragment, "Method='X': give one of EK-FAC"),
        (lambda: explorer(presets=[Preset("x", {"Dial": 1})]).fragment, "'Dial': no such control"),
        (lambda: explorer(start={"Damping λ": 3e-8}).fragment, "Damping λ=3e-08: give one of"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_line(make, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_file_names_stand_for_images():
    names = tuple(f"{n}{HOSTILE}.png" for n in range(40))
    figure = Explorer(replace(TRAIN, names=names), QUERIES, torch.arange(200.0).reshape(5, 40))
    assert f"training image {names[39]}" in figure.told() and METHOD.look == "radio"


def test_scores_that_nobody_computed_are_said_to_be_missing():
    scores = torch.arange(600.0).reshape(3, 5, 40)
    scores[1] = torch.nan
    figure = Explorer(TRAIN, QUERIES, by(scores, THREE), missing="not run.", start={"which": "b"})
    assert figure.told() == "Query 0: not run." and "highest score" in figure.told(which="c")
    assert "most positive" not in figure.fragment.split("<script")[0]  # the still picture


def test_scores_of_one_sign_are_highest_and_lowest():
    scores = torch.linspace(-1, 1, 40).expand(5, 40)
    few_below = torch.where(scores < scores[0, 3], scores, scores.abs())
    figure = Explorer(TRAIN, QUERIES, by(torch.stack([scores, scores + 2, few_below]), THREE))
    for option, wanted in (
        ("a", ("most positive", "most negative", "nearest to zero")),
        ("b", ("highest", "lowest")),
        ("c", ("most positive", "lowest", "nearest to zero")),
    ):
        still = figure.still(figure.state(which=option))
        assert tuple(re.findall("<strong>(.*?)</strong>", still)) == wanted


def test_the_hint_may_depend_on_a_control():
    scores = torch.arange(600.0).reshape(3, 5, 40)
    hint = texts_by(["ranks", "changes", "ranks"], THREE)
    figure = Explorer(TRAIN, QUERIES, by(scores, THREE), hint=hint)
    assert figure.payload()["hint"] == {"values": hint.values, "by": [THREE.name]}
    assert Explorer(TRAIN, QUERIES, scores[0], hint="ranks").payload()["hint"] == {"values": "ranks", "by": []}
    assert THREE in Explorer(TRAIN, QUERIES, scores[0], hint=hint).controls


def test_outcomes_of_the_shipped_removal_study():
    bundle = load_bundle("digits-removal")
    found = Removal.of_study(bundle, [7, 2])
    assert [removal.name for removal in found] == ["the top 2 %", "the bottom 2 %", "the top 10 %", "the bottom 10 %"]
    assert [len(removal.removed[0]) for removal in found] == [6, 6, 30, 30]
    scores = bundle.arrays["scores"]
    assert set(found[2].removed[1]) == set(np.argsort(-scores[2], kind="stable")[:30].tolist())
    assert found[2].after[0] == bundle.arrays["measurements"][1, 0, 7].mean()
    assert found[2].before[1] == bundle.arrays["full"][2].mean()
    chance = bundle.arrays["random"][1, :, 7].mean()
    np.testing.assert_allclose(found[2].chance[0], chance, rtol=1e-6)
    beside = f"{chance - found[2].before[0]:+.2g}".replace("-", "−")
    assert f"without as many random images {beside}" in found[2].tell(0, ".2g")
    assert all(removal.images is None for removal in found)


def test_outcomes_with_the_pictures_drawn_from_the_querys_noise():
    bundle = load_bundle("digits-pictures")
    arrays = bundle.arrays
    found = Removal.of_study(bundle, [1, 0])
    assert [removal.name for removal in found] == ["the top 10 %", "the bottom 10 %"]
    for condition, removal in enumerate(found):
        for place, query in enumerate((1, 0)):
            levels = (removal.images[place].numpy() + 1) * 127.5
            np.testing.assert_allclose(levels, arrays["pictures"][0, condition, query, 0], atol=1e-4)


def test_pictures_belong_to_the_models_of_the_shipped_removal_study():
    """The models that drew them measure of their queries what the larger study's did."""
    drawn, study = (load_bundle(name).arrays for name in ("digits-pictures", "digits-removal"))
    rows = [np.flatnonzero((study["sets"] == "generated") & (study["positions"] == q))[0] for q in drawn["positions"]]
    np.testing.assert_array_equal(drawn["removed"][0], study["removed"][1][:, rows])
    np.testing.assert_allclose(drawn["measurements"][0, ..., 0], study["measurements"][1][:, rows, 0], atol=1e-6)
    np.testing.assert_allclose(drawn["random"][0, 0, :, 0], study["random"][1, 0, rows, 0], atol=1e-6)
    queries = (drawn["images"].clip(-1, 1) + 1) * 127.5
    full = drawn["full_pictures"][[drawn["drawn"].tolist().index(q) for q in drawn["positions"]], 0]
    assert np.abs(full - queries).max() <= 1
