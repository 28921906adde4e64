"""Tables of encoders that were evaluated on the same queries, made of predictions by hand."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from progeo.evaluation.comparison import (
    Evaluated,
    compare_by_condition,
    compare_evaluated,
    compare_pairs,
    shared_queries,
)
from progeo.evaluation.comparison_files import write_comparison
from progeo.evaluation.evaluate import Evaluation
from progeo.evaluation.metrics import recall_table
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue


def catalogue(names):
    east = np.arange(len(names)) * 100.0
    columns = {"north": np.zeros(len(names)), "zone": np.zeros(len(names), np.int8)}
    return Catalogue(Path("images"), pa.table({"path": names, "east": east, **columns}))


def evaluated(
    name,
    right,
    *,
    data="city",
    query_rows=None,
    speed=100.0,
    positives=None,
    missed=True,
    ns=(1, 2),
    conditions=None,
    second=None,
):
    """An encoder whose first prediction is correct where `right` says, and whose second is where `second` says, or is.

    Args:
        conditions: condition of each query; None for none.
    """
    rows = np.arange(len(right)) if query_rows is None else np.array(query_rows)
    database = catalogue([f"d{row}.jpg" for row in range(20)])
    positives = [[row] for row in rows.tolist()] if positives is None else positives
    retrieved = Retrieved(
        database,
        catalogue([f"q{row}.jpg" for row in rows.tolist()]),
        np.stack([np.where(right, rows, 19), rows if second is None else np.where(second, rows, 19)], axis=1),
        {"within 25 m": [np.array(each, np.int64) for each in positives]},
        np.full(len(rows), "") if conditions is None else np.array(conditions),
    )
    groups = {"all": np.arange(len(rows))}
    table = recall_table(retrieved.predictions, retrieved.positives, groups, ns, without_positive_missed=missed)
    evaluation = Evaluation({each.n: each.percent for each in table}, 8, 2.0, retrieved, rows)
    return Evaluated(data, name, evaluation, speed, missed)


# The best finds 8 of 10; another the first 7 of them; a bad one only the last 2 queries, which the best misses.
BEST = np.arange(10) < 8
GOOD = np.arange(10) < 7
BAD = np.arange(10) >= 8
THREE = [evaluated("good", GOOD), evaluated("best", BEST), evaluated("bad", BAD, speed=None)]


def test_encoders_are_compared_with_the_best_on_the_same_queries():
    good, best, bad = compare_evaluated(THREE)
    assert [row.recalls for row in (good, best, bad)] == [{1: 70, 2: 100}, {1: 80, 2: 100}, {1: 20, 2: 100}]
    assert best.against_best is None
    assert (good.against_best.only_one, good.against_best.only_other, good.against_best.p) == (0, 1, 1)
    assert (bad.against_best.only_one, bad.against_best.only_other) == (2, 8)
    assert bad.against_best.p == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert bad.against_best.p_adjusted == pytest.approx(2 * bad.against_best.p)
    assert [row.is_level for row in (good, best, bad)] == [True, False, True]
    assert [row.total_ms for row in (good, best, bad)] == [12, 12, None]  # 1000 / 100 + 2
    table = recall_table(
        THREE[0].evaluation.retrieved.predictions,
        THREE[0].evaluation.retrieved.positives,
        {"all": np.arange(10)},
        (1, 2),
    )
    assert good.intervals == {each.n: (each.low, each.high) for each in table}


def test_only_queries_that_all_encoders_count_are_paired():
    lacking = evaluated("lacking", np.arange(8) < 4, query_rows=[0, 1, 2, 4, 5, 6, 8, 9])
    without = [[row] if row != 9 else [] for row in range(10)]
    excluding = evaluated("excluding", BEST, positives=without, missed=False)
    assert shared_queries([*THREE, lacking, excluding]).tolist() == [0, 1, 2, 4, 5, 6, 8]
    assert shared_queries([excluding]).tolist() == list(range(9))
    found, best = compare_evaluated([lacking, excluding])
    assert (found.num_queries, best.num_queries, best.against_best) == (8, 9, None)
    # of 0, 1, 2, 4, 5, 6 and 8, the best misses 8 and the other 5, 6 and 8
    test = found.against_best
    assert (test.num_queries, test.only_one, test.only_other) == (7, 0, 2)
    assert lacking.rows_of(np.array([4, 9])).tolist() == [3, 7]


LIGHT = ["day"] * 5 + ["night"] * 5
IN_LIGHT = [evaluated(*each, conditions=LIGHT) for each in (("good", GOOD), ("best", BEST), ("bad", BAD))]


def test_each_condition_has_its_own_recalls_its_own_best_and_its_own_tests():
    rows = compare_by_condition(IN_LIGHT)
    assert [(row.condition, row.encoder, row.recalls[1], row.num_queries) for row in rows] == [
        ("day", "good", 100, 5),
        ("day", "best", 100, 5),
        ("day", "bad", 0, 5),
        ("night", "good", 40, 5),
        ("night", "best", 60, 5),
        ("night", "bad", 40, 5),
    ]
    assert [row.is_best for row in rows] == [True, False, False, False, True, False]
    _, equal, bad, good, _, level = (row.against_best for row in rows)
    assert (equal.only_one, equal.only_other, equal.p) == (0, 0, 1)
    assert (bad.only_one, bad.only_other, bad.p, bad.p_adjusted) == (0, 5, 2 / 2**5, 4 / 2**5)
    assert (good.num_queries, good.only_other) == (5, 1)
    assert (level.only_one, level.only_other, level.p) == (2, 3, pytest.approx(1))
    of_best = IN_LIGHT[1].evaluation.retrieved
    table = recall_table(of_best.predictions, of_best.positives, {"night": np.arange(5, 10)}, (1, 2))
    assert rows[4].intervals == {each.n: (each.low, each.high) for each in table}


def test_a_condition_is_compared_where_every_encoder_counts_queries_of_it():
    lacking = evaluated("lacking", BEST[:6], query_rows=range(6), conditions=LIGHT[:6])
    assert [(row.condition, row.num_queries) for row in compare_by_condition([IN_LIGHT[1], lacking])] == [
        *(("day", 5), ("day", 5)),
        *(("night", 5), ("night", 1)),
    ]
    only_day = evaluated("day", BEST[:5], query_rows=range(5), conditions=LIGHT[:5])
    assert compare_by_condition([IN_LIGHT[1], only_day]) == []
    assert compare_by_condition(THREE) == []


def test_a_query_that_is_not_counted_is_in_no_condition():
    positives = [[row] if row != 2 else [] for row in range(10)]
    excluding = [
        evaluated(*each, positives=positives, missed=False, conditions=LIGHT) for each in (("a", GOOD), ("b", BAD))
    ]
    assert [
        (row.condition, row.encoder, row.recalls[1], row.num_queries) for row in compare_by_condition(excluding)
    ] == [
        *(("day", "a", 100, 4), ("day", "b", 0, 4)),
        *(("night", "a", 40, 5), ("night", "b", 40, 5)),
    ]


def test_at_each_n_encoders_are_compared_with_the_best_at_that_n():
    first = evaluated("first", BEST, second=BEST)
    rows = compare_evaluated([first, evaluated("second", GOOD)])
    assert [row.recalls for row in rows] == [{1: 80, 2: 80}, {1: 70, 2: 100}]
    assert [row.is_best for row in rows] == [True, False]
    assert [{n: (test.only_one, test.only_other, test.p) for n, test in row.tests.items()} for row in rows] == [
        {2: (0, 2, 0.5)},
        {1: (0, 1, 1)},
    ]


def test_every_two_encoders_are_compared_with_the_correction_for_all_pairs():
    pairs = compare_pairs(IN_LIGHT)
    assert [(each.condition, each.measure) for each in pairs[::3]] == [
        (condition, measure) for condition in ("all", "day", "night") for measure in ("R@1", "R@2")
    ]
    assert [(each.encoder, each.other) for each in pairs[:3]] == [("good", "best"), ("good", "bad"), ("best", "bad")]
    tests = [each.test for each in pairs[:3]]
    assert [(test.only_one, test.only_other) for test in tests] == [(0, 1), (7, 2), (8, 2)]
    p = [1, 2 * (1 + 9 + 36) / 2**9, 2 * (1 + 10 + 45) / 2**10]
    assert [test.p for test in tests] == pytest.approx(p)
    assert [test.p_adjusted for test in tests] == pytest.approx([1, 2 * p[1], 3 * p[2]])
    assert [test.difference for test in tests] == pytest.approx([-10, 50, 60])
    assert {each.test.difference for each in pairs[3:6]} == {0}


def test_without_a_query_that_all_count_nothing_is_tested():
    pair = [evaluated("a", np.ones(2, bool), query_rows=[0, 1]), evaluated("b", np.ones(2, bool), query_rows=[2, 3])]
    assert [row.against_best for row in compare_evaluated(pair)] == [None, None]
    assert compare_pairs(pair) == []


def test_of_encoders_of_the_same_recall_the_one_that_is_better_further_down_is_the_best():
    low = evaluated("low", BEST, second=np.arange(10) != 9)
    rows = compare_evaluated([low, evaluated("high", BEST)])
    assert [row.against_best is None for row in rows] == [False, True]


def test_a_table_has_the_best_in_bold_and_a_mark_where_the_difference_may_be_chance(tmp_path):
    comparison = write_comparison(tmp_path, compare_evaluated(THREE))
    head, _, *lines = (tmp_path / "compare.md").read_text(encoding="utf-8").splitlines()
    assert head == (
        "| encoder | dimensions | images/s | search, ms per query | total, ms per query | R@1 | 95 % of R@1 | R@2 | "
        "to the best | p |"
    )
    assert [line.split(" | ")[5] for line in lines[:3]] == ["70.0 ≈", "**80.0**", "20.0 ≈"]
    assert [line.split(" | ")[7] for line in lines[:3]] == ["**100.0**"] * 3
    assert lines[1].endswith("|  |  |")
    assert lines[2].endswith(" | 0.22 |")
    assert "exact McNemar test on the same queries" in lines[-1]
    assert str(comparison) in (tmp_path / "compare.md").read_text(encoding="utf-8")


def test_a_table_of_several_data_sets_says_which(tmp_path):
    table = compare_evaluated([evaluated("a", BEST, data="x"), evaluated("a", BAD, data="=y"), *THREE[:1]])
    assert [row.data for row in table] == ["x", "=y", "city"]
    write_comparison(tmp_path, table, spreadsheet_safe=True)
    lines = (tmp_path / "compare.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("| data | encoder | dimensions |")
    assert [line.split(" | ")[6] for line in lines[2:]] == ["**80.0**", "**20.0**", "**70.0**"]
    with (tmp_path / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["data"] for row in rows] == ["x", "'=y", "city"]
    assert [row["R@1"] for row in rows] == ["80.0", "20.0", "70.0"]
    assert [row["p"] for row in rows] == ["", "", ""]
    assert [row["data"] for row in json.loads((tmp_path / "compare.json").read_text())] == ["x", "=y", "city"]


def test_numbers_of_a_table_for_other_programs(tmp_path):
    write_comparison(tmp_path, compare_evaluated(THREE))
    with (tmp_path / "compare.csv").open() as stream:
        good, best, bad = csv.DictReader(stream)
    assert list(good) == [
        *("encoder", "dimensions", "images/s", "search, ms per query", "total, ms per query", "R@1", "R@2", "queries"),
        *("R@1 low", "R@1 high", "R@2 low", "R@2 high"),
        *("difference", "difference low", "difference high", "p", "p adjusted"),
    ]
    assert [good[name] for name in ("difference", "p", "p adjusted", "queries")] == ["-10.0", "1", "1", "10"]
    assert [bad[name] for name in ("images/s", "total, ms per query", "p", "p adjusted")] == ["", "", "0.109", "0.219"]
    assert [best[name] for name in ("difference", "p")] == ["", ""]
    rows = json.loads((tmp_path / "compare.json").read_text())
    assert (rows[0]["total_ms"], rows[2]["total_ms"], rows[1]["against_best"]) == (12, None, None)
    assert rows[2]["against_best"]["only_other"] == 8
    assert rows[0]["recalls"] == {"1": 70, "2": 100}


def test_conditions_are_rows_of_the_same_files_and_a_table_of_their_own(tmp_path):
    conditions = compare_by_condition(IN_LIGHT)
    write_comparison(tmp_path, compare_evaluated(IN_LIGHT), conditions=conditions, pairs=compare_pairs(IN_LIGHT))
    with (tmp_path / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["condition"], row["queries"]) for row in rows[::3]] == [("all", "10"), ("day", "5"), ("night", "5")]
    assert [row["R@1"] for row in rows] == [
        *("70.0", "80.0", "20.0"),
        *("100.0", "100.0", "0.0"),
        *("40.0", "60.0", "40.0"),
    ]
    assert [row["condition"] for row in json.loads((tmp_path / "compare.json").read_text())[::3]] == [
        "all",
        "day",
        "night",
    ]
    of_all, of_conditions, meaning = (tmp_path / "compare.md").read_text(encoding="utf-8").split("\n\n")
    assert of_all.startswith("| encoder | dimensions |")
    head, _, *lines = of_conditions.splitlines()
    assert head == "| condition | encoder | queries | R@1 | 95 % of R@1 | R@2 | to the best | p |"
    assert [line.split(" | ")[3] for line in lines] == [
        *("**100.0**", "**100.0** ≈", "0.0 ≈"),
        *("40.0 ≈", "**60.0**", "40.0 ≈"),
    ]
    assert "compared with the best of a data set and condition" in meaning
    with (tmp_path / "compare_pairs.csv").open() as stream:
        pairs = list(csv.DictReader(stream))
    assert len(pairs) == 3 * 3 * 2
    names = (
        "condition",
        "measure",
        "encoder",
        "other",
        "queries",
        "only encoder",
        "only other",
        "difference",
        "p adjusted",
    )
    assert [pairs[2][name] for name in names] == ["all", "R@1", "best", "bad", "10", "8", "2", "60.0", "0.328"]
