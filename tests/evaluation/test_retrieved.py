import numpy as np
import pyarrow as pa

from progeo.evaluation.retrieved import Retrieved
from progeo.places.catalogue import Catalogue


def catalogue(tmp_path, east, **columns):
    count = len(east)
    zone, names = np.zeros(count, np.int8), [f"{row}.jpg" for row in range(count)]
    return Catalogue(
        tmp_path, pa.table({"path": names, "east": east, "north": np.zeros(count), "zone": zone, **columns})
    )


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
