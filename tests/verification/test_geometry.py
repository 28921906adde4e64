"""Which matched points agree with one geometry, for points whose geometry is known."""

import numpy as np
import pytest

from progeo.verification.geometry import agreeing_points

RNG = np.random.default_rng(0)


def two_views(count):
    """Pixels of points of a room seen by two cameras that stand a meter apart, (n, 2) each."""
    points = RNG.uniform([-3, -2, 4], [3, 2, 9], (count, 3))
    turn = np.array([[np.cos(0.1), 0, np.sin(0.1)], [0, 1, 0], [-np.sin(0.1), 0, np.cos(0.1)]])
    views = [points, (points - [1, 0, 0]) @ turn.T]
    return [(400 * view[:, :2] / view[:, 2:] + 256).astype(np.float32) for view in views]


def test_points_of_the_same_scene_agree_and_random_ones_do_not():
    first, second = two_views(60)
    second[40:] = RNG.uniform(0, 512, (20, 2))
    agree = agreeing_points(first, second)
    assert agree[:40].all()
    assert agree[40:].sum() <= 4  # a random point lies within 4 px of its epipolar line by chance


@pytest.mark.parametrize("points", [np.empty((0, 2)), np.ones((30, 2)), np.arange(8).reshape(4, 2)])
def test_too_few_points_or_the_same_ones_agree_with_nothing(points):
    points = points.astype(np.float32)
    assert agreeing_points(points, points).tolist() == [False] * len(points)


def test_the_same_points_give_the_same_answer_every_time():
    first, second = two_views(50)
    second[25:] = RNG.uniform(0, 512, (25, 2))
    answers = [agreeing_points(first, second).tolist() for _ in range(5)]
    assert all(answer == answers[0] for answer in answers)
