"""Detection of changed image files from a sample: size and modification time of many, content of some."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from progeo.files import each_file
from progeo.places.catalogue import Catalogue
from progeo.remote_files import RemotePath

MAX_CHECKED = 10_000
"""Number of images, evenly spaced, whose size and modification time are checked."""
MAX_READ = 1_000
"""Number of these images whose content is hashed."""
SEEN = np.dtype([("size", np.int64), ("changed_ns", np.int64), ("digest", "S16")])
"""Record of one file: size in bytes (-1 if missing), modification time, and a hash of the content if it was read."""

_Found = TypeVar("_Found")


def rows_looked_at(count: int) -> np.ndarray:
    """Return the rows of the images to check, int64."""
    return _evenly_spaced(count, MAX_CHECKED)


def see_files(catalogue: Catalogue) -> np.ndarray:
    """Record the state of a catalogue's image files: `SEEN` for each of its `rows_looked_at`.

    Raises:
        OSError: the images are behind a URL that cannot be reached.
        FileNotFoundError: there is none of these images, as where a disk is not mounted.
    """
    rows = rows_looked_at(len(catalogue))
    _check_reachable(catalogue)
    seen = np.zeros(len(rows), SEEN)
    seen["size"], seen["changed_ns"] = _sizes_and_times(catalogue, rows)
    if (seen["size"] < 0).all():
        raise FileNotFoundError(
            f"None of the {len(rows)} images of {catalogue.folder} that were looked for is there, such as "
            f"{catalogue.name(0)}: is its disk mounted?"
        )
    read = _evenly_spaced(len(rows), MAX_READ)
    seen["digest"][read] = _digests(catalogue, rows[read])
    return seen


def changed_files(before: np.ndarray, now: np.ndarray, count: int) -> np.ndarray:
    """Find the images, among those checked, that changed from one record to another, as rows, int64.

    A different size or, if the file was read, different content is a change. For files that were not read, a different
    modification time is a change, unless all files have a different one, because then they were copied.

    Args:
        before, now: `SEEN` of images with the same names, in the same or in different folders.
        count: number of images.
    """
    changed, touched = now["size"] != before["size"], now["changed_ns"] != before["changed_ns"]
    read = before["digest"] != b""
    if not read.any() or not touched[now["size"] >= 0].all():
        changed |= touched & ~read
    changed |= read & (now["digest"] != before["digest"])
    return rows_looked_at(count)[changed]


def contents_digest(seen: np.ndarray) -> str:
    """Compute a hash of the sizes and contents in a record of `see_files`, wherever the files lie."""
    return hashlib.sha256(seen["size"].tobytes() + seen["digest"].tobytes()).hexdigest()[:16]


def contents_fingerprint(catalogue: Catalogue) -> str:
    """Compute a hash of the contents of up to `MAX_READ` image files of a catalogue, independent of their names."""
    rows = rows_looked_at(len(catalogue))
    digests = _digests(catalogue, rows[_evenly_spaced(len(rows), MAX_READ)])
    return hashlib.sha256(digests.tobytes()).hexdigest()[:16]


def _check_reachable(catalogue: Catalogue) -> None:
    """Refuse images behind URLs of which none of three can be reached, before thousands are tried in vain.

    Raises:
        OSError: they cannot be reached; the message names one.
    """
    found: OSError | None = None
    for row in _evenly_spaced(len(catalogue), 3).tolist():
        try:
            if isinstance(path := catalogue.path(row), RemotePath):
                path.read_bytes()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            found = error
    if found is not None:
        raise found


def _evenly_spaced(count: int, maximum: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, maximum)).astype(np.int64)


def _sizes_and_times(catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    def look(row: int) -> tuple[int, int]:
        try:
            status = catalogue.path(row).stat()
        except OSError:
            return -1, -1
        return status.st_size, status.st_mtime_ns

    found = _of_each(look, rows, f"looking at {catalogue.folder}")
    return np.array(found, np.int64).reshape(-1, 2).T


def _digests(catalogue: Catalogue, rows: np.ndarray) -> np.ndarray:
    def look(row: int) -> bytes:
        try:
            return hashlib.blake2b(catalogue.path(row).read_bytes(), digest_size=16).digest()
        except OSError:
            return b""

    return np.array(_of_each(look, rows, f"fingerprint of {catalogue.folder}"), "S16")


def _of_each(look: Callable[[int], _Found], rows: np.ndarray, doing: str) -> list[_Found]:
    return list(each_file(look, rows.tolist(), total=len(rows), description=doing))
