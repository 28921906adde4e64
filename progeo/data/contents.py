"""Whether image files are the ones they were, told by a sample: the size and time of many, the content of some."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from progeo.files import each_file
from progeo.places.catalogue import Catalogue

MAX_CHECKED = 10_000
"""Of these the size and the time of the last change are looked at, spread evenly over the images."""
MAX_READ = 1_000
"""And the content of so many of them."""
SEEN = np.dtype([("size", np.int64), ("changed_ns", np.int64), ("digest", "S16")])
"""What is kept of a file: its bytes, -1 where it is not there, and of those that were read a digest of them."""

_Found = TypeVar("_Found")


def rows_looked_at(count: int) -> np.ndarray:
    """Which of so many images are looked at, int64."""
    return _spread(count, MAX_CHECKED)


def see_files(catalogue: Catalogue) -> np.ndarray:
    """What there is to see of the image files of a catalogue: `SEEN` of its `rows_looked_at`."""
    rows = rows_looked_at(len(catalogue))
    seen = np.zeros(len(rows), SEEN)
    seen["size"], seen["changed_ns"] = _sizes_and_times(catalogue, rows)
    read = _spread(len(rows), MAX_READ)
    seen["digest"][read] = _digests(catalogue, rows[read])
    return seen


def changed_files(before: np.ndarray, catalogue: Catalogue) -> np.ndarray:
    """Find the images of a catalogue that differ from what `see_files` saw before, of those that it looked at, int64.

    Another size is a change, and so is another content where it was read. Where it was not, another time is: but not
    where all images have another one, since they were copied then.

    Args:
        before: `SEEN` of images with these names, here or elsewhere.
        catalogue: the images now.
    """
    rows = rows_looked_at(len(catalogue))
    sizes, times = _sizes_and_times(catalogue, rows)
    changed, touched = sizes != before["size"], times != before["changed_ns"]
    read = np.flatnonzero(before["digest"] != b"")
    if not len(read) or not touched[sizes >= 0].all():
        changed |= touched & (before["digest"] == b"")
    changed[read] = _digests(catalogue, rows[read]) != before["digest"][read]
    return rows[changed]


def contents_fingerprint(catalogue: Catalogue) -> str:
    """A digest of what is in the image files of a catalogue, of `MAX_READ` of them; their names are no part of it."""
    rows = rows_looked_at(len(catalogue))
    digests = _digests(catalogue, rows[_spread(len(rows), MAX_READ)])
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]


def _spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)


def _sizes_and_times(catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    def look(name: str) -> tuple[int, int]:
        try:
            status = (catalogue.folder / name).stat()
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    return np.array(_of_each(look, catalogue, rows), np.int64).reshape(-1, 2).T


def _digests(catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    def look(name: str) -> bytes:
        try:
            return hashlib.blake2b((catalogue.folder / name).read_bytes(), digest_size=16).digest()
        except OSError:
            return b""

    return np.array(_of_each(look, catalogue, rows), "S16")


def _of_each(look: Callable[[str], _Found], catalogue: Catalogue, rows: np.ndarray) -> list[_Found]:
    return list(each_file(look, map(catalogue.name, rows.tolist()), total=len(rows)))
