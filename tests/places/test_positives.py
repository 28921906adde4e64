import numpy as np
import pytest
from running import build_catalogue

from progeo.places.positives import find_positives, looking_alike, positives_within, smallest_turns


def test_positives_are_the_database_images_within_the_radius_its_edge_included():
    database = np.array([[0.0, 0.0], [25.0, 0.0], [25.1, 0.0], [100.0, 0.0]])
    queries = np.array([[0.0, 0.0], [60.0, 0.0]])
    found = positives_within(database, queries, 25)
    assert [rows.tolist() for rows in found] == [[0, 1], []]  # the second query has none
    assert all(rows.dtype == np.int64 for rows in found)


def test_positives_equal_a_double_loop():
    rng = np.random.default_rng(0)
    database, queries = rng.uniform(0, 200, (300, 2)), rng.uniform(0, 200, (40, 2))
    for query, rows in zip(queries, positives_within(database, queries, 25), strict=True):
        assert rows.tolist() == [i for i, image in enumerate(database) if np.hypot(*(image - query)) <= 25]


def test_a_radius_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="positive_radius_m must be positive, got 0"):
        positives_within(np.zeros((1, 2)), np.zeros((1, 2)), 0)


def images(tmp_path, *rows):
    """Images at (east, heading), NaN without one."""
    named = [f"@{east}@0@10@S@@@@@{'' if np.isnan(heading) else heading}@@@@@@.jpg" for east, heading in rows]
    return build_catalogue(tmp_path, named)


@pytest.mark.parametrize(
    ("query_deg", "angle_deg", "expected"),
    [
        (10, None, [0, 1, 2, 3, 4]),
        (10, 40, [0, 1, 2]),  # 50 and 330 are 40 degrees away, the angle itself included
        (10, 39.9, [1]),
        (359.9, 29.8, [1]),
        (359.9, 29.9, [1, 2]),
        (180, 180, [0, 1, 2, 3, 4]),
        (100, 1, []),
    ],
)
def test_positives_look_the_same_way_around_north_too(tmp_path, query_deg, angle_deg, expected):
    database = images(tmp_path, (0, 50), (1, 0), (2, 330), (3, 190), (4, 89), (26, 10))
    found = find_positives(database, images(tmp_path, (0, query_deg)), 25, angle_deg=angle_deg)
    assert [rows.tolist() for rows in found] == [expected]


def test_viewing_angles_equal_a_double_loop():
    rng = np.random.default_rng(0)
    database, queries = rng.uniform(0, 360, 50), rng.uniform(0, 360, 20)
    positives = [np.sort(rng.choice(50, rng.integers(0, 6), replace=False)) for _ in queries]
    for query, before, rows in zip(queries, positives, looking_alike(positives, database, queries, 60), strict=True):
        turned = [min(abs(query - database[row]), 360 - abs(query - database[row])) for row in before]
        assert rows.tolist() == [row for row, degrees in zip(before, turned, strict=True) if degrees <= 60]
        assert rows.dtype == np.int64


def test_images_without_heading_are_refused_with_their_counts(tmp_path):
    database, queries = images(tmp_path, (0, 10), (1, np.nan), (2, np.nan)), images(tmp_path, (0, np.nan))
    with pytest.raises(ValueError, match="2 of 3 database images and 1 of 1 queries have none"):
        find_positives(database, queries, 25, angle_deg=40)
    assert [rows.tolist() for rows in find_positives(database, queries, 25)] == [[0, 1, 2]]


@pytest.mark.parametrize("angle_deg", [0, -1, 181, np.nan])
def test_an_angle_that_is_none_is_refused(tmp_path, angle_deg):
    one = images(tmp_path, (0, 10))
    with pytest.raises(ValueError, match=f"`positive_angle_deg` must be above 0 and at most 180, got {angle_deg}"):
        find_positives(one, one, 25, angle_deg=angle_deg)


def test_the_smallest_turn_is_to_the_positive_that_looks_most_alike():
    database, queries = np.array([0.0, 350, 90, np.nan]), np.array([10.0, 10, 10, np.nan, 200])
    positives = [np.array(rows, np.int64) for rows in ([0, 1, 2], [1, 2, 3], [3], [0], [])]
    found = smallest_turns(positives, database, queries)
    np.testing.assert_array_equal(found, [10, 20, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(smallest_turns([np.array([0, 2])], database, np.array([225.0])), [135])
