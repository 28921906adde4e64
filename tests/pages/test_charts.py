import math
import re

import pytest

from progeo.pages.charts import NUM_STYLES, Bars, Chart, Series
from progeo.pages.page import _environment


def points(drawn):
    return [(round(x, 1), round(y, 1)) for x, y, _, _ in drawn.points]


def test_a_line_lies_between_the_axes_with_its_band():
    series = Series("encoder", [1, 3], [0, 100], [0, 90], [10, 100])
    chart = Chart("t", "N", "recall", [series], y_range=(0, 100), width=100, height=100)
    left, top, right, bottom = chart.plot
    (drawn,) = chart.drawn
    assert points(drawn) == [(left + 12, bottom), (right - 12, top)]
    assert drawn.line == f"{left + 12:.1f},{bottom:.1f} {right - 12:.1f},{top:.1f}"
    assert len(drawn.band.split()) == 4
    assert drawn.points[1][2] == "encoder: 100 at 3 (90 to 100)"


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances_and_a_tick_for_each_n():
    chart = Chart("t", "N", "y", [Series("s", [1, 10, 100, 0], [1, 2, 3, 4])], log_x=True)
    (drawn,) = chart.drawn
    (first, _), (second, _), (third, _) = points(drawn)
    assert math.isclose(second - first, third - second, abs_tol=0.2)
    assert [tick.text for tick in chart.x_ticks] == ["1", "10", "100"]


def test_points_that_are_not_finite_are_gaps_and_a_reference_is_quiet():
    chart = Chart(
        "t", "x", "y", [Series("s", [1, 2, 3], [1, math.nan, 3]), Series("chance", [1], [2], kind="reference")]
    )
    line, reference = chart.drawn
    assert len(line.points) == 2
    assert reference.kind == "reference"
    assert line.style != reference.style


def test_a_single_point_lies_in_the_middle_of_a_logarithmic_axis():
    chart = Chart("t", "x", "y", [Series("s", [8], [1])], log_x=True)
    left, _, right, _ = chart.plot
    assert points(chart.drawn[0])[0][0] == (left + right) / 2


def test_what_lies_beyond_the_y_axis_is_drawn_at_its_ends():
    chart = Chart("t", "x", "y", [Series("s", [1, 2], [-5, 120])], y_range=(0, 100))
    _, top, _, bottom = chart.plot
    assert [y for _, y in points(chart.drawn[0])] == [bottom, top]
    (bar,) = Bars("t", "x", "y", ["a"], {"": [120.0]}, y_max=100).drawn
    assert (bar.y, bar.height) == (top, bottom - top)


def test_colors_repeat_when_there_are_more_series_than_colors():
    names = [str(number) for number in range(NUM_STYLES + 1)]
    chart = Chart("t", "x", "y", [Series(name, [1], [1]) for name in names])
    assert [drawn.style for drawn in chart.drawn][-2:] == [NUM_STYLES - 1, 0]
    bars = Bars("t", "x", "y", ["a"], {name: [1.0] for name in names})
    assert [bar.style for bar in bars.drawn][-2:] == [NUM_STYLES - 1, 0]


def test_bars_of_zeros_and_nan_still_make_a_chart():
    chart = Bars("t", "x", "y", ["a", "b"], {"": [0.0, math.nan]})
    assert [(bar.height, bar.tip) for bar in chart.drawn] == [(0, "a: 0")]
    assert chart.y_ticks


def test_a_narrow_logarithmic_axis_has_ticks_as_well():
    chart = Chart("t", "x", "y", [Series("s", [2.1, 2.5, 3.1], [1, 2, 3])], log_x=True)
    assert [tick.text for tick in chart.x_ticks] == ["2.2", "2.4", "2.6", "2.8", "3"]


def test_ticks_of_close_numbers_are_apart():
    ns = [1, 10, 11, 12, 100]
    chart = Chart("t", "N", "y", [Series("s", ns, ns)], log_x=True)
    assert [tick.text for tick in chart.x_ticks] == ["1", "10", "100"]


def test_zero_has_no_sign():
    (drawn,) = Chart("t", "x", "y", [Series("s", [1], [-0.0])]).drawn
    assert drawn.points[0][2] == "s: 0 at 1"


def test_ticks_are_round_numbers():
    chart = Chart("t", "x", "y", [Series("s", [0, 870], [0.0, 0.37])])
    assert [tick.text for tick in chart.x_ticks] == ["0", "200", "400", "600", "800"]
    assert [tick.text for tick in chart.y_ticks] == ["0", "0.1", "0.2", "0.3"]


def test_a_single_point_and_no_point_still_make_a_chart():
    assert len(Chart("t", "x", "y", [Series("s", [5], [5])]).drawn[0].points) == 1
    empty = Chart("t", "x", "y", [Series("s", [], [])])
    assert empty.drawn[0].points == []
    assert empty.y_ticks


def test_bars_stand_on_the_axis_side_by_side_and_nan_draws_none():
    chart = Bars("t", "meters", "queries", ["0-5", "5-10"], {"a": [1, 4], "b": [2, math.nan]}, width=200, height=100)
    _, top, _, bottom = chart.plot
    first, tallest, other = chart.drawn
    assert (tallest.y, tallest.height) == (top, bottom - top)
    assert math.isclose(first.height, (bottom - top) / 4)
    assert math.isclose(other.x, first.x + first.width)
    assert [bar.tip for bar in chart.drawn] == ["0-5, a: 1", "5-10, a: 4", "0-5, b: 2"]


@pytest.mark.parametrize(
    ("heights", "texts"),
    [([1, 2], ["0", "1", "2"]), ([1, 2.5], ["0", "0.5", "1", "1.5", "2", "2.5"]), ([1, math.nan], ["0", "0.2"])],
)
def test_an_axis_of_counts_has_whole_numbers(heights, texts):
    chart = Bars("t", "x", "queries", ["a", "b"], {"": heights})
    assert [tick.text for tick in chart.y_ticks][: len(texts)] == texts


def test_too_many_labels_are_thinned_out():
    chart = Bars("t", "x", "y", [str(number) for number in range(200)], {"": [1.0] * 200})
    assert 5 < len(chart.x_ticks) < 40


def test_a_note_stands_below_each_label():
    chart = Bars("t", "x", "y", ["a", "b"], {"": [1.0, 2.0]}, notes=["12", "3"])
    assert [tick.text for tick in chart.x_notes] == ["12", "3"]
    assert [tick.position for tick in chart.x_notes] == [tick.position for tick in chart.x_ticks]
    without = Bars("t", "x", "y", ["a"], {"": [1.0]})
    assert without.x_notes == []
    assert chart.plot[3] < without.plot[3]  # room for the notes


@pytest.mark.parametrize(
    ("heights", "texts"),
    [
        ([1.2291, 1.2292, 1.2294], ["1.2291", "1.2292", "1.2293", "1.2294"]),
        ([100_000.0, 200_000.0], ["100,000", "125,000", "150,000", "175,000", "200,000"]),
        ([1e300, 2e300], ["1e+300", "1.25e+300", "1.5e+300", "1.75e+300", "2e+300"]),  # a loss that explodes
        ([1e-5, 1e-5], ["9e-06", "9.5e-06", "1e-05", "1.05e-05", "1.1e-05"]),
    ],
)
def test_numbers_of_an_axis_can_be_told_apart_and_have_room(heights, texts):
    chart = Chart("t", "x", "y", [Series("a", range(len(heights)), heights)])
    assert [tick.text for tick in chart.y_ticks] == texts
    assert chart.plot[0] == max(52, 30 + 10 * max(map(len, texts)))


def test_a_series_without_points_is_not_in_the_key_and_leaves_the_others_their_colors():
    empty, full, other = (Series(name, x, x) for name, x in (("none", []), ("some", [1, 2]), ("more", [1, 3])))
    template = _environment(False).from_string('{% from "charts.html" import chart %}{{ chart(each) }}')
    _, _, key = template.render(each=Chart("t", "x", "y", [empty, full, other])).partition('<ul class="key">')
    assert re.findall(r'series (s\d).*?title="(\w+)"', key, re.DOTALL) == [("s1", "some"), ("s2", "more")]


def test_ticks_of_whole_numbers_are_whole():
    chart = Chart("t", "epoch", "y", [Series("a", [0, 1, 2], [1.0, 2.0, 3.0])])
    assert [tick.text for tick in chart.x_ticks] == ["0", "1", "2"]
    chart = Chart("t", "epoch", "y", [Series("a", [0, 1.5], [1.0, 2.0])])
    assert [tick.text for tick in chart.x_ticks] == ["0", "0.5", "1", "1.5"]


@pytest.mark.parametrize(
    ("x", "kind", "radius"),
    [
        (range(1), "line", 4),
        (range(0, 100, 5), "line", 4),
        (range(20), "line", 1.5),
        (range(20), "points", 4),
        (range(61), "points", 1.5),
    ],
)
def test_points_are_small_where_they_are_many_or_close_on_a_line(x, kind, radius):
    chart = Chart("t", "x", "y", [Series("wide", [0, 100], [0, 1]), Series("a", x, [0.5] * len(x), kind=kind)])
    assert [drawn.radius for drawn in chart.drawn] == [4, radius]
