"""Remove images from a place index: their rows are marked, until the index is compacted."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.engine.log import LOGGER
from progeo.localization.engines.writer import engine_writer
from progeo.localization.index_folder import (
    commit,
    finish_update,
    new_file,
    read_metadata,
    with_current,
)
from progeo.localization.index_metadata import IndexMetadata, check_format
from progeo.localization.part_files import OpenedPart, open_parts
from progeo.localization.path_table import hashes_of
from progeo.localization.removed_rows import open_removed, with_removed
from progeo.localization.restriction import Restriction
from progeo.places.catalogue import index_file, read_catalogue
from progeo.places.nearby import Near
from progeo.remote_files import RemotePath, is_remote

Choice = Callable[[OpenedPart], np.ndarray]
"""Returns the rows of a part that are chosen, int64 (n,), sorted."""


def in_folder(folder: Path | RemotePath) -> Choice:
    """Choose the images in a folder or behind a URL, which need not exist any more, or those of a catalogue."""
    if isinstance(folder, Path) and not folder.is_dir() and index_file(folder).is_file():
        return _of_paths(read_catalogue(folder).full_paths())
    if isinstance(folder, RemotePath):
        before, _, archive = folder.around
        ends = [(before, archive)]
    else:
        ends = [(f"{_normal(path)}/", "") for path in {folder.absolute(), folder.resolve()}]

    def chosen(part: OpenedPart) -> np.ndarray:
        paths = part.images.table["path"]
        is_there = [pc.and_(pc.starts_with(paths, first), pc.ends_with(paths, last)).to_numpy() for first, last in ends]
        return np.flatnonzero(np.logical_or.reduce(is_there))

    return chosen


def with_paths(file: Path) -> Choice:
    """Choose the images that a text file names, one path or URL a line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it names no path, or is no text.
    """
    try:
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    except UnicodeDecodeError as error:
        raise ValueError(f"`paths` {file} is no text in UTF-8: {error}.") from None
    if not lines:
        raise ValueError(f"`paths` {file} names no image: it should have a path on each line.")
    names = [line if is_remote(line) else _normal(Path(line).absolute()) for line in lines]
    return _of_paths(pa.chunked_array([pa.array(names, pa.large_string())]))


def _normal(path: Path) -> str:
    """Return a path as an index stores it: without `..`, and with slashes, also on Windows."""
    return Path(os.path.normpath(path)).as_posix()


def _of_paths(paths: pa.ChunkedArray) -> Choice:
    hashes = hashes_of(paths)
    return lambda part: np.unique(part.rows_of_paths(paths, hashes)[1])


def near_position(near: Near) -> Choice:
    """Choose the images within a circle."""
    return lambda part: part.rows_of(Restriction(near))


def remove_from_place_index(folder: Path, choice: Choice) -> None:
    """Mark the chosen images of a place index as removed.

    Raises:
        ValueError: the index is of classes, no image is chosen, or all are.
    """
    finish_update(folder)
    attempts = count()
    while not with_current(folder, lambda current: _removed(folder, current, choice, is_first=next(attempts) == 0)):
        LOGGER.info("another command changed %s meanwhile: removing from what it holds now", folder)
    finish_update(folder)
    if (writer := engine_writer(folder, read_metadata(folder))) is not None:
        writer.tidy(folder)


def _removed(folder: Path, metadata: IndexMetadata, choice: Choice, *, is_first: bool) -> bool:
    """Commit that rows are removed; returns False if another command came first.

    Args:
        is_first: whether it is an error that no row is left to remove.
    """
    check_format(metadata, folder)
    if metadata.holds_classes:
        raise ValueError(f"{folder} is of classes, which cannot be removed: build it anew.")
    before, start, found = open_removed(folder, metadata), 0, [np.empty(0, np.int64)]
    for part in open_parts(folder, metadata):
        found.append(choice(part) + start)
        start += part.metadata.rows
    after = np.union1d(before, chosen := np.concatenate(found))
    if (num_new := len(after) - len(before)) == 0:
        if len(chosen) or not is_first:  # by a command that was killed, or another one committed on top of it
            LOGGER.info("these images are removed from %s already", folder)
            return True
        raise ValueError(f"{folder} has none of these images: nothing was removed.")
    if len(after) == metadata.num_rows:
        raise ValueError(f"These are all images of {folder}: remove the folder itself.")
    with new_file(folder, "removed", ".npy") as path:
        changed = with_removed(metadata, path, after)
        if not commit(folder, metadata, changed):
            return False
    LOGGER.info("%s images removed from %s, which has %s now", f"{num_new:,}", folder, changed.rows)
    if metadata.calibration is not None:
        LOGGER.warning("confidence was calibrated with these images: run `progeo index calibrate` again")
    return True
