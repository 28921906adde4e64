import numpy as np
import pytest

from progeo.places.positives import positives_within


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
