import numpy as np

from progeo.evaluation.clustering import cluster, nearest_centers


def test_the_nearest_center_is_found_also_in_several_blocks():
    random = np.random.default_rng(0)
    rows, centers = random.standard_normal((700, 5)).astype(np.float32), random.standard_normal((3000, 5))
    squared = np.square(rows[:, None].astype(float) - centers.astype(np.float32)).sum(axis=2)
    np.testing.assert_array_equal(nearest_centers(rows, centers.astype(np.float32)), squared.argmin(axis=1))


def test_the_centers_of_separate_clusters_are_their_means():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    rows = (10 * np.eye(4)[labels] + 0.1 * random.standard_normal((400, 4))).astype(np.float32)
    means = np.stack([rows[labels == label].mean(axis=0) for label in range(4)])
    # More clusters than there are keep a center in each.
    centers = cluster(rows, 12)
    assert np.linalg.norm(means[:, None] - centers, axis=2).min(axis=1).max() < 0.5
    one = cluster(rows, 1)
    np.testing.assert_allclose(one[0], rows.mean(axis=0), rtol=1e-5)


def test_the_same_rows_have_the_same_centers_and_equal_rows_finite_ones():
    rows = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    np.testing.assert_array_equal(cluster(rows, 16), cluster(rows, 16))
    np.testing.assert_allclose(cluster(np.repeat(rows[:1], 50, axis=0), 4), np.repeat(rows[:1], 4, axis=0), rtol=1e-5)
