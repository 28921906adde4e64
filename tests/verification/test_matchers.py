"""Pairs of images whose geometry is known are matched where they should."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from verification.pictures import picture, warped

from progeo.verification.matchers import MAX_LINES, VismatchMatcher, build_matcher

TURN = np.array([[np.cos(0.3), -np.sin(0.3), 90.0], [np.sin(0.3), np.cos(0.3), -60.0], [0, 0, 1]])
TILT = np.array([[0.9, 0.05, 10.0], [-0.05, 1.0, 20.0], [2e-4, 1e-4, 1]])


def match(matcher, first, second):
    return matcher.match(matcher.prepare(first), matcher.prepare(second))


def mapped(lines, homography, width, height):
    """Pixels where the first points of lines should be in the second image, and where they are."""
    points = np.concatenate([lines[:, :2] * [width, height], np.ones((len(lines), 1))], axis=1) @ homography.T
    return points[:, :2] / points[:, 2:], lines[:, 2:] * [width, height]


@pytest.mark.parametrize("homography", [TURN, TILT])
def test_a_turned_or_tilted_view_matches_at_the_points_of_its_homography(homography):
    first = picture(3, 384, 512)
    pair = match(build_matcher("sift"), first, warped(first, homography))
    assert pair.inliers > 100
    assert pair.lines.shape == (MAX_LINES, 4)
    expected, found = mapped(pair.lines, homography, 512, 384)
    # A wrong match along the epipolar line of its point agrees, too.
    assert np.mean(np.linalg.norm(expected - found, axis=1) < 4) > 0.9


def test_a_crop_matches_in_fractions_of_each_image():
    first = picture(4, 400, 512)
    pair = match(build_matcher("sift"), first, first[:, 100:300, 128:384])
    assert pair.inliers > 50
    x, y, u, v = pair.lines.T
    distances = np.hypot(u - (x * 512 - 128) / 256, v - (y * 400 - 100) / 200)
    assert np.mean(distances < 0.02) > 0.9


def test_other_pictures_hardly_match():
    matcher = build_matcher("sift")
    first = picture(5, 384, 512)
    assert match(matcher, first, picture(6, 384, 512)).inliers < 15
    nothing = match(matcher, first, torch.zeros((3, 40, 40), dtype=torch.uint8))
    assert nothing.inliers == 0
    assert nothing.lines.shape == (0, 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loftr", "There is no matcher 'loftr': take sift or vismatch:NAME"),
        ("sift:fast", "There is one sift, not sift:fast"),
    ],
)
def test_an_unknown_matcher_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        build_matcher(name)


def test_a_missing_library_is_named_with_its_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "vismatch", None)
    with pytest.raises(ValueError, match=r"vismatch:loftr needs the library vismatch.*progeo\[match\]"):
        build_matcher("vismatch:loftr")


class Library:
    """The part of vismatch that is used, with a matcher that knows that the second image is the first one shifted."""

    available_models = ("shifted", "heavy")

    @staticmethod
    def get_matcher(name, device):
        if name == "heavy":
            raise RuntimeError("no weights")

        def matcher(first, second):
            if not second.any():
                raise IndexError("no features")
            points = np.random.default_rng(0).uniform(10, 250, (150, 2))
            return {
                "matched_kpts0": points,
                "matched_kpts1": points + np.array([5, 0]),
                "shapes": (first.shape, second.shape),
            }

        return Shifted(matcher)


class Shifted(SimpleNamespace):
    def __init__(self, matcher):
        super().__init__(matcher=matcher, skip_ransac=False)

    def __call__(self, *images):
        found = self.matcher(*images)
        assert self.skip_ransac
        assert found["shapes"] == ((3, 384, 512), (3, 256, 512))
        assert images[0].max() <= 1
        return found


@pytest.fixture
def library(monkeypatch):
    monkeypatch.setitem(sys.modules, "vismatch", Library)


def test_points_of_vismatch_become_lines_in_fractions(library):
    matcher = build_matcher("vismatch:shifted")
    assert isinstance(matcher, VismatchMatcher)
    assert matcher.name == "vismatch:shifted"
    pair = match(matcher, picture(0, 300, 400), picture(1, 100, 200))
    assert pair.inliers == 150
    assert np.allclose(pair.lines[:, 2] * 512, pair.lines[:, 0] * 512 + 5, atol=1e-3)
    assert np.allclose(pair.lines[:, 3] * 256, pair.lines[:, 1] * 384, atol=1e-3)


def test_a_pair_at_which_vismatch_fails_has_no_inliers_and_is_logged_once(library, caplog):
    matcher, black = build_matcher("vismatch:shifted"), torch.zeros((3, 100, 200), dtype=torch.uint8)
    with caplog.at_level(logging.WARNING, "progeo"):
        assert [match(matcher, picture(0, 300, 400), black).inliers for _ in range(2)] == [0, 0]
    assert [record.message for record in caplog.records if "no features" in record.message] == [
        "vismatch:shifted fails at a pair of images, which gets no inliers: no features"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heavy", "vismatch:heavy cannot be loaded: RuntimeError: no weights"),
        ("light", "vismatch has no matcher 'light'; it has shifted"),
    ],
)
def test_a_matcher_that_vismatch_lacks_or_cannot_load_is_refused(library, name, message):
    with pytest.raises(ValueError, match=message):
        build_matcher(f"vismatch:{name}")
