import numpy as np
import pytest
from scipy.special import expit

from progeo.localization.confidence import calibrate, confidence_features


def drawn(seed, count, slope=3.0):
    """Confidence features of queries, the probability that each is correct, and whether it is."""
    rng = np.random.default_rng(seed)
    values = np.stack([rng.normal(0.8, 0.2, count), rng.exponential(0.1, count)], axis=1)
    probabilities = expit(slope * (1.0 - values[:, 0] * 1.5 + values[:, 1] * 8 - 0.3))
    return values, probabilities, rng.random(count) < probabilities


def test_confidence_features_are_the_distance_and_the_gap_to_the_nearest_match_from_another_place():
    distances = np.array([[0.2, 0.3, 0.7], [0.5, 0.6, 0.9]])
    positions_m = np.array([[[0, 0], [3, 4], [100, 0]], [[0, 0], [3, 0], [0, 4]]], float)
    np.testing.assert_allclose(confidence_features(distances, positions_m, 25.0), [[0.2, 0.5], [0.5, 0.4]])
    np.testing.assert_allclose(confidence_features(distances, positions_m, 4.0), [[0.2, 0.1], [0.5, 0.4]])


def test_a_match_without_a_position_is_from_another_place():
    distances = np.array([[0.2, 0.3, 0.7]])
    positions_m = np.array([[[0, 0], [np.nan, np.nan], [1, 0]]])
    np.testing.assert_allclose(confidence_features(distances, positions_m, 25.0), [[0.2, 0.1]])


def test_confidences_are_the_probabilities_on_new_queries():
    values, _, correct = drawn(0, 3000)
    calibration = calibrate(values, correct, 25.0)
    others, probabilities, _ = drawn(1, 3000)
    found = calibration.confidences(others)
    assert np.abs(found - probabilities).mean() < 0.02
    assert calibration.error < 0.03
    assert (calibration.num_photos, calibration.num_correct) == (3000, correct.sum())


def test_features_without_information_give_all_queries_the_fraction_of_correct_ones():
    values = np.random.default_rng(0).normal(size=(2000, 2))
    correct = np.random.default_rng(1).random(2000) < 0.7
    found = calibrate(values, correct, 25.0).confidences(values)
    assert found.mean() == pytest.approx(correct.mean(), abs=0.01)
    assert found.std() < 0.03


def test_confidence_stays_finite_where_all_photos_are_correct_or_separable():
    values, _, _ = drawn(0, 40)
    found = calibrate(values, np.ones(40, bool), 25.0).confidences(values)
    np.testing.assert_allclose(found, 41 / 42, atol=1e-3)
    apart = np.stack([np.repeat([0.1, 0.9], 20), np.zeros(40)], axis=1)
    found = calibrate(apart, np.repeat([True, False], 20), 25.0).confidences(apart)
    np.testing.assert_allclose(found, np.repeat([21 / 22, 1 / 22], 20), atol=1e-3)
