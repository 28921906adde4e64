"""The queries that encoders differ on: their order, their rows, and their map."""

from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.comparison import Evaluated
from progeo.evaluation.comparison_gallery import differing_queries, gallery_of
from progeo.evaluation.comparison_map import map_of
from progeo.evaluation.evaluate import Evaluation
from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue


@cache
def catalogue(names, *, has_degrees=True):
    steps = np.arange(len(names))
    columns = {"east": 549000 + 100.0 * steps, "north": np.full(len(names), 4180000.0)}
    if has_degrees:
        columns |= {"latitude": np.full(len(names), 37.77), "longitude": -122.44 + 0.001 * steps}
    return Catalogue(Path("images"), pa.table({"path": names, "zone": np.zeros(len(names), np.int8), **columns}))


def evaluated(encoder, found, *, data="city", query_rows=None, has_degrees=True):
    """An encoder whose second prediction is the place of each query, and whose first one is too if `found`."""
    rows = np.arange(len(found)) if query_rows is None else np.array(query_rows)
    retrieved = Retrieved(
        catalogue(tuple(f"d{row}.jpg" for row in range(12)), has_degrees=has_degrees),
        catalogue(tuple(f"q{row}.jpg" for row in rows.tolist()), has_degrees=has_degrees),
        np.stack([np.where(found, rows, 11), rows], axis=1),
        {"within 25 m": [np.array([row]) for row in rows.tolist()]},
        np.full(len(rows), ""),
    )
    evaluation = Evaluation({1: 100 * float(np.mean(found)), 2: 100.0}, 8, 1.0, retrieved, rows)
    return Evaluated(data, encoder, evaluation, 10.0)


A = evaluated("a", np.array([1, 1, 1, 1, 0, 0, 1, 0], bool))
B = evaluated("b", np.array([1, 0, 0, 0, 1, 0, 1, 0], bool))


def test_queries_are_taken_in_turn_from_those_that_the_same_encoders_find():
    listed = differing_queries([A, B], 1, ["a"])
    assert sorted(each.key for each in listed) == [2, 3, 4, 5]  # rows 1 to 4 of the folder
    found = [[outcome.is_found for outcome in each.outcomes] for each in listed]
    assert sorted(found[:2]) == [[False, True], [True, False]]
    assert found[2:] == [[True, False]] * 2
    assert [each.name for each in listed if each.key == 5] == ["q4.jpg"]
    assert differing_queries([A, B], 2, ["a"]) == []


def test_the_best_encoder_comes_first_and_keys_of_data_sets_follow_one_another():
    other = [evaluated(name, np.array(hits, bool), data="x") for name, hits in (("a", [0, 0]), ("b", [0, 1]))]
    listed = differing_queries([A, B, *other], 1, ["a", "b"])
    assert sorted(each.key for each in listed) == [2, 3, 4, 5, 8 + 2]
    (last,) = [each for each in listed if each.data == "x"]
    assert [outcome.evaluated.encoder for outcome in last.outcomes] == ["b", "a"]


def test_predictions_are_those_of_the_same_query_where_an_encoder_could_not_read_all():
    without = evaluated("without", np.array([0, 1, 0], bool), query_rows=[1, 4, 7])
    (row_1, row_4) = sorted(differing_queries([A, without], 1, ["a"]), key=lambda each: each.key)
    assert [[outcome.row for outcome in each.outcomes] for each in (row_1, row_4)] == [[1, 0], [4, 1]]
    assert {outcome.retrieved.queries.name(outcome.row) for outcome in row_4.outcomes} == {"q4.jpg"}


def test_each_row_has_the_first_predictions_of_each_encoder():
    listed = differing_queries([A, B], 1, ["a"])
    gallery, num_pictured = gallery_of(
        listed, {"a": "A", "b": "B"}, {"city": "c"}, first_n=1, show_paths=False, max_pictures=3
    )
    row = next(row for row in gallery.rows if row.key == 2)
    assert [strip.title for strip in row.strips] == ["A: found", "B: missed"]
    marks = [[item.mark for item in strip.items] for strip in row.strips]
    assert marks == [["correct", "correct"], ["wrong", "correct"]]
    assert [item.values for item in row.strips[1].items] == [(1, pytest.approx(1000)), (2, 0)]
    assert (row.facets["found by"], row.facets["missed by"]) == (["A"], ["B"])
    assert gallery.filters == {"found by": ["A", "B"], "missed by": ["A", "B"]}
    assert (num_pictured, gallery.photos.num_embedded) == (1, 3)


def test_the_map_has_what_the_best_encoder_finds_and_what_another_does():
    listed = differing_queries([A, B], 1, ["a"])
    drawn = map_of(listed, {"a": "A", "b": "B"}, show_paths=False)
    assert drawn.unit == "degrees"
    assert [(points.kind, sorted(points.keys)) for points in drawn.points] == [("correct", [2, 3, 4]), ("wrong", [5])]
    a, b = drawn.details[2].points
    assert [(each.name, each.kind) for each in (a, b)] == [("A", "match"), ("B", "found")]
    np.testing.assert_array_equal(b.positions[0], drawn.database[11])


def test_a_data_set_of_meters_is_not_put_among_degrees():
    plain = [
        evaluated(name, np.array(hits, bool), data="plain", has_degrees=False)
        for name, hits in (("a", [0, 1]), ("b", [0, 0]))
    ]
    listed = differing_queries([A, B, *plain], 1, ["a", "a"])
    names = {"a": "a", "b": "b"}
    drawn = map_of(listed, names, show_paths=False)
    assert (drawn.unit, len(drawn.database)) == ("degrees", 12)
    assert sorted(key for points in drawn.points for key in points.keys) == [2, 3, 4, 5]
    only = map_of(differing_queries(plain, 1, ["a"]), names, show_paths=False)
    assert (only.unit, only.points[0].positions.tolist()) == ("meters", [[4180000, 549100]])


def test_classes_are_named_and_have_no_photo():
    classifier = classifier_of([(549000 + 100 * number, 4180000, 0) for number in range(12)])
    scores = ClassScores(classifier, np.zeros((8, 2), np.int64), np.zeros((8, 2)), "")
    pair = []
    for each in (A, B):
        retrieved = each.evaluation.retrieved
        by_classes = Retrieved(
            classifier.catalogue,
            retrieved.queries,
            retrieved.predictions,
            retrieved.positives,
            retrieved.conditions,
            classes=scores,
        )
        evaluation = Evaluation(each.evaluation.recalls, 8, 1.0, by_classes, np.arange(8))
        pair.append(Evaluated("city", each.encoder, evaluation, 10.0))
    listed, names = differing_queries(pair, 1, ["a"]), {"a": "a", "b": "b"}
    gallery, _ = gallery_of(listed, names, {"city": "c"}, first_n=1, show_paths=False, max_pictures=100)
    photos = gallery.photos.data(show_paths=True)
    assert {len(each) for each in photos if each[0].startswith("cell 549")} == {2}  # no path
    assert gallery.photos.num_embedded == 4
    assert map_of(listed, names, show_paths=False).database_name == "centers of classes"
