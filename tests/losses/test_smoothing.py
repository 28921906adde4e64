"""Labels smoothed by distance, against a loop in double precision."""

import math

import numpy as np
import pytest
import torch

from progeo.losses import distance_smoothed_labels

CORNERS = np.array([[549120, 4180900], [549120, 4180940], [549160, 4180900], [4549160, 180900]])
IMAGES = np.array([[549120.003, 4180919.998], [549139.5, 4180941.25], [549171.0, 4180910.0], [549130.0, 4180910.0]])
LABELS = [0, 1, 2, 0]


@pytest.mark.parametrize("smoothing_m", [0.5, 20, 1e9])
def test_targets_fall_with_the_distance_of_centers_beyond_that_of_the_own_class(smoothing_m):
    expected = []
    for (east, north), label in zip(IMAGES, LABELS, strict=True):
        distances = [math.hypot(east - x - 10, north - y - 10) for x, y in CORNERS]
        shares = [math.exp(-(distance - distances[label]) / smoothing_m) for distance in distances]
        expected.append([share / sum(shares) for share in shares])
    own = torch.from_numpy(IMAGES - CORNERS[LABELS] - 10).float()
    found = distance_smoothed_labels(own, torch.tensor(LABELS), torch.from_numpy(CORNERS), smoothing_m=smoothing_m)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=3e-5, atol=1e-12)
    assert found.argmax(dim=1).tolist() == LABELS or smoothing_m == 1e9
    moved = torch.from_numpy(CORNERS + np.array([10**7, -(10**6)]))  # only differences count
    again = distance_smoothed_labels(own, torch.tensor(LABELS), moved, smoothing_m=smoothing_m)
    assert torch.equal(again, found)
