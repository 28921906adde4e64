"""Answers of the service."""

from dataclasses import replace

import pytest

import progeo
from progeo.service.answers import answer


@pytest.mark.parametrize("orientation", ["exif", "ignore"])
def test_an_answer_tells_how_photos_were_rotated(orientation, served_index):
    index = progeo.open_index(served_index, device="cpu")
    index = replace(index, metadata=replace(index.metadata, orientation=orientation))
    assert answer(index, [], seconds=0.0, has_images=False).orientation == orientation
