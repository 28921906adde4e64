import numpy as np
import pytest
from scipy.special import expit

from progeo.localization.confidence import calibrate, evidence


def drawn(seed, count, slope=3.0):
    """Evidence of queries, the probability that each is right, and whether it is."""
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(0.8, 0.2, count), rng.exponential(0.1, count)], axis=1)
    probabilities = expit(slope * (1.0 - values[:, 0] * 1.5 + values[:, 1] * 8 - 0.3))
    return values, probabilities, rng.random(count) < probabilities


def test_evidence_is_the_distance_and_how_much_farther_another_place_is():
    distances = np.array([[0.2, 0.3, 0.7], [0.5, 0.6, 0.9]])
    places_m = np.array([[[0, 0], [3, 4], [100, 0]], [[0, 0], [3, 0], [0, 4]]], float)
    np.testing.assert_allclose(evidence(distances, places_m, 25.0), [[0.2, 0.5], [0.5, 0.4]])
    np.testing.assert_allclose(evidence(distances, places_m, 4.0), [[0.2, 0.1], [0.5, 0.4]])


def test_a_place_that_is_not_known_is_another_place():
    distances = np.array([[0.2, 0.3, 0.7]])
    places_m = np.array([[[0, 0], [np.nan, np.nan], [1, 0]]])
    np.testing.assert_allclose(evidence(distances, places_m, 25.0), [[0.2, 0.1]])


def test_confidences_are_the_probabilities_on_queries_never_seen():
    values, _, right = drawn(0, 3000)
    calibration = calibrate(values, right, 25.0)
    others, probabilities, _ = drawn(1, 3000)
    found = calibration.confidences(others)
    assert np.abs(found - probabilities).mean() < 0.02
    assert calibration.error < 0.03
    assert (calibration.num_photos, calibration.num_right) == (3000, right.sum())


def test_evidence_that_says_nothing_gives_the_share_of_right_ones_to_all():
    values = np.random.default_rng(0).normal(size=(2000, 2))
    right = np.random.default_rng(1).random(2000) < 0.7
    found = calibrate(values, right, 25.0).confidences(values)
    assert found.mean() == pytest.approx(right.mean(), abs=0.01)
    assert found.std() < 0.03


def test_nobody_is_infinitely_sure_where_all_photos_are_right_or_easily_told_apart():
    values, _, _ = drawn(0, 40)
    found = calibrate(values, np.ones(40, bool), 25.0).confidences(values)
    np.testing.assert_allclose(found, 41 / 42, atol=1e-3)
    apart = np.stack([np.repeat([0.1, 0.9], 20), np.zeros(40)], axis=1)
    found = calibrate(apart, np.repeat([True, False], 20), 25.0).confidences(apart)
    np.testing.assert_allclose(found, np.repeat([21 / 22, 1 / 22], 20), atol=1e-3)
