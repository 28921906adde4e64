"""Tracks through candidates: against all paths, and on rows computed by hand."""

import itertools

import numpy as np
import pytest
from scipy.special import logsumexp

from progeo.localization.sequence import (
    best_states,
    candidate_shares,
    find_track,
    motion,
    state_probabilities,
)


def random_model(seed, num_frames, num_states):
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 2, (num_frames, num_states))
    matrices = rng.normal(0, 2, (num_frames - 1, num_states, num_states))
    matrices[:, :-1][rng.random(matrices[:, :-1].shape) < 0.4] = -np.inf  # the last state leads everywhere
    return scores, matrices


def paths_and_sums(scores, matrices):
    """All paths and their scores, in loops."""
    paths = list(itertools.product(range(scores.shape[1]), repeat=len(scores)))
    sums = []
    for path in paths:
        total = sum(scores[frame, state] for frame, state in enumerate(path))
        total += sum(matrices[frame][path[frame], path[frame + 1]] for frame in range(len(path) - 1))
        sums.append(total)
    return np.array(paths), np.array(sums)


@pytest.mark.parametrize(("seed", "num_frames", "num_states"), [(0, 5, 4), (1, 6, 3), (2, 1, 4), (3, 4, 5), (4, 7, 2)])
def test_the_best_of_all_paths_is_found(seed, num_frames, num_states):
    scores, matrices = random_model(seed, num_frames, num_states)
    paths, sums = paths_and_sums(scores, matrices)
    np.testing.assert_array_equal(best_states(scores, matrices.__getitem__), paths[sums.argmax()])


@pytest.mark.parametrize(("seed", "num_frames", "num_states"), [(0, 5, 4), (1, 6, 3), (2, 1, 4), (3, 4, 5), (4, 7, 2)])
def test_probabilities_are_sums_over_all_paths(seed, num_frames, num_states):
    scores, matrices = random_model(seed, num_frames, num_states)
    paths, sums = paths_and_sums(scores, matrices)
    chances = np.exp(sums - logsumexp(sums))
    expected = [[chances[paths[:, frame] == state].sum() for state in range(num_states)] for frame in range(num_frames)]
    np.testing.assert_allclose(state_probabilities(scores, matrices.__getitem__), expected, atol=1e-12)


def test_candidates_near_the_first_share_its_confidence():
    distances = np.array([[1.0, 1.0, 2.0, 3.0]])
    is_near = np.zeros((1, 4, 4), bool)
    is_near[0, :2, :2] = is_near[0, 2, 2] = is_near[0, 3, 3] = True
    other = np.exp(-np.array([0.5, 1.0])) / np.exp(-np.array([0.5, 1.0])).sum()  # the scale is 3 - 1
    expected = [[0.4, 0.4, 0.1 * 0.5 * 2 * other[0], 0.1 * 0.5 * 2 * other[1], 0.1]]
    np.testing.assert_allclose(candidate_shares(distances, is_near, np.array([0.8])), expected)


def test_a_candidate_without_a_position_gets_no_share():
    is_near = np.array([[[True, False], [False, False]]])
    shares = candidate_shares(np.array([[1.0, 1.1]]), is_near, np.array([0.5]))
    np.testing.assert_allclose(shares, [[0.5, 0.0, 0.25]])


def test_only_candidates_within_reach_follow_each_other():
    positions = np.array([[[0.0, 0], [1000, 0]], [[50.0, 0], [np.nan, np.nan]]])
    map_m = np.array([[0.0, 0], [40, 0], [500, 0]])  # 40, 460 and 500 m apart
    scores = motion(positions, np.array([0.0, 2.0]), map_m, max_speed_mps=10, radius_m=30)(0)
    reachable = 0.7 / (2 / 4)  # one of three pairs is within 50 m, and one is added to both
    expected = np.log([[reachable, 1e-300, 0.3], [1e-300, 1e-300, 0.3], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(np.maximum(scores, np.log(1e-300)), expected)
    slower = motion(positions, np.array([0.0, 1.9]), map_m, max_speed_mps=10, radius_m=30)(0)
    assert slower[0, 0] == -np.inf


def drive(num_frames, *, seed=0, wrong=(), lost=()):
    """A drive along a line at 10 m/s: the correct candidate is first, second where `wrong`, absent where `lost`."""
    rng = np.random.default_rng(seed)
    positions = rng.uniform(-5000, 5000, (num_frames, 6, 2))
    truth = np.stack([10.0 * np.arange(num_frames), np.zeros(num_frames)], axis=1)
    for frame in range(num_frames):
        if frame not in lost:
            positions[frame, int(frame in wrong)] = truth[frame]
    distances = np.tile(np.linspace(0.5, 1, 6), (num_frames, 1))
    confidences = np.full(num_frames, 0.6)
    confidences[list(lost)] = 0.2
    options = {"map_m": rng.uniform(-5000, 5000, (200, 2)), "max_speed_mps": 15, "radius_m": 25}
    return distances, positions, confidences, {"seconds": np.arange(num_frames, dtype=float), **options}


def test_a_track_passes_through_wrong_first_candidates_and_has_gaps():
    *data, options = drive(20, wrong=(4, 5, 11), lost=(14, 15))
    track = find_track(*data, **options)
    expected = [-1 if frame in (14, 15) else int(frame in (4, 5, 11)) for frame in range(20)]
    assert track.candidates.tolist() == expected
    assert (track.confidences[:14] > 0.9).all() and (track.confidences[14:16] < 0.2).all()


def test_a_jump_is_no_part_of_a_track_unless_there_is_time_for_it():
    *data, options = drive(9)
    data[1][4, 0] += (400, 0)
    assert find_track(*data, **options).candidates.tolist() == [0, 0, 0, 0, -1, 0, 0, 0, 0]
    options["seconds"][4:] += 30
    options["seconds"][5:] += 30
    assert find_track(*data, **options).candidates.tolist() == [0] * 9


def test_many_images_of_a_place_do_not_take_its_confidence_from_each_other():
    """Six images of a place with 0.6 in all, and one of another place with half of the rest."""
    positions = np.zeros((1, 7, 2))
    positions[0, 6] = 1000
    options = {"seconds": np.zeros(1), "map_m": np.eye(2), "max_speed_mps": 1, "radius_m": 25}
    track = find_track(np.ones((1, 7)), positions, np.array([0.6]), **options)
    assert track.candidates.tolist() == [0]
    np.testing.assert_allclose(track.confidences, [0.6])


def test_a_single_frame_keeps_its_own_confidence():
    *data, options = drive(1)
    track = find_track(*data, **options)
    assert track.candidates.tolist() == [0]
    np.testing.assert_allclose(track.confidences, [0.6])


def test_a_frame_without_any_candidate_is_unknown():
    distances, positions, confidences, options = drive(3)
    positions[1], confidences[1] = np.nan, np.nan
    track = find_track(distances, positions, confidences, **options)
    assert track.candidates.tolist() == [0, -1, 0] and track.confidences[1] == 0


def test_certain_frames_that_exclude_each_other_are_no_error():
    *data, options = drive(2)
    data[1][1] += 3000
    data[2][:] = 1.0
    track = find_track(*data, **options)
    assert sorted(track.candidates.tolist()) == [-1, 0] and np.isfinite(track.confidences).all()


def test_other_frames_count_less_with_a_lower_weight():
    scores, transitions = np.log([[0.8, 0.2], [0.5, 0.5]]), np.log([[0.9, 0.1], [0.1, 0.9]])
    for weight, odds in ((1.0, 0.74 / 0.26), (0.5, np.sqrt(0.74 / 0.26)), (0.0, 1.0)):  # 0.8 * 0.9 + 0.2 * 0.1
        found = state_probabilities(scores, lambda frame: transitions, context_weight=weight)
        np.testing.assert_allclose(found[1], [odds / (1 + odds), 1 / (1 + odds)])
