"""Detect queries that are database images themselves, whose recall says nothing about new photos."""

import filecmp
from pathlib import Path

import numpy as np

from progeo.files import each_file, is_file
from progeo.places.catalogue import Catalogue
from progeo.remote_files import RemotePath


def find_copies(photos: Catalogue, database: Catalogue, rows: np.ndarray) -> np.ndarray:
    """Return which photos are among the database images retrieved for them, by content, bool (Q,).

    If a database image no longer exists, for example after a move, file names are compared.

    Args:
        photos: Q photos.
        rows: retrieved database rows of each photo, int64 (Q, K); -1 where there is none.
    """
    found = ([database.path(row) for row in some if row >= 0] for some in rows.tolist())
    pairs = zip(map(photos.path, range(len(rows))), found, strict=True)

    def is_copied(pair: tuple[Path | RemotePath, list[Path | RemotePath]]) -> bool:
        return any(_is_same(pair[0], image) for image in pair[1])

    is_copy = each_file(is_copied, pairs, total=len(rows), description="comparing files with those found")
    return np.fromiter(is_copy, bool, len(rows))


def _is_same(photo: Path | RemotePath, image: Path | RemotePath) -> bool:
    try:
        if isinstance(photo, Path) and isinstance(image, Path):
            return filecmp.cmp(photo, image, shallow=False)
        return photo.stat().st_size == image.stat().st_size and photo.read_bytes() == image.read_bytes()
    except OSError:
        return is_file(photo) and photo.name == image.name
