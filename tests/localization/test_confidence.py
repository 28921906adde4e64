from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import expit, softmax

from progeo.localization.confidence import (
    calibrate,
    calibration_from_json,
    class_confidence_features,
    confidence_features,
    confidences_beyond_chance,
    score_probabilities,
    verified_features,
)


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


def test_inliers_are_compared_with_those_of_the_best_match_from_another_place():
    inliers = np.array([[39, 30, 9, 4], [12, 10, 3, 0], [7, 5, 5, 5]])
    positions_m = np.array(
        [
            [[0, 0], [3, 4], [100, 0], [0, 50]],
            [[0, 0], [np.nan, np.nan], [1, 0], [90, 0]],
            [[0, 0], [1, 0], [2, 0], [3, 0]],
        ]
    )
    found = verified_features(np.array([[0.2, 0.5]] * 3), inliers, positions_m, 25.0)
    np.testing.assert_allclose(found[:, :2], [[0.2, 0.5]] * 3)
    np.testing.assert_allclose(np.exp(found[:, 2]), [40 / 12, 13 / 12, 8 / 12])


def test_confidence_without_verification_is_not_exceeded_where_inliers_may_be_chance():
    found = confidences_beyond_chance(np.array([0.9, 0.1, 0.9]), np.array([0.3, 0.3, 0.3]), np.array([11, 11, 12]))
    assert found.tolist() == [0.3, 0.1, 0.9]


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


def drawn_scores(seed, count, temperature):
    """Scores of queries for 30 classes, best first, where they are, and whether a class drawn by softmax is near it."""
    rng = np.random.default_rng(seed)
    scores, positions = -np.sort(-rng.normal(0, 3, (count, 30)), axis=1), rng.uniform(0, 200, (count, 30, 2))
    true = (softmax(scores / temperature, axis=1).cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)
    meters = np.linalg.norm(positions[np.arange(count), true] - positions[:, 0], axis=1)
    return scores, positions, meters <= 25


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_the_temperature_that_the_classes_were_drawn_with_is_found(temperature):
    scores, positions, correct = drawn_scores(0, 4000, temperature)
    calibration = calibrate(class_confidence_features(scores, positions, 25.0), correct, 25.0)
    assert calibration.temperature == pytest.approx(temperature, rel=0.1)
    assert calibration.error < 0.03
    assert (calibration.num_photos, calibration.num_correct) == (4000, correct.sum())


def test_confidence_is_the_mass_of_the_classes_near_the_best_one():
    scores = np.array([[2.0, 1.0, 0.0, -np.inf]])
    positions = np.array([[[0, 0], [100, 0], [3, 4], [0, 0]]], float)
    features = class_confidence_features(scores, positions, 5.0)
    calibration = calibration_from_json(
        {"radius_m": 5.0, "temperature": 2.0, "num_photos": 30, "num_correct": 20, "error": 0.1}
    )
    masses = np.exp([1.0, 0.5, 0.0])
    assert calibration.confidences(features) == pytest.approx([(masses[0] + masses[2]) / masses.sum()])
    np.testing.assert_allclose(score_probabilities(scores, calibration), [[*masses / masses.sum(), 0]])
    np.testing.assert_allclose(score_probabilities(scores, None)[0, :3], softmax([2.0, 1.0, 0.0]))
    with_none = np.array([[2.0, 1.0, -np.inf], [-np.inf] * 3])
    np.testing.assert_allclose(score_probabilities(with_none, None), [[*softmax([2.0, 1.0]), 0], [1 / 3] * 3])
    assert calibration_from_json(asdict(calibration)) == calibration
    with pytest.raises(ValueError, match=r"A calibration is not .*: expected float > 0.0, got 0 in temperature"):
        calibration_from_json({**asdict(calibration), "temperature": 0})


def test_confidence_of_classes_stays_below_one_where_all_photos_are_correct():
    scores, positions, _ = drawn_scores(0, 40, 1.0)
    calibration = calibrate(class_confidence_features(scores, positions, 25.0), np.ones(40, bool), 25.0)
    found = calibration.confidences(class_confidence_features(scores, positions, 25.0))
    assert 0.9 < found.mean() < 0.999
