"""Charts: what numbers look like as bars, and what is said of them to those who do not see them."""

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.cli.views.charts import Bar, Chart, Kind, ceiling, figure

KINDS = (Kind("one", "the first"), Kind("two", "the second"))
values = st.floats(0, 1e12, allow_subnormal=False) | st.integers(0, 10**12)


def chart(bars: Sequence[Sequence[float]], highest: float, name: str = "bar") -> Chart:
    drawn = [Bar(each, f"at {index}", f"{name} {index}") for index, each in enumerate(bars)]
    return Chart("c", f"{name}s", "said", KINDS, drawn, highest, lambda value: f"{value:g}")


def parsed(drawn: Chart) -> ET.Element:
    """Return the figure as XML, which it is as well."""
    return ET.fromstring("".join(figure(drawn)))  # noqa: S314 - it is our own


def rects(drawn: Chart) -> list[dict[str, float | str]]:
    """Return the bars' parts; places in percent."""
    return [
        {name: value if name == "class" else float(value.removesuffix("%")) for name, value in each.attrib.items()}
        for each in parsed(drawn).iter("rect")
    ]


def axis(drawn: Chart, css: str) -> list[str | None]:
    return [each.text for each in parsed(drawn).findall(f"./div[@class='{css}']/span")]


def test_nothing_is_a_chart_without_bars() -> None:
    drawn = chart([], 2)
    assert rects(drawn) == []
    assert axis(drawn, "axis") == []
    assert axis(drawn, "scale") == ["2", "1", "0"]


def test_one_bar_is_as_wide_as_the_chart_and_its_first_kind_is_at_the_bottom() -> None:
    first, second = rects(chart([[1, 3]], 4))
    assert first == {"class": "one", "x": 10, "y": 75, "width": 80, "height": 25}
    assert second == {"class": "two", "x": 10, "y": 0, "width": 80, "height": 75}


def test_of_many_bars_the_axis_names_the_ends_and_the_middle() -> None:
    drawn = chart([[1, 0]] * 400, 2)
    assert len(rects(drawn)) == 400
    assert axis(drawn, "axis") == ["at 0", "at 200", "at 399"]
    assert axis(chart([[1, 0]] * 3, 2), "axis") == ["at 0", "at 1", "at 2"]


@given(st.lists(st.tuples(values, values), max_size=50))
def test_bars_stay_in_the_chart_and_are_as_high_as_their_numbers(bars: list[tuple[float, float]]) -> None:
    highest = ceiling(max((sum(each) for each in bars), default=0))
    found = rects(chart(bars, highest))
    assert len(found) == sum(bool(value) for each in bars for value in each)
    places = [(float(each["y"]), float(each["y"]) + float(each["height"])) for each in found]
    assert all(-0.01 <= top <= bottom <= 100.01 for top, bottom in places)
    assert sum(float(each["height"]) for each in found) == pytest.approx(
        sum(100 * value / highest for each in bars for value in each), abs=0.001 * len(found) + 0.001
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 2), (0.5, 2), (2, 2), (2.1, 4), (5, 6), (9, 10), (10, 10), (11, 20), (237, 300), (1000, 1000), (1001, 2000)],
)
def test_a_scale_ends_with_a_round_number_whose_half_is_whole(value: float, expected: float) -> None:
    assert ceiling(value) == expected


@given(values)
def test_no_value_is_above_the_scale(value: float) -> None:
    assert value <= ceiling(value) <= max(10 * value, 2)


def test_each_bar_and_the_whole_are_said_in_words() -> None:
    drawn = parsed(chart([[1, 1], [0, 0], [2, 0]], 2))
    svg = drawn.find("svg")
    assert svg is not None
    assert svg.get("role") == "img"
    labels = {each.get("id"): each.text for each in svg}
    assert [labels[name] for name in svg.get("aria-labelledby", "").split()] == ["bars", "said"]
    assert [each.findtext("title") for each in svg.findall("g")] == ["bar 0", "bar 2"]
    assert [each.text for each in drawn.iter("li")] == ["the first", "the second"]
    assert {each.get("class") for each in drawn.iter("li")} == {"one", "two"}


@pytest.mark.parametrize("hostile", ["<script>alert(1)</script>", "'\"&<>", "a\u202eb", "\x00\x1b", "x" * 10_000])
def test_what_is_drawn_is_shown_and_does_nothing(hostile: str) -> None:
    drawn = "".join(figure(chart([[1, 1]], 2, hostile)))
    ET.fromstring(drawn)  # noqa: S314 - it is our own
    assert "<script" not in drawn
    assert not re.search("[\x00\x1b\u202e]", drawn)
