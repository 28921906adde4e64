import numpy as np
import pyarrow as pa

from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue


def catalogue(tmp_path, east, **columns):
    count = len(east)
    zone, names = np.zeros(count, np.int8), [f"{row}.jpg" for row in range(count)]
    known = {"east": east, "north": np.zeros(count), "zone": zone, "heading": np.full(count, np.nan)}
    return Catalogue(tmp_path, pa.table({"path": names, **known, **columns}))


def found(tmp_path, queries_east, conditions):
    return Retrieved(
        catalogue(tmp_path, [0.0, 1000.0]),
        catalogue(tmp_path, queries_east),
        predictions=np.array([[0, 1], [1, 0], [0, -1], [1, -1]]),
        positives={"within 25 m": [np.array([0])] * 4, "within 5 m": [np.array([1])] * 4},
        conditions=np.array(conditions),
    )


def test_the_first_criterion_decides_what_is_correct_and_distances_end_where_predictions_do(tmp_path):
    retrieved = found(tmp_path, [3.0, 0.0, 7.0, 999.0], [""] * 4)
    assert retrieved.correct.tolist() == [[True, False], [False, True], [True, False], [False, False]]
    np.testing.assert_array_equal(retrieved.distances_m, [[3, 997], [1000, 0], [7, np.nan], [1, np.nan]])


def test_groups_are_conditions_and_distances_to_the_database(tmp_path):
    groups = found(tmp_path, [3.0, 5.0, 7.0, 500.0], ["night", "day", "night", ""]).groups()
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "all": [0, 1, 2, 3],
        "night": [0, 2],
        "day": [1],
        "0 to 5 m from the database": [0],
        "5 to 10 m from the database": [1, 2],
        "100 m and more from the database": [3],
    }


def test_a_group_of_all_queries_is_not_said_twice(tmp_path):
    assert list(found(tmp_path, [1.0, 2.0, 3.0, 4.0], ["day"] * 4).groups()) == ["all"]


def test_images_of_unknown_places_are_in_no_group_of_a_distance(tmp_path):
    assert list(found(tmp_path, [np.nan] * 4, ["", "", "", "day"]).groups()) == ["all", "day"]


def test_groups_of_headings_are_by_the_smallest_difference_to_a_positive(tmp_path):
    positives = [np.array(rows, np.int64) for rows in ([0, 1], [0, 1], [1], [0, 1], [0], [])]
    retrieved = Retrieved(
        catalogue(tmp_path, [0.0, 1.0], heading=[0.0, 90.0]),
        catalogue(tmp_path, [0.0] * 6, heading=[100.0, 330, 211, 200, np.nan, 0]),
        predictions=np.zeros((6, 1), np.int64),
        positives={"within 25 m": positives},
        conditions=np.array([""] * 6),
    )
    assert {name: rows.tolist() for name, rows in retrieved.groupings["heading"].items()} == {
        "0 to 30 degrees from a positive": [0],
        "30 to 60 degrees from a positive": [1],
        "90 to 180 degrees from a positive": [2, 3],
    }
    assert retrieved.groups().keys() == {"all", *retrieved.groupings["heading"]}


def test_a_grouping_without_groups_is_none(tmp_path):
    assert list(found(tmp_path, [3.0, 5.0, 7.0, 500.0], ["day"] * 4).groupings) == ["distance"]
