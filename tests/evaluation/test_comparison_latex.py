"""Tables for papers, of comparisons that are computed by hand."""

import pytest

from progeo.evaluation.comparison import Compared
from progeo.evaluation.comparison_latex import write_comparison_latex
from progeo.evaluation.significance import PairedTest


def compared(encoder, recalls, *, data="city", count=40, condition="all", p=None, difference=-5.0):
    """An encoder with the p-values `p` of its tests, by N."""
    tests = {n: PairedTest(count, 0, 1, difference, -9.0, -1.0, each, each) for n, each in (p or {}).items()}
    intervals = {n: (recall - 2, recall + 2) for n, recall in recalls.items()}
    return Compared(data, encoder, 2048, None, 1.0, recalls, intervals, count, "R", "within 25 m", condition, tests)


def cells(text, start):
    """The cells of the line that begins with `start`, and of the next one."""
    lines = text.splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith(start))
    return [line.removesuffix(r" \\").split(" & ") for line in lines[row : row + 2]]


def test_the_best_of_a_column_is_bold_and_who_is_significantly_below_it_has_a_dagger(tmp_path):
    table = [
        compared("a_1", {1: 62.04, 5: 90.0}, p={1: 0.049}),
        compared("b", {1: 70.0, 5: 80.0}, p={5: 0.01}),
        compared("c", {1: 50.0, 5: 90.0}, p={1: 0.05}),
    ]
    write_comparison_latex(tmp_path / "a.tex", table, [])
    text = (tmp_path / "a.tex").read_text()
    assert cells(text, r"a\_1") == [
        [r"a\_1", "2,048", r"62.0$^\dagger$", r"\textbf{90.0}"],
        ["", "", r"{\scriptsize 60.0--64.0}", r"{\scriptsize 88.0--92.0}"],
    ]
    assert cells(text, "b &")[0] == ["b", "2,048", r"\textbf{70.0}", r"80.0$^\dagger$"]
    assert cells(text, "c &")[0] == ["c", "2,048", "50.0", r"\textbf{90.0}"]
    assert r"\multicolumn{2}{c}{city, 40 queries}" in text
    assert r"A prediction is correct within 25 m." in text
    assert r"$p < 0.05$ with Holm's correction" in text
    assert text.count(r"\begin{table}") == 1


def test_who_is_above_the_best_on_the_queries_that_all_count_has_no_dagger(tmp_path):
    write_comparison_latex(
        tmp_path / "a.tex", [compared("a", {1: 60.0}, p={1: 0.01}, difference=3.0), compared("b", {1: 70.0})], []
    )
    assert cells((tmp_path / "a.tex").read_text(), "a &")[0] == ["a", "2,048", "60.0"]


def test_data_sets_are_groups_of_columns_and_conditions_a_table_with_the_first_recall(tmp_path):
    table = [
        compared(encoder, recalls, data=data, count=count)
        for data, count in (("x", 30), ("/my/own/data/tokyo", 10))
        for encoder, recalls in (("a", {1: 60.0, 5: 90.0}), ("b", {1: 70.0, 5: 80.0}))
    ]
    conditions = [
        compared(encoder, {1: recall, 5: 99.0}, data="/my/own/data/tokyo", count=count, condition=condition)
        for condition, count, recalls in (("day", 6, (80.0, 70.0)), ("night", 4, (10.0, 20.0)))
        for encoder, recall in zip("ab", recalls, strict=True)
    ]
    write_comparison_latex(tmp_path / "a.tex", table, conditions)
    first, second = (tmp_path / "a.tex").read_text().split(r"\begin{table}")[1:]
    assert r"\multicolumn{2}{c}{x, 30 queries} & \multicolumn{2}{c}{\dots{}/data/tokyo, 10 queries} \\" in first
    assert cells(first, "a &")[0][2:] == ["60.0", r"\textbf{90.0}"] * 2
    assert r" &  & \multicolumn{2}{c}{\dots{}/data/tokyo} \\" in second
    assert r"Encoder & Dim. & day (6) & night (4) \\" in second
    assert [cells(second, f"{name} &")[0][2:] for name in "ab"] == [
        [r"\textbf{80.0}", "10.0"],
        ["70.0", r"\textbf{20.0}"],
    ]
    assert "R@1 in percent, by condition" in second


@pytest.mark.parametrize(("low", "high", "words"), [(40, 40, "40 queries"), (39, 1040, "39 to 1,040 queries")])
def test_the_number_of_queries_can_differ_between_encoders(low, high, words, tmp_path):
    write_comparison_latex(
        tmp_path / "a.tex", [compared("a", {1: 1.0}, count=low), compared("b", {1: 1.0}, count=high)], []
    )
    assert rf"{{city, {words}}}" in (tmp_path / "a.tex").read_text()
