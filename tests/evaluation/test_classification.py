import numpy as np
import pytest

from progeo.evaluation.classification import class_means, localization_recall, rank_classes


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_classes_are_ranked_by_dot_products_or_cosines(normalize, has_bias):
    rng = np.random.default_rng(0)
    queries, vectors = rng.normal(size=(6, 8)), rng.normal(size=(30, 8)) * rng.uniform(0.1, 5, (30, 1))
    bias = rng.normal(size=30) if has_bias else None
    found = rank_classes(queries, vectors, bias=bias, normalize=normalize, count=7)
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        expected = []
        for row, vector in enumerate(vectors):
            score = sum(a * b for a, b in zip(query, vector, strict=True))
            if normalize:
                score /= np.sqrt(sum(query**2)) * np.sqrt(sum(vector**2))
            elif bias is not None:
                score += bias[row]
            expected.append((-score, row))
        assert rows.tolist() == [row for _, row in sorted(expected)[:7]]
        np.testing.assert_allclose(scores, [-score for score, _ in sorted(expected)[:7]], rtol=1e-4, atol=1e-5)


def test_equal_scores_are_ordered_by_row_and_all_classes_are_returned_at_most():
    found = rank_classes(np.ones((2, 3)), np.ones((4, 3)), count=9)
    assert found.rows.tolist() == [[0, 1, 2, 3]] * 2


def test_localization_recall_counts_centers_at_the_radius():
    rows = np.array([[0, 1, 2], [2, 1, 0], [1, 2, -1], [-1, -1, -1]])
    centers = np.array([[0, 0], [30, 0], [5_000_000, 0]])
    queries = np.array([[0, 25], [0, 0], [100, 0], [0, 0]])
    found = [
        localization_recall(rows, centers, queries, ns=(1, 2, 3, 9), radius_m=radius).tolist() for radius in (25, 30)
    ]
    assert found == [[25, 25, 50, 50], [25, 50, 50, 50]]


def test_class_means_are_unit_means_of_unit_descriptors():
    rng = np.random.default_rng(0)
    values, labels = rng.normal(size=(50, 4)).astype(np.float16), rng.integers(-1, 5, 50)
    labels[labels == 3] = 4
    found = class_means(np.split(values, [7, 7, 30]), labels, 6)
    for label in range(6):
        mean = sum((row / np.linalg.norm(row) for row in values[labels == label].astype(float)), start=np.zeros(4))
        expected = mean / np.linalg.norm(mean) if (labels == label).any() else mean
        np.testing.assert_allclose(found[label], expected, rtol=1e-6)
