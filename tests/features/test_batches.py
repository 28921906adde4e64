import numpy as np
import pytest
import torch
from PIL import Image

from progeo.data.datasets import CatalogueImages
from progeo.features.batches import extract_rows, feature_batches
from progeo.places.catalogue import read_catalogue
from progeo.progress import Progress


@pytest.fixture
def images(tmp_path):
    """Seven images of one color each, 10 times their row; the fourth cannot be read."""
    for row in range(7):
        Image.new("RGB", (4, 4), (10 * row,) * 3).save(tmp_path / f"@{row}@0@.jpg")
    (tmp_path / "@3@0@.jpg").write_bytes(b"broken")
    return CatalogueImages(read_catalogue(tmp_path), lambda image: image)


def rows_and_sizes(images):
    """The row of an image, by its color, and how many images its batch has, which tells of itself in rounding only."""
    return torch.stack(
        [(images.float().mean(dim=(1, 2, 3)) / 10).round(), torch.full((len(images),), float(len(images)))], dim=1
    )


@pytest.mark.parametrize(
    ("filled_to", "sizes"), [(1, [3, 3, 3, 3, 3, 1]), (3, [3] * 6), (4, [4] * 6), (None, [3, 3, 3, 2, 2, 1])]
)
def test_batches_have_as_many_images_as_asked_for_whichever_can_be_read(images, filled_to, sizes):
    batches = feature_batches(
        rows_and_sizes,
        images,
        [range(3), range(3, 6), range(6, 7)],
        width=2,
        num_workers=0,
        bar=Progress("test", total=7, hidden=True),
        filled_to=filled_to,
    )
    batches = list(batches)
    assert np.concatenate([batch.rows for batch in batches]).tolist() == [0, 1, 2, 4, 5, 6]
    values = np.concatenate([batch.values for batch in batches])
    assert values.tolist() == [[row, size] for row, size in zip([0, 1, 2, 4, 5, 6], sizes, strict=True)]
    assert [list(batch.unreadable) for batch in batches] == [[], [3], []]


def test_no_features_are_extracted_of_a_batch_without_readable_images(images):
    values, unreadable = extract_rows(
        rows_and_sizes, images, range(2, 5), [[3], [2, 4]], width=2, num_workers=0, what="test"
    )
    assert values.tolist() == [[2, 2], [0, 0], [4, 2]]
    assert list(unreadable) == [3]
