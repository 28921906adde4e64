"""Local features of images, and which of them match."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from verification.pictures import picture

from progeo.verification.local_features import (
    MAX_FEATURES,
    SIDE_PX,
    LocalFeatures,
    extract_local_features,
    mutual_matches,
    resized_pixels,
)


def same(one, other):
    return (
        one.shape == other.shape
        and np.array_equal(one.steps, other.steps)
        and np.array_equal(one.descriptors, other.descriptors)
    )


def test_features_are_the_strongest_first_bounded_and_of_unit_length():
    noise = np.random.default_rng(0).integers(0, 256, (256, 250), np.uint8)
    gray = cv2.resize(noise, (500, 512), interpolation=cv2.INTER_CUBIC)
    features = extract_local_features(torch.from_numpy(gray).expand(3, -1, -1))
    assert len(features) == MAX_FEATURES
    assert features.shape == (SIDE_PX, 500)
    all_points = cv2.SIFT.create(contrastThreshold=0.01).detect(gray)
    strongest = sorted(all_points, key=lambda point: -point.response)
    assert len(strongest) > MAX_FEATURES
    assert np.abs(features.points[:10] - [point.pt for point in strongest[:10]]).max() < 1 / 64
    lengths = np.linalg.norm(features.descriptors / 512, axis=1)
    assert np.abs(lengths - 1).max() < 0.1  # the largest values are clipped


def test_features_are_the_same_in_every_thread():
    pixels = picture(1, 300, 400)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(extract_local_features, [pixels] * 4))
    assert len(found[0]) > 100
    assert all(same(each, found[0]) for each in found)


@pytest.mark.parametrize("shape", [(1, 1), (5, 700), (300, 2)])
def test_a_sliver_and_a_plain_image_have_no_features(shape):
    assert len(extract_local_features(torch.full((3, *shape), 90, dtype=torch.uint8))) == 0
    assert len(extract_local_features(torch.zeros((3, 64, 64), dtype=torch.uint8))) == 0


def test_features_survive_compression():
    features = extract_local_features(picture(2, 256, 192))
    stored = features.to_bytes()
    assert same(LocalFeatures.from_bytes(stored), features)
    assert len(stored) < 0.9 * features.num_bytes


@pytest.mark.parametrize("damage", [lambda b: b[:3], lambda b: b[:-1], lambda b: b"\xff" * 6 + b[6:], lambda b: b""])
def test_damaged_features_are_refused(damage):
    stored = extract_local_features(picture(2, 128, 128)).to_bytes()
    with pytest.raises(ValueError, match=r"truncated|impossible|requires a buffer|ZSTD|zstd|Corrupt"):
        LocalFeatures.from_bytes(damage(stored))


@pytest.mark.parametrize(
    ("shape", "multiple", "expected"),
    [
        ((1000, 500), 1, (512, 256)),
        ((100, 100), 1, (512, 512)),
        ((768, 1024), 16, (384, 512)),
        ((1, 900), 16, (16, 512)),
    ],
)
def test_the_longer_side_of_an_image_has_512_pixels(shape, multiple, expected):
    assert resized_pixels(torch.zeros((3, *shape), dtype=torch.uint8), multiple=multiple).shape == (*expected, 3)


def test_matches_are_mutual_nearest_and_clearly_nearer_than_the_second():
    first = np.array([[0, 0], [100, 0], [50, 50], [0, 104]], np.uint8)
    second = np.array([[0, 100], [3, 0], [101, 0], [103, 0], [200, 200]], np.uint8)
    # Row 0 -> 1; row 1 -> 2 at distance 1, second nearest at 3; row 2 is nobody's nearest; row 3 -> 0 at distance 4.
    assert mutual_matches(first, second, max_ratio=0.8).tolist() == [[1, 2], [0, 1], [3, 0]]
    assert mutual_matches(first, second, max_ratio=0.3).tolist() == [[0, 1], [3, 0]]


@pytest.mark.parametrize(("first", "second"), [(0, 5), (5, 0), (5, 1)])
def test_without_two_candidates_nothing_matches(first, second):
    assert mutual_matches(np.zeros((first, 4), np.uint8), np.zeros((second, 4), np.uint8), max_ratio=0.8).shape == (
        0,
        2,
    )
