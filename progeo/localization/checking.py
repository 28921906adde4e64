"""Check a place index: read all of its files, of which opening reads a sample."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.localization.index_folder import with_current
from progeo.localization.index_metadata import CATALOGUE, FEATURES, PATHS, IndexMetadata, check_format
from progeo.localization.part_files import OpenedPart, open_images
from progeo.localization.path_table import hashes_of, rows_of_hashes
from progeo.localization.place_index import open_place_index
from progeo.localization.stored_files import check_file, corrupt
from progeo.printable import counted
from progeo.progress import followed

_ROWS_AT_ONCE = 2**16


def check_place_index(folder: Path) -> None:
    """Read all files of a place index, and check that they are those that were written and belong together.

    Raises:
        FileNotFoundError: there is no index.
        ValueError: something is wrong; the message has a line for each fault.
    """
    with_current(folder, lambda metadata: _check(folder, metadata))


def _check(folder: Path, metadata: IndexMetadata) -> None:
    check_format(metadata, folder)
    checks = list(_file_checks(folder, metadata))
    reading = followed(checks, f"reading {folder}", total=len(checks), unit="files")
    faults = [fault for check in reading if (fault := _fault_of(check))]
    if not faults:
        opened = open_place_index(folder)
        if opened.metadata != metadata:  # another command changed it meanwhile
            return _check(folder, opened.metadata)
        parts = followed(
            opened.parts, "checking rows", total=metadata.num_rows, size=lambda part: part.metadata.rows, unit="rows"
        )
        faults = [fault for part in parts for fault in _faults_of_part(part)]
    if faults:
        raise ValueError("\n".join(faults))
    size = sum(part.size for part in metadata.parts) / 1e6
    LOGGER.info(
        "%s in %s, %s MB, %s removed: all files are as they were written",
        *(metadata.rows, counted(len(metadata.parts), "part"), f"{size:,.1f}", f"{metadata.num_removed:,}"),
    )


def _file_checks(folder: Path, metadata: IndexMetadata) -> Iterator[Callable[[], None]]:
    for name, stored in metadata.files.items():
        yield lambda name=name, stored=stored: check_file(folder / name, stored, folder, completely=True)  # type: ignore[misc]
    for part in metadata.parts:
        for name, stored in part.files.items():
            if name != FEATURES:
                path = folder / part.name / name
                yield lambda path=path, stored=stored: check_file(path, stored, folder, completely=True)  # type: ignore[misc]


def _fault_of(check: Callable[[], object]) -> str:
    try:
        check()
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return ""


def _faults_of_part(part: OpenedPart) -> Iterator[str]:
    """Find what digests cannot tell: what was wrong when it was written, and local features, each with a checksum."""
    if fault := _fault_of(lambda: open_images(part.folder / CATALOGUE, part.folder)):
        yield fault
    hashes = hashes_of(part.images.table["path"])
    wanted, rows = rows_of_hashes(part.path_table, hashes)
    if len(np.unique(rows[wanted == rows])) < len(hashes):
        yield str(corrupt(part.folder / PATHS, "it has other paths than the catalogue"))
    for start in range(0, len(part.descriptors), _ROWS_AT_ONCE):
        if not np.isfinite(part.descriptors[start : start + _ROWS_AT_ONCE]).all():
            yield str(corrupt(part.folder, f"descriptors from row {start:,} on are not finite"))
    features = part.features
    if features is not None:
        yield from filter(None, (_fault_of(lambda row=row: features.features(row)) for row in range(len(features))))  # type: ignore[misc]
