from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from classifiers import classifier_of

from progeo.evaluation.classification import (
    class_means,
    class_probabilities,
    lie_in_classes,
    localization_recall,
    rank_classes,
)
from progeo.places.catalogue import Catalogue


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


def test_class_probabilities_are_a_softmax_over_all_classes_averaged_over_crops():
    rng = np.random.default_rng(0)
    crops, vectors = rng.normal(size=(4, 3, 8)), rng.normal(size=(20, 8))
    rows = np.array([[0, 5, -1], [19, 3, 2], [7, 7, 8], [-1, -1, 1]])
    found = class_probabilities(crops.reshape(4, -1), vectors, rows, scale=5.0)
    for query, classes, probabilities in zip(crops, rows, found, strict=True):
        expected = np.zeros(20)
        for crop in query:
            cosines = [sum(crop * vector) / np.linalg.norm(crop) / np.linalg.norm(vector) for vector in vectors]
            odds = np.exp(5.0 * np.array(cosines))
            expected += odds / odds.sum() / 3
        wanted = [0.0 if label < 0 else expected[label] for label in classes]
        np.testing.assert_allclose(probabilities, wanted, rtol=1e-4)


def test_images_lie_in_the_cell_of_a_class_up_to_its_border():
    classifier = classifier_of([[500_000, 4_000_000, 0], [500_100, 4_000_000, 90]], heading_bin_deg=90)
    east = [500_000.0, 500_019.9, 500_020.5, 500_105.0, 499_999, np.nan]
    columns = {"east": east, "north": [4_000_010.0] * 6, "zone": pa.array([10] * 6, pa.int8()), "heading": [45.0] * 6}
    images = Catalogue(Path("x"), pa.table({"path": list("abcdef"), **columns}))
    assert lie_in_classes(images, classifier).tolist() == [True, True, False, True, False, False]
