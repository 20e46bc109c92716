import numpy as np
import pytest
from markdown_it import MarkdownIt

from diffinf_lib.errors import ConfigurationError
from diffinf_lib.tables import Number, cite, number, percent, source_note, table

ROWS = [
    {"method": "EK-FAC", "LDS (%)": percent(0.7286, (0.7005, 0.7555)), "passes": 45792},
    {"method": "random | none", "LDS (%)": percent(-0.001, (-0.035, 0.0361)), "note": "$\\lambda$"},
]


def cells(markdown):
    """A table's rows as a Markdown parser of another project reads them: (style, content) of each cell."""
    body = markdown.split("\n\n", 1)[1].rsplit("\n:::", 1)[0]
    tokens = MarkdownIt().enable("table").parse(body)
    found = [
        (a.attrGet("style"), b.content)
        for a, b in zip(tokens, tokens[1:], strict=False)
        if a.type in ("th_open", "td_open")
    ]
    width = len([token for token in tokens if token.type == "th_open"])
    return [found[i : i + width] for i in range(0, len(found), width)]


def test_cells_stand_below_their_headings_and_numbers_to_the_right():
    headings, first, second = cells(table(ROWS).markdown())
    assert [content for _, content in headings] == ["method", "LDS (%)", "passes", "note"]
    assert [style for style, _ in first] == [f"text-align:{side}" for side in ("left", "right", "right", "left")]
    assert [content for _, content in first] == [
        "EK-FAC",
        "72.9 [70.0, 75.5]",
        "45,792",
        "",
    ]
    assert [content for _, content in second] == ["random | none", "−0.1 [−3.5, \u20073.6]", "", "$\\lambda$"]


def test_intervals_of_a_column_have_one_width():
    printed = [row[1][1] for row in cells(table(ROWS).markdown())[1:]]
    assert len({len(text.partition("[")[2]) for text in printed}) == 1


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (percent(0.72861), "72.9"),
        (percent(0.5, unit=" %"), "50.0 %"),
        (percent(0.0337, (0.0201, 0.0491), signed=True, unit=" points"), "+3.4 points [+2.0, +4.9]"),
        (percent(-0.0004), "0.0"),
        (number(159697), "159,697"),
        (number(0.00005832), "5.83e−5"),
        (number(1e-8), "1e−8"),
        (number(-2.5e-10, signed=True), "−2.5e−10"),
        (number(0.0005832), "0.000583"),
        (number(1234.5), "1,234"),
        (number(2.0), "2.00"),
        (number(0), "0"),
        (number(float("inf"), 0), "∞"),
        (number(float("nan")), "–"),
        (number(np.float32(3.14159), 2), "3.14"),
    ],
)
def test_numbers_as_they_are_printed(shown, text):
    assert repr(shown) == text


def test_a_number_of_numpy_stands_to_the_right_too():
    assert cells(table([{"a": np.int64(3)}, {"a": np.float64(2.5)}]).markdown())[1][0] == ("text-align:right", "3")


def test_captions_names_and_sources():
    benchmark = {"benchmark": "fit", "environment": {"git_commit": "abc"}}
    text = table(ROWS, caption="What came out.", name="tab-x", source=benchmark).markdown()
    assert text.startswith(
        ":::{table} What came out. (Benchmark `fit`, commit `abc`.)\n:class: diffinf-table\n:name: tab-x\n\n|"
    )
    assert source_note(None) == ""


def test_only_long_tables_sort():
    assert "sortable" not in table(ROWS).markdown()
    assert ":class: diffinf-table sortable" in table(ROWS * 3).markdown()


def test_citations():
    assert cite("park2023trak") == "{cite:t}`park2023trak`"
    assert cite("") == cite() == ""


def test_what_cannot_be_a_table_is_refused():
    with pytest.raises(ConfigurationError, match="rows: give at least one"):
        table([])
    with pytest.raises(ConfigurationError, match="give one line"):
        table(ROWS, caption="two\nlines")
    with pytest.raises(ConfigurationError, match="give its two ends"):
        percent(0.5, (0.1, 0.2, 0.3))


def test_a_line_break_does_not_end_the_table():
    assert len(cells(table([{"a": "one\ntwo"}, {"a": Number(1)}]).markdown())) == 3
