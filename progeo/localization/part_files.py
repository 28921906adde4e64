"""Parts of a place index: folders with some of its rows, written in bounded memory and opened memory-mapped."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pyarrow as pa

from progeo.atomic import replacing
from progeo.engine.log import LOGGER
from progeo.evaluation.cell_index import add_to_cells
from progeo.evaluation.kinds import add_rows
from progeo.evaluation.search import check_searchable, load_index, map_index, save_index
from progeo.features.store import ReorderedRows, Rows, load_array
from progeo.image_files import Orientation
from progeo.localization.former_format import FormerFiles, FormerRows, check_former_files
from progeo.localization.index_metadata import (
    CATALOGUE,
    DESCRIPTORS,
    FAISS,
    FEATURES,
    PATHS,
    IndexMetadata,
    PartMetadata,
)
from progeo.localization.path_table import hashes_of, open_path_table, rows_of_hashes, write_path_table
from progeo.localization.restriction import Restriction
from progeo.localization.stored_files import (
    OTHER_CONTENT,
    WHOLE_BYTES,
    StoredFile,
    check_file,
    check_present,
    corrupt,
    stored_file,
)
from progeo.localization.verifying import extracted_features
from progeo.places.catalogue import Catalogue, open_catalogue
from progeo.places.cell_order import CellOrder, build_cell_order, cell_range, reaches
from progeo.places.nearby import looks_toward
from progeo.progress import Progress
from progeo.verification.feature_file import FeatureFile, StoredFeatures, open_feature_file, write_feature_file

if TYPE_CHECKING:
    from progeo.localization.stores import DescriptorWriter

COLUMNS = ("path", "east", "north", "zone", "heading", "latitude", "longitude")
_VALUES_AT_ONCE = 2**21
_MAX_INDEX_BYTES = 2**27
"""Maximum size of the faiss index of a part, 128 MiB: inverted lists take up to twice as much while they grow."""
_ID_BYTES = 8


@dataclass(frozen=True)
class NewRows:
    """Rows that are written to parts, in the order in which they will lie there."""

    descriptors: Rows
    images: Callable[[int, int], Catalogue]
    """Returns the images of a range of rows as `index_images` does, so that those of all need not be in memory."""
    labels: np.ndarray | None = None
    """Class of each image, int64 (N,), for an index of cells, -1 for that of its descriptor; None for any other."""
    features: Callable[[int, int], Iterator[StoredFeatures]] | None = None
    """Returns the local features of a range of rows; None if they are extracted from the images."""

    def __len__(self) -> int:
        return len(self.descriptors)


@dataclass(frozen=True)
class PartFormat:
    """What parts of an index have in common."""

    encoder: Mapping[str, Any]
    """Fingerprint of the encoder."""
    trained: Path | None
    """File of the trained, empty faiss index; None if rows are compared exactly."""
    part_rows: int
    """Maximum number of rows of a part."""
    orientation: Orientation | None = None
    """How images are rotated for their local features; None if parts hold none."""
    writer: "DescriptorWriter | None" = None
    """Stores descriptors elsewhere; None if parts hold them."""

    def cuts(self, count: int) -> list[tuple[int, int]]:
        """Divide rows into the ranges of parts of about equal size."""
        num_parts = max(1, -(-count // self.max_rows))
        bounds = [number * count // num_parts for number in range(num_parts + 1)]
        return list(pairwise(bounds))

    @cached_property
    def max_rows(self) -> int:
        """Maximum number of rows of a part, whose faiss index takes 128 MiB at most."""
        if self.trained is None:
            return self.part_rows
        return max_indexed_rows(load_index(self.trained), self.part_rows)


def max_indexed_rows(index: faiss.Index, part_rows: int) -> int:
    """Return the maximum number of rows of a part, at most `part_rows`, whose faiss index takes 128 MiB at most."""
    return max(1, min(part_rows, _MAX_INDEX_BYTES // indexed_row_bytes(index)))


def indexed_row_bytes(index: faiss.Index) -> int:
    """Return the bytes of a row in a faiss index."""
    try:
        return index.sa_code_size() + _ID_BYTES
    except RuntimeError:  # an index that has no codes of its own
        return 4 * index.d + _ID_BYTES


def write_parts(
    parts: Sequence[tuple[Path, tuple[int, int]]], rows: NewRows, form: PartFormat, *, hidden: bool = False
) -> list[PartMetadata]:
    """Write the files of parts: ranges of rows.

    Args:
        parts: for each its folder, which exists and is empty, the first row, and the one after the last.
        hidden: show no progress.

    Raises:
        OSError, ValueError: see `write_part`.
    """
    total = sum(last - first for _, (first, last) in parts)
    with Progress("writing the index", total=total, unit="rows", hidden=hidden) as bar:
        return [write_part(folder, bounds, rows, form, count=bar.update) for folder, bounds in parts]


def write_part(
    folder: Path,
    bounds: tuple[int, int],
    rows: NewRows,
    form: PartFormat,
    *,
    count: Callable[[int], object] = lambda _: None,
) -> PartMetadata:
    """Write the files of a part; `count` gets the number of rows that were written, now and then.

    Raises:
        OSError: a file cannot be written.
        ValueError: descriptors are too large for float16.
    """
    first, last = bounds
    images = rows.images(first, last)
    images.save(folder / CATALOGUE)
    write_path_table(folder / PATHS, images.table["path"])
    if form.writer is None:
        _write_descriptors(folder, rows, bounds, form, count)
    if form.orientation is not None:
        features = rows.features or (lambda *_: extracted_features(images, form.orientation or "exif"))
        write_feature_file(file := folder / FEATURES, features(first, last))
        if num_missing := open_feature_file(file).table["features"].null_count:
            LOGGER.warning("%d images cannot be read any more: they have no local features", num_missing)
    files = {path.name: _stored(path) for path in sorted(folder.iterdir())}
    if form.writer is None:
        return _described(folder, images, form.encoder, files)
    descriptors = ReorderedRows(rows.descriptors, np.arange(first, last))
    metadata = _described(folder, images, form.encoder, files, descriptors=_digest_of(descriptors))
    form.writer.add(metadata.engine_id, descriptors, images)
    count(last - first)
    return metadata


def _digest_of(rows: Rows) -> str:
    digest, step = hashlib.sha256(), max(1, _VALUES_AT_ONCE // rows.width)
    for start in range(0, len(rows), step):
        digest.update(np.ascontiguousarray(rows.take(np.arange(start, min(start + step, len(rows))))).data)
    return digest.hexdigest()


def _described(
    folder: Path,
    images: Catalogue,
    encoder: Mapping[str, Any],
    files: Mapping[Any, StoredFile] = MappingProxyType({}),
    *,
    descriptors: str = "",
) -> PartMetadata:
    """Return the metadata of a part.

    Args:
        descriptors: digest of descriptors that an engine holds, so that those of a killed command are taken for its own
            only if they are the same; empty if the part holds them.
    """
    known = np.isfinite(images.east) & np.isfinite(images.north)
    degrees = [images.table[name] for name in ("latitude", "longitude")]
    made_from = json.dumps([encoder, images.fingerprint, images.places_fingerprint, descriptors], sort_keys=True)
    return PartMetadata(
        name=folder.name,
        id=hashlib.sha256(made_from.encode()).hexdigest()[:32],
        rows=len(images),
        zones=tuple(np.unique(images.zone[known]).tolist()),
        num_degrees=int(np.isfinite(degrees[0].to_numpy()).sum()),
        num_headings=int(np.isfinite(images.heading).sum()),
        cells=cell_range(*degrees),
        files=files,
    )


def _write_descriptors(
    folder: Path, rows: NewRows, bounds: tuple[int, int], form: PartFormat, count: Callable[[int], object]
) -> None:
    """Write the descriptors of a part, float16 beside a faiss index, else as they are, and its faiss index."""
    first, last = bounds
    index = None if form.trained is None else load_index(form.trained)
    step = max(1, _VALUES_AT_ONCE // rows.descriptors.width)
    with replacing(folder / DESCRIPTORS) as temporary, temporary.open("wb") as stream:
        for start in range(first, last, step):
            block = rows.descriptors.take(np.arange(start, min(start + step, last)))
            stored = block if index is None else _halves(block)
            if start == first:
                header = {"descr": stored.dtype.str, "fortran_order": False, "shape": (last - first, block.shape[1])}
                np.lib.format.write_array_header_1_0(stream, header)
            np.ascontiguousarray(stored).tofile(stream)
            if index is not None:
                values = np.ascontiguousarray(block, np.float32)
                if rows.labels is None:
                    add_rows(index, values)
                else:
                    add_to_cells(index, values, rows.labels[start : start + len(block)])
            count(len(block))
    if index is not None:
        save_index(index, folder / FAISS)


def _halves(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        halves = block.astype(np.float16)
    if not np.isfinite(halves).all():
        raise ValueError(
            "Descriptors have values beyond 65504, which float16 cannot hold: take `faiss` Flat, which keeps them as "
            "they are."
        )
    return halves


@dataclass(frozen=True, eq=False)
class OpenedPart:
    """A part of a place index, memory-mapped."""

    folder: Path
    metadata: PartMetadata
    images: Catalogue
    path_table: np.ndarray
    """See `open_path_table`."""
    descriptors: np.ndarray | FormerRows
    """Float16 or float32 (n, D), or as an index of format 1 restores them; (n, 0) if an engine holds them."""
    index: faiss.Index | None
    """Its compressed index; None if rows are compared exactly."""
    features: FeatureFile | None
    """Local features of the images; None if they are not stored."""

    def rows_of_paths(self, paths: pa.ChunkedArray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Find images by their paths.

        Args:
            paths: m absolute paths.
            hashes: their hashes, see `hashes_of`.

        Returns:
            Pairs of a position in `paths` and a row, int64 (p,) each.
        """
        wanted, rows = rows_of_hashes(self.path_table, hashes)
        if not len(rows):
            return wanted, rows
        found = self.images.take(rows).table["path"].to_pylist()
        same = np.array(found, object) == np.array(paths.take(wanted).to_pylist(), object)
        return wanted[same], rows[same]

    def rows_of(self, among: Restriction) -> np.ndarray:
        """Find the rows that a restriction allows: sorted, int64 (n,)."""
        if among.near is None:
            rows = np.arange(self.metadata.rows)
        elif self.metadata.cells is None or not reaches(among.near, self.metadata.cells):
            return np.empty(0, np.int64)
        else:
            rows = self._cell_order.rows_within(among.near)
        return rows if among.heading is None else rows[looks_toward(self.images.heading[rows], among.heading)]

    @cached_property
    def _cell_order(self) -> CellOrder:
        return build_cell_order(self.images.table["latitude"], self.images.table["longitude"])


def open_parts(folder: Path, metadata: IndexMetadata) -> list[OpenedPart]:
    """Open the parts of an index; errors as of `open_part`."""
    if metadata.former is not None:
        return [_open_former(folder, metadata.former, metadata)]
    return [open_part(folder, part, metadata) for part in metadata.parts]


def _open_former(folder: Path, files: FormerFiles, metadata: IndexMetadata) -> OpenedPart:
    """Open the rows of an index of format 1 as if they were one part."""
    check_former_files(folder, files)
    images = open_images(folder / files.catalogue_file, folder)
    if not files.digests:
        check_searchable(folder / files.faiss_file)
    index = map_index(folder / files.faiss_file, probes=metadata.probes)
    features = open_feature_file(folder / files.features_file) if files.features_file else None
    if features is not None and files.digests and files.digests.get(files.features_file) != features.fingerprint:
        raise corrupt(features.path, OTHER_CONTENT)
    if len({len(images), index.ntotal, files.images, files.images if features is None else len(features)}) > 1:
        raise ValueError(
            f"The files of {folder} do not belong together: {files.images:,} rows in index.json, {len(images):,} in "
            f"{files.catalogue_file}, {index.ntotal:,} in {files.faiss_file}. Build the index anew."
        )
    described = _described(folder, images, metadata.encoder)
    return OpenedPart(folder, described, images, np.empty((2, 0), np.uint64), FormerRows(index), index, features)


def open_part(folder: Path, part: PartMetadata, metadata: IndexMetadata) -> OpenedPart:
    """Check the files of a part and open it, memory-mapped.

    Args:
        folder: folder of the index.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt.
    """
    where = folder / part.name
    for name, stored in part.files.items():
        if name != FEATURES:  # each row of which has a checksum of its own
            check_file(where / name, stored, folder)
    is_small = part.files[CATALOGUE].size <= WHOLE_BYTES
    images = open_images(where / CATALOGUE, where, completely=is_small)
    descriptors = np.empty((part.rows, 0), np.float32)
    if DESCRIPTORS in part.files:
        descriptors = load_array(where / DESCRIPTORS, mapped=True)
    index = map_index(where / FAISS, probes=metadata.probes) if FAISS in part.files else None
    features = _open_features(where / FEATURES, part.files[FEATURES], folder) if FEATURES in part.files else None
    widths = {descriptors.shape[1] if descriptors.ndim == 2 else 0, descriptors.shape[1] if index is None else index.d}
    counts = {len(images), len(descriptors), part.rows, part.rows if index is None else index.ntotal}
    counts.add(part.rows if features is None else len(features))
    if len(counts) > 1 or len(widths) > 1 or descriptors.dtype not in (np.float16, np.float32):
        raise ValueError(
            f"The files of {where} do not belong together: {part.rows:,} rows in index.json, {len(images):,} in "
            f"{CATALOGUE}, {descriptors.shape} {descriptors.dtype} in {DESCRIPTORS}. Build the index anew."
        )
    return OpenedPart(where, part, images, open_path_table(where / PATHS, part.rows), descriptors, index, features)


def _stored(path: Path) -> StoredFile:
    """Describe a file of a part; each row of local features has a checksum, of which their digest is made."""
    if path.name != FEATURES:
        return stored_file(path)
    fingerprint = open_feature_file(path).fingerprint
    return StoredFile(path.stat().st_size, fingerprint, fingerprint)


def _open_features(path: Path, stored: StoredFile, folder: Path) -> FeatureFile:
    check_present(path, folder)
    features = open_feature_file(path)
    if features.fingerprint != stored.digest:
        raise corrupt(path, OTHER_CONTENT)
    return features


def open_images(file: Path, folder: Path, *, completely: bool = True) -> Catalogue:
    """Open the catalogue of a part.

    Args:
        completely: see `open_catalogue`.

    Raises:
        ValueError: the file is corrupt, or of other columns.
    """
    catalogue = open_catalogue(file, folder, completely=completely)
    if tuple(catalogue.table.column_names) != COLUMNS:
        raise ValueError(f"{file} is no catalogue of a place index, it should have {', '.join(COLUMNS)}.")
    return catalogue


def known_rows(parts: Sequence[OpenedPart], removed: np.ndarray, paths: pa.ChunkedArray) -> np.ndarray:
    """Return which paths are those of images of parts that are not removed, bool (m,).

    Args:
        parts: parts of an index, the first ones of all.
        removed: removed rows of the index, sorted, int64 (r,).
        paths: absolute paths.
    """
    known, start, hashes = np.zeros(len(paths), bool), 0, hashes_of(paths)
    for part in parts:
        wanted, rows = part.rows_of_paths(paths, hashes)
        known[wanted[~np.isin(rows + start, removed)]] = True
        start += part.metadata.rows
    return known
