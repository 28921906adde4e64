"""Compact a place index: its images in as few parts as possible, without those that are removed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from progeo.engine.log import LOGGER
from progeo.evaluation.kinds import default_kind, default_refine
from progeo.evaluation.options import CELLS
from progeo.evaluation.parts import Part, Parts
from progeo.evaluation.search import load_index, save_index
from progeo.localization.building import log_compressed, part_format, save_parts, write_index
from progeo.localization.former_format import FormerFiles
from progeo.localization.index_folder import finish_update, new_file, read_metadata, with_current
from progeo.localization.index_metadata import EXACT, FORMAT, IndexMetadata
from progeo.localization.part_files import NewRows, OpenedPart, open_parts
from progeo.localization.removed_rows import open_removed
from progeo.localization.stored_files import stored_file
from progeo.places.catalogue import Catalogue
from progeo.places.cell_order import cell_order
from progeo.printable import counted
from progeo.verification.feature_file import JoinedFeatures

_MAX_GROWTH = 4
"""Number of times the rows that an index was trained for that it may have before it is trained again."""
_ROWS_AT_ONCE = 2**16


def compact_place_index(folder: Path) -> None:
    """Write the images of a place index anew, in as few parts as possible and without those that are removed.

    An index of format 1 is converted.

    Raises:
        ValueError: an index of format 1 is of a kind that restores no descriptors, or an engine searches the index.
    """
    finish_update(folder)
    if (engine := read_metadata(folder).engine) is not None:
        raise ValueError(f"{folder} is searched by {engine.name}, which compacts what it holds itself.")
    while not with_current(folder, lambda metadata: _compacted(folder, metadata)):
        LOGGER.info("another command changed %s meanwhile: compacting what it holds now", folder)
    finish_update(folder)


def _compacted(folder: Path, metadata: IndexMetadata) -> bool:
    """Commit an index that is compact, if it is not already; returns False if another command came first."""
    if metadata.former is not None:
        return _converted(folder, metadata, metadata.former)
    parts = open_parts(folder, metadata)
    fitting = _with_default_kind(metadata, parts[0].descriptors.shape[1])
    is_outgrown = bool(metadata.trained_file) and metadata.kind != CELLS
    is_outgrown &= metadata.images > _MAX_GROWTH * metadata.trained_on
    is_trained_again = is_outgrown or fitting.kind != metadata.kind
    num_parts = len(part_format(folder, metadata).cuts(metadata.images))
    if not metadata.num_removed and len(metadata.parts) <= num_parts and not is_trained_again:
        LOGGER.info("%s is compact already: %s, no removed images", folder, counted(len(metadata.parts), "part"))
        return True
    rows = _kept_rows(folder, metadata, parts)
    files = {name: file for name, file in metadata.files.items() if name == metadata.trained_file}
    compact = replace(fitting, removed_file="", num_removed=0, files=files)
    if not is_trained_again:
        return save_parts(folder, compact, rows, before=metadata)
    LOGGER.info("the index was trained for %s rows: it is trained again", f"{metadata.trained_on:,}")
    return write_index(folder, replace(compact, trained_file="", files={}), rows, before=metadata)


def _with_default_kind(metadata: IndexMetadata, width: int) -> IndexMetadata:
    """Return metadata with the kind that fits the number of images, unless a kind was given; log it if it changes."""
    kind = default_kind(metadata.images, width)
    if not metadata.kind_is_default or kind.faiss == metadata.kind:
        return metadata
    if kind.refine:
        log_compressed(kind, metadata.images)
    else:
        LOGGER.info("%s rows are few enough to be compared exactly", f"{metadata.images:,}")
    if metadata.calibration is not None:
        LOGGER.warning("confidence was calibrated with another kind of index: run `progeo index calibrate` again")
    return replace(metadata, kind=kind.faiss, probes=kind.probes, refine=kind.refine)


def _converted(folder: Path, metadata: IndexMetadata, former: FormerFiles) -> bool:
    """Commit an index of format 1 in the current format; returns False if another command came first.

    Raises:
        ValueError: its kind of index restores no descriptors.
    """
    parts = open_parts(folder, metadata)
    rows = _kept_rows(folder, metadata, parts)
    converted = replace(metadata, former=None, format=FORMAT, trained_on=len(rows))
    if metadata.kind == EXACT:
        return save_parts(folder, converted, rows, before=metadata)
    rows.descriptors.take(np.arange(1))  # or an error
    index = load_index(folder / former.faiss_file)
    if default_refine(index):
        LOGGER.warning(
            "an index of the kind %s restores descriptors with a loss, which the converted index keeps: build it anew "
            "to be rid of it",
            metadata.kind,
        )
    index.reset()
    with new_file(folder, "trained", ".faiss") as path:
        save_index(index, path)
        converted = replace(converted, trained_file=path.name, files={path.name: stored_file(path)})
        return save_parts(folder, converted, rows, before=metadata)


@dataclass(frozen=True, eq=False)
class _StoredRows:
    """Descriptors of parts, in another order."""

    stored: Parts
    order: np.ndarray
    """Rows of the parts, int64 (N,)."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def width(self) -> int:
        """D."""
        return self.stored.parts[0].descriptors.shape[1]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read rows int64 (n,) in the given order, as they are stored, (n, D)."""
        dtype = getattr(self.stored.parts[0].descriptors, "dtype", np.float32)  # those that an index restores have none
        return self.stored.take(self.order[rows]).astype(dtype, copy=False)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows, (n, D) at a time."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield self.take(np.arange(start, min(start + _ROWS_AT_ONCE, len(self))))


def _kept_rows(folder: Path, metadata: IndexMetadata, parts: list[OpenedPart]) -> NewRows:
    """Return the rows that are not removed, in the order of cells, with what is stored of each."""
    images = Catalogue(folder, pa.concat_tables([part.images.table for part in parts]))
    kept = np.delete(np.arange(len(images)), open_removed(folder, metadata))
    order = kept
    if not metadata.holds_classes:
        order = kept[cell_order(*(images.table[name].take(kept) for name in ("latitude", "longitude")))]
    stored = JoinedFeatures([part.features for part in parts if part.features is not None])
    return NewRows(
        _StoredRows(Parts([Part(part.descriptors, part.index) for part in parts]), order),
        lambda first, last: images.take(order[first:last]),
        np.concatenate([lists_of_rows(part.index) for part in parts])[order] if metadata.kind == CELLS else None,
        (lambda first, last: stored.stored(order[first:last].tolist())) if metadata.stores_features else None,
    )


def lists_of_rows(index: Any) -> np.ndarray:
    """Return the inverted list of each row, int64 (n,)."""
    lists = np.empty(index.ntotal, np.int64)
    for number in range(index.nlist):
        if size := index.invlists.list_size(number):
            lists[faiss.rev_swig_ptr(index.invlists.get_ids(number), size)] = number
    return lists
