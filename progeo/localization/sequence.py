"""The most likely track through the candidates of successive frames, by a hidden Markov model; pure computations.

The states of a frame are its K candidates and, last, "unknown": the frame was taken at none of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

Transitions = Callable[[int], np.ndarray]
"""Function of t that returns the log scores (S, S) of going from each state of frame t to each of frame t + 1."""
_UNKNOWN_SHARE = 0.5
"""Probability that a frame whose first candidate is wrong was taken at none of the others."""
_HIGHEST = 1 - 1e-6
"""Maximum confidence that is taken into account, so that no frame can make every path impossible."""
_LOSE, _FIND = 0.3, 0.5
"""Probabilities of going from a candidate to "unknown", and from "unknown" to a candidate."""

_CONTEXT_WEIGHT = 0.6
"""Weight of the other frames in the confidence of a frame."""


@dataclass(frozen=True)
class Track:
    """The candidate of each of T frames on the track."""

    candidates: np.ndarray
    """Index of the candidate, 0 to K - 1; -1 where the frame is unknown. int64 (T,)."""
    confidences: np.ndarray
    """Probability, given all frames, that the frame was taken near that candidate, or near its first one where it is
    unknown, (T,)."""


def find_track(
    distances: np.ndarray,
    positions_m: np.ndarray,
    confidences: np.ndarray,
    *,
    seconds: np.ndarray,
    map_m: np.ndarray,
    max_speed_mps: float,
    radius_m: float,
) -> Track:
    """Find the most likely track of something that moves no faster than `max_speed_mps`.

    Args:
        distances: descriptor distances of the candidates of each frame, best first, (T, K).
        positions_m: their east and north, (T, K, 2); NaN where there is no candidate, or its position is unknown.
        confidences: probability that the first candidate of a frame is correct, (T,); NaN where it is unknown.
        seconds: time of each frame, ascending, (T,).
        map_m: east and north of a sample of the images of the index, (M, 2).
        radius_m: candidates within this distance are near each other, and a correct one is near the camera.
    """
    is_near = np.stack([_distances_m(frame, frame) <= radius_m for frame in positions_m])  # False for NaN
    shares = candidate_shares(distances, is_near, np.minimum(np.nan_to_num(confidences), _HIGHEST))
    transitions = motion(positions_m, seconds, map_m, max_speed_mps=max_speed_mps, radius_m=radius_m)
    # Each candidate stands for its place, so that several images of a place do not take shares from each other.
    sums = np.stack([near @ frame for near, frame in zip(is_near, shares[:, :-1], strict=True)])
    places = np.concatenate([sums, shares[:, -1:]], axis=1)
    candidates = best_states(_logs(places), transitions)
    candidates[candidates == positions_m.shape[1]] = -1
    probabilities = state_probabilities(_logs(shares), transitions, context_weight=_CONTEXT_WEIGHT)[:, :-1]
    is_near_chosen = is_near[np.arange(len(candidates)), np.maximum(candidates, 0)]
    return Track(candidates, (is_near_chosen * probabilities).sum(axis=1))


def candidate_shares(distances: np.ndarray, is_near: np.ndarray, confidences: np.ndarray) -> np.ndarray:
    """Compute the probability of each state of each frame, given that frame only, (T, K + 1).

    The confidence of a frame is shared by all candidates near the first one. Half of the rest is that of "unknown", the
    other candidates share the other half. Among those that share, a candidate's part falls exponentially with its
    descriptor distance, on a scale of the mean difference between the highest and the lowest distance of a frame.

    Args:
        distances: descriptor distances, (T, K).
        is_near: whether two candidates are near each other, bool (T, K, K); a candidate without a position is not even
            near itself, and gets no share.
        confidences: probability that the first candidate is correct, (T,).
    """
    is_candidate = np.diagonal(is_near, axis1=1, axis2=2)
    nearest = np.where(is_candidate, distances, np.inf).min(axis=1, keepdims=True)
    beyond_nearest = np.where(is_candidate, distances - nearest, 0.0)
    scale = max(float(beyond_nearest.max(axis=1).mean()), 1e-12)
    weights = np.exp(-beyond_nearest / scale) * is_candidate
    near, other = (weights * chosen for chosen in (is_near[:, 0], ~is_near[:, 0]))
    sums = (np.maximum(part.sum(axis=1, keepdims=True), 1e-300) for part in (near, other))
    near, other = (part / total for part, total in zip((near, other), sums, strict=True))
    rest = 1 - confidences[:, None]
    shares = confidences[:, None] * near + rest * (1 - _UNKNOWN_SHARE) * other
    return np.concatenate([shares, rest * _UNKNOWN_SHARE], axis=1)


def motion(
    positions_m: np.ndarray, seconds: np.ndarray, map_m: np.ndarray, *, max_speed_mps: float, radius_m: float
) -> Transitions:
    """Return the transitions of something that moves no faster than `max_speed_mps`.

    Candidates of successive frames are within reach of each other if their distance is at most the time between the
    frames times that speed, plus `radius_m`. That two wrong ones are within reach happens by chance as often as two
    images of the index are, so its probability is divided by that chance. "unknown" has no position: after it the track
    begins anywhere.

    Args:
        positions_m: east and north of the candidates, (T, K, 2); NaN where they are unknown.
        seconds: time of each frame, ascending, (T,).
        map_m: east and north of a sample of the images of the index, (M, 2).
    """
    pairs = np.triu_indices(len(map_m), k=1)
    apart = np.sort(np.linalg.norm(map_m[pairs[0]] - map_m[pairs[1]], axis=1))

    def transitions(frame: int) -> np.ndarray:
        reach = max_speed_mps * (seconds[frame + 1] - seconds[frame]) + radius_m
        chance = (np.searchsorted(apart, reach, side="right") + 1) / (len(apart) + 1)
        distances = _distances_m(positions_m[frame], positions_m[frame + 1])
        num_before, num_after = distances.shape
        scores = np.full((num_before + 1, num_after + 1), np.log(_FIND))
        scores[:-1, :-1] = _logs((distances <= reach) * (1 - _LOSE) / chance)
        scores[:-1, -1], scores[-1, -1] = np.log(_LOSE), np.log(1 - _FIND)
        return scores

    return transitions


def best_states(scores: np.ndarray, transitions: Transitions) -> np.ndarray:
    """Find the path with the highest sum of scores of its states and transitions, int64 (T,), by Viterbi's algorithm.

    It takes O(T S^2) time, and memory for T S states and one matrix of transitions.

    Args:
        scores: log score of each state of each frame, (T, S).
        transitions: log scores between the states of successive frames.
    """
    best, previous = scores[0], np.zeros(scores.shape, np.int64)
    for frame in range(1, len(scores)):
        sums = best[:, None] + transitions(frame - 1)
        previous[frame] = sums.argmax(axis=0)
        best = sums.max(axis=0) + scores[frame]
    states = np.empty(len(scores), np.int64)
    states[-1] = best.argmax()
    for frame in range(len(scores) - 1, 0, -1):
        states[frame - 1] = previous[frame, states[frame]]
    return states


def state_probabilities(scores: np.ndarray, transitions: Transitions, *, context_weight: float = 1.0) -> np.ndarray:
    """Compute the probability of each state of each frame over all paths, (T, S), by the forward-backward algorithm.

    Args:
        scores: log score of each state of each frame, (T, S).
        transitions: log scores between the states of successive frames.
        context_weight: factor of the log score that a state gets from all other frames; 1 for independent frames, less
            for frames whose errors are alike.
    """
    before, after = np.zeros(scores.shape), np.zeros(scores.shape)
    for frame in range(1, len(scores)):
        paths = (before[frame - 1] + scores[frame - 1])[:, None] + transitions(frame - 1)
        before[frame] = logsumexp(paths, axis=0)
    for frame in range(len(scores) - 2, -1, -1):
        after[frame] = logsumexp(transitions(frame) + scores[frame + 1] + after[frame + 1], axis=1)
    together = scores + context_weight * (before + after)
    return np.exp(together - logsumexp(together, axis=1, keepdims=True))


def _logs(probabilities: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(probabilities)


def _distances_m(before_m: np.ndarray, after_m: np.ndarray) -> np.ndarray:
    """Compute the distances between the candidates of two frames, (K, L), whose east and north are (K, 2), (L, 2)."""
    return np.linalg.norm(before_m[:, None] - after_m[None], axis=2)
