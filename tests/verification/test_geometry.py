"""Which matched points agree with one geometry, for points whose geometry is known."""

import numpy as np
import pytest

from progeo.verification.geometry import GEOMETRIES, agreeing_points

RNG = np.random.default_rng(0)


def two_views(count):
    """Pixels of points of a room seen by two cameras that stand a meter apart, (n, 2) each."""
    points = RNG.uniform([-3, -2, 4], [3, 2, 9], (count, 3))
    turn = np.array([[np.cos(0.1), 0, np.sin(0.1)], [0, 1, 0], [-np.sin(0.1), 0, np.cos(0.1)]])
    views = [points, (points - [1, 0, 0]) @ turn.T]
    return [(400 * view[:, :2] / view[:, 2:] + 256).astype(np.float32) for view in views]


def plane_views(count):
    """Pixels of points of a plane in two images, by a known homography."""
    first = RNG.uniform(20, 480, (count, 2))
    homography = np.array([[0.9, 0.1, 20], [-0.05, 1.1, -10], [1e-4, -2e-4, 1]])
    mapped = np.concatenate([first, np.ones((count, 1))], axis=1) @ homography.T
    return [first.astype(np.float32), (mapped[:, :2] / mapped[:, 2:]).astype(np.float32)]


@pytest.mark.parametrize(("geometry", "views"), [("fundamental", two_views), ("homography", plane_views)])
def test_points_of_the_same_scene_agree_and_random_ones_do_not(geometry, views):
    first, second = views(60)
    second[40:] = RNG.uniform(0, 512, (20, 2))
    agree = agreeing_points(first, second, geometry)
    assert agree[:40].all()
    # A random point lies within 4 px of its epipolar line by chance, never of its mapped point.
    assert agree[40:].sum() <= {"fundamental": 4, "homography": 0}[geometry]


def test_a_homography_does_not_explain_a_room():
    first, second = two_views(40)
    assert agreeing_points(first, second, "fundamental").sum() == 40
    assert agreeing_points(first, second, "homography").sum() < 30


@pytest.mark.parametrize("geometry", list(GEOMETRIES))
@pytest.mark.parametrize("points", [np.empty((0, 2)), np.ones((30, 2)), np.arange(8).reshape(4, 2)])
def test_too_few_points_or_the_same_ones_agree_with_nothing(geometry, points):
    points = points.astype(np.float32)
    assert agreeing_points(points, points, geometry).tolist() == [False] * len(points)


def test_the_same_points_give_the_same_answer_every_time():
    first, second = two_views(50)
    second[25:] = RNG.uniform(0, 512, (25, 2))
    answers = [agreeing_points(first, second).tolist() for _ in range(5)]
    assert all(answer == answers[0] for answer in answers)
