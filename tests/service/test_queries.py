"""What a request asks about its photos."""

from dataclasses import replace

import pytest

import progeo
from progeo.localization.confidence import Verification, VerifiedCalibration
from progeo.service.queries import Query


@pytest.fixture(scope="module")
def index(served_index):
    return progeo.open_index(served_index, device="cpu")


@pytest.mark.parametrize(
    ("below", "verify", "small"),
    [
        (None, None, True),
        (0, None, True),
        (0.45, None, False),
        (1, False, True),
        (0, True, False),
        (None, True, False),
    ],
)
def test_photos_are_decoded_in_full_size_where_they_may_be_verified(index, below, verify, small):
    calibration = VerifiedCalibration(25, (0,) * 3, (1,) * 3, (0,) * 4, num_photos=12, num_correct=6, error=0.1)
    verification = None if below is None else Verification("sift", 12, below, calibration)
    changed = replace(index, metadata=replace(index.metadata, verification=verification))
    decoding = Query(5, 0.5, None, None, verify).decoding(changed)
    assert (decoding.image_size == (48, 48)) == small
