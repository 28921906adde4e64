"""Photos that are images of the database themselves: that they are found says nothing of new photos."""

import filecmp
from pathlib import Path

import numpy as np

from progeo.files import each_file
from progeo.places.catalogue import Catalogue


def find_themselves(photos: Catalogue, database: Catalogue, rows: np.ndarray) -> np.ndarray:
    """Which photos are found as themselves: as the same file, or as one of the same content, bool (Q,).

    Of a database image whose file is gone, as after a move, the name is compared.

    Args:
        photos: Q photos.
        database: the images that they were searched in.
        rows: database rows that were found for each photo, int64 (Q, K); -1 where there is none.
    """
    found = ([database.path(row) for row in some if row >= 0] for some in rows.tolist())
    pairs = zip(map(photos.path, range(len(rows))), found, strict=True)
    return np.fromiter(each_file(_is_among, pairs, total=len(rows)), bool, len(rows))


def _is_among(pair: tuple[Path, list[Path]]) -> bool:
    photo, images = pair
    return any(_is_same(photo, image) for image in images)


def _is_same(photo: Path, image: Path) -> bool:
    try:
        return filecmp.cmp(photo, image, shallow=False)
    except OSError:
        return photo.is_file() and photo.name == image.name
