import numpy as np
import pytest

from progeo.evaluation.recall import recall_at
from progeo.evaluation.search import nearest_neighbors

# Four queries: right at rank 1; right at rank 3; never right; without any positive.
PREDICTIONS = np.array([[4, 1, 0], [2, 3, 5], [0, 1, 2], [3, 4, 5]])
POSITIVES = [np.array([4]), np.array([5, 9]), np.array([7]), np.array([], np.int64)]


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        ((1,), [25]),
        ((1, 2, 3), [25, 25, 50]),  # a query without positive counts as missed
        ((3, 1), [50, 25]),  # in the order asked for
        ((100,), [50]),  # more than there are: all there are
    ],
)
def test_recalls_of_a_hand_made_matrix(ns, expected):
    assert recall_at(PREDICTIONS, POSITIVES, ns).tolist() == expected


def test_recall_equals_a_double_loop():
    rng = np.random.default_rng(0)
    predictions = np.stack([rng.permutation(30)[:20] for _ in range(50)])
    positives = [np.flatnonzero(rng.random(30) < 0.05) for _ in range(50)]
    expected = []
    for n in (1, 5, 10, 20):
        hits = 0
        for found, right in zip(predictions, positives, strict=True):
            hits += any(row in right for row in found[:n])
        expected.append(100 * hits / 50)
    assert recall_at(predictions, positives).tolist() == pytest.approx(expected)


def test_what_makes_no_recall_is_refused():
    with pytest.raises(ValueError, match="predictions for 4 queries, but positives for 3"):
        recall_at(PREDICTIONS, POSITIVES[:3])
    with pytest.raises(ValueError, match="at least one query"):
        recall_at(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match="at least 1, got 0"):
        recall_at(PREDICTIONS, POSITIVES, (0, 1))


def test_neighbors_equal_a_sort_of_all_distances():
    rng = np.random.default_rng(0)
    database, queries = rng.normal(size=(200, 8)).astype(np.float32), rng.normal(size=(20, 8)).astype(np.float32)
    found = nearest_neighbors([database], queries, 10)
    distances = np.linalg.norm(queries[:, None] - database[None], axis=2)
    np.testing.assert_array_equal(found.rows, distances.argsort(axis=1)[:, :10])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :10], rtol=1e-4)


@pytest.mark.parametrize("at_once", [7, 64, 400])
def test_of_equally_near_images_the_first_comes_first_as_in_a_double_loop(at_once):
    rng = np.random.default_rng(1)
    database, queries = rng.integers(0, 3, (400, 4)), rng.integers(0, 3, (60, 4))  # whole numbers: no rounding
    parts = (database[start : start + at_once].astype(np.float16) for start in range(0, 400, at_once))
    found = nearest_neighbors(parts, queries.astype(np.float32), 30).rows
    positives = [np.flatnonzero(rng.random(400) < 0.02) for _ in queries]
    hits = dict.fromkeys((1, 5, 20), 0)
    for query, right, rows in zip(queries, positives, found, strict=True):
        distances = [sum((a - b) ** 2 for a, b in zip(query, image, strict=True)) for image in database]
        expected = sorted(range(400), key=lambda row: (distances[row], row))
        assert rows.tolist() == expected[:30]
        for n in hits:
            hits[n] += any(row in right for row in expected[:n])
    assert recall_at(found, positives, tuple(hits)).tolist() == [100 * hit / 60 for hit in hits.values()]


def test_a_small_database_gives_all_it_has():
    assert nearest_neighbors([np.eye(3, dtype=np.float32)], np.eye(3, dtype=np.float32), 20).rows.shape == (3, 3)
