"""The catalogue: a columnar table of images, in memory or memory-mapped from an Arrow file.

An image folder `x` may have an index, the file `x.arrow` next to it. An index without a folder stands for a set of
images stored elsewhere. Every argument that takes an image folder accepts either.
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.atomic import replacing
from progeo.files import each_file, is_file
from progeo.json_files import as_kind
from progeo.places.filename import parse_columns
from progeo.places.parsing import COLUMNS, Positions, parsed_in_turn
from progeo.places.paths import beside, changes_of, changes_since, find_paths
from progeo.remote_files import IS_ABSOLUTE, RemotePath, path_in

_LOGGER = logging.getLogger("progeo")
_ROWS_AT_ONCE = 2**20
_REQUIRED = ("path", *COLUMNS)
_LONGEST = 4096
_MAX_LOOKED_FOR = (1_000_000, 1_000)
"""Number of images that `check_files` looks for: of a local folder, and behind a URL."""
SEARCH_VERSION = 2
"""Version of the search for image files, `rules` in the metadata; 1 skipped links to folders, counted hidden images."""
_METADATA_KEY = b"progeo"
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, SystemError)
"""Errors that a corrupt Arrow file can cause."""
_NUMBER = ("a number", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind))
_TYPES: Mapping[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "path": ("text with 64-bit offsets", pa.types.is_large_string),
    **dict.fromkeys((*COLUMNS, "latitude", "longitude"), _NUMBER),
    "positives": (
        "lists of whole numbers",
        lambda kind: pa.types.is_list(kind) and pa.types.is_signed_integer(kind.value_type),
    ),
    **dict.fromkeys(
        ("condition", "panorama", "place"),
        ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind)),
    ),
}
"""For each column the type it should have, in words, and its check."""
_LIMITS: Mapping[str, float] = {"east": 1e8, "north": 1e8, "zone": 60, "heading": 1e6}
"""Greatest absolute values: meters (local coordinates can have any origin), zones, degrees."""


class Metadata(TypedDict, total=False):
    """Metadata of an Arrow file."""

    root: str
    """Folder or URL of the images, if they are not beside the file."""
    folders: list[str]
    """The folders that it was made of, if there are several, whose lists are among `seen`."""
    seen: dict[str, int | None]
    list: int | None
    rules: int


@dataclass(frozen=True)
class Catalogue:
    """A table of N images stored below one folder."""

    folder: Path | RemotePath
    table: pa.Table
    """Columns: path (relative to `folder`), east, north (meters), zone (0: absent), heading (degrees, NaN: absent)."""
    file: Path | None = None
    """The Arrow file that the table is memory-mapped from; None if it is in memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of a memory-mapped file instead of its content: the other process maps it again."""
        if self.file is None:
            return Catalogue, (self.folder, self.table)
        return _mapped, (self.file, self.folder)  # it is validated already

    def __len__(self) -> int:
        return self.table.num_rows

    @property
    def east(self) -> np.ndarray:
        """UTM easting in meters, float64 (N,)."""
        return self.table["east"].to_numpy()

    @property
    def north(self) -> np.ndarray:
        """UTM northing in meters, float64 (N,)."""
        return self.table["north"].to_numpy()

    @property
    def zone(self) -> np.ndarray:
        """UTM zone, int8 (N,), 0 if absent."""
        return self.table["zone"].to_numpy()

    @property
    def heading(self) -> np.ndarray:
        """Degrees clockwise from north, float64 (N,), NaN if absent."""
        return self.table["heading"].to_numpy()

    @property
    def degrees(self) -> np.ndarray | None:
        """Latitude and longitude (2, N); None unless the table has both columns with finite values in all rows."""
        if not {"latitude", "longitude"} <= {*self.table.column_names}:
            return None
        degrees = np.stack([self.table["latitude"].to_numpy(), self.table["longitude"].to_numpy()])
        return degrees if np.isfinite(degrees).all() else None

    @property
    def positives(self) -> list[np.ndarray] | None:
        """The positives of each query as database rows; None if they are computed from distances."""
        if "positives" not in self.table.column_names:
            return None
        return [np.asarray(rows, np.int64) for rows in self.table["positives"].to_pylist()]

    @property
    def conditions(self) -> np.ndarray | None:
        """The light or weather in which each image was taken, str (N,), "" if absent; None if no image has one."""
        if "condition" not in self.table.column_names:
            return None
        conditions = np.array(self.table["condition"].fill_null("").to_pylist())
        return conditions if (conditions != "").any() else None

    @property
    def places(self) -> pa.DictionaryArray | None:
        """The name of the place of each image, "" if unknown; None if there is no column `place`."""
        if "place" not in self.table.column_names:
            return None
        return pc.dictionary_encode(self.table["place"].fill_null("").combine_chunks())

    @property
    def panoramas(self) -> np.ndarray:
        """The panorama that each image is a crop of, str (N,): the column `panorama`, else the pano_id in its name.

        Raises:
            ValueError: there is no such column, and a name has no pano_id.
        """
        if "panorama" in self.table.column_names:
            return self.table["panorama"].to_numpy()
        ids = parse_columns(self.table["path"], ("pano_id",))["pano_id"]
        if not all(ids):
            raise ValueError(f"The names of the images of {self.folder} do not say which panorama they are parts of.")
        return ids

    @cached_property
    def places_fingerprint(self) -> str:
        """A hash of the positions, zones and headings of the images."""
        digest = hashlib.sha256()
        for column in COLUMNS:
            digest.update(np.ascontiguousarray(self.table[column].to_numpy()).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the list of paths."""
        texts, lengths = hashlib.sha256(), hashlib.sha256()
        for part in filter(len, self.table["path"].chunks):
            ends = np.frombuffer(part.buffers()[1], np.int64, len(part) + 1, part.offset * 8)
            texts.update(_bytes_of(part))
            lengths.update(np.diff(ends).tobytes())
        return hashlib.sha256(texts.digest() + lengths.digest()).hexdigest()[:16]

    def name(self, row: int) -> str:
        """Return the path of image `row` relative to the folder."""
        return self.table["path"][row].as_py()

    def path(self, row: int) -> Path | RemotePath:
        """Return the full path of image `row`: a URL where the folder or its own name is one."""
        return path_in(self.folder, self.name(row))

    def full_paths(self) -> pa.ChunkedArray:
        """Compute the texts of the full paths of all images, large_string (N,)."""
        names = self.table["path"].cast(pa.large_string())
        if isinstance(self.folder, RemotePath):
            before, quoted, after = self.folder.around
        else:
            before, quoted, after = _with_slash(self.folder), str, ""
        inner = names if quoted is str else pa.chunked_array([_each(quoted, part) for part in names.chunks], names.type)
        first, last, nothing = (pa.scalar(text, names.type) for text in (before, after, ""))
        return pc.if_else(are_absolute(names), names, pc.binary_join_element_wise(first, inner, last, nothing))

    def take(self, rows: np.ndarray) -> "Catalogue":
        """Return a catalogue of the given `rows` only, in the order given."""
        return Catalogue(self.folder, _taken(self.table, rows))

    def without(self, rows: np.ndarray) -> "Catalogue":
        """Return a catalogue of all rows but the given ones."""
        return self.take(np.delete(np.arange(len(self)), rows)) if len(rows) else self

    def save(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the table and its metadata as an Arrow file that `open_catalogue` can memory-map."""
        with replacing(path) as temporary, catalogue_writer(temporary, self.table.schema, metadata or {}) as writer:
            writer.write_table(self.table, max_chunksize=_ROWS_AT_ONCE)


def read_catalogue(folder: Path, *, positions: Positions = "required") -> Catalogue:
    """Read the catalogue of a folder from its index, or, if it has none, parse the names of the images found in it.

    Args:
        folder: images at any depth, or a path that has only an index.
        positions: whether names hold positions; east and north are NaN for names that hold none.

    Raises:
        FileNotFoundError: the folder does not exist, or there is no image in it.
        ValueError: a name does not follow the convention, or the index is older than the folder.
    """
    index = index_file(folder)
    if not index.is_file():
        found = find_paths(folder)
        catalogue = Catalogue(folder, pa.Table.from_batches(parsed_in_turn(folder, found.batches, positions)))
        return catalogue if found.list_changed_ns is None else _shown(catalogue, folder)
    metadata = metadata_of(index)
    root, folders = path_in(folder, metadata.get("root", "")), metadata.get("folders")
    sources = " ".join(folders or [str(root)])
    again = f"run `progeo dataset scan {sources}{f' --out {folder}' if root != folder else ''}` again"
    seen = metadata.get("seen", {})
    if seen and metadata.get("rules") != SEARCH_VERSION:
        raise ValueError(f"{index} was made when links to folders were skipped and hidden images counted: {again}.")
    for change in changes_of(root, seen) if folders else changes_since(root, seen, metadata.get("list")):
        raise ValueError(f"{change} changed since {index} was made: {again}.")
    return _shown(open_catalogue(index, root), folder)


def index_file(folder: Path) -> Path:
    """Return the path of a folder's index, whether or not it exists."""
    return beside(folder, ".arrow")


def open_catalogue(path: Path, folder: Path | RemotePath, *, completely: bool = True) -> Catalogue:
    """Memory-map a catalogue written by `Catalogue.save`; `folder` is the current folder of its images.

    Args:
        completely: validate all of it, since a corrupt file can crash the process later; else its structure only, of a
            file that a digest vouches for.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        opened = _mapped(path, folder)
        opened.table.validate()
        if completely:
            for start in range(0, max(1, len(opened)), _ROWS_AT_ONCE):  # what is read counts as memory until it closes
                table = _mapped(path, folder).table.slice(start, _ROWS_AT_ONCE)
                table.validate(full=True)
                _check_columns(table)
        return opened
    except _ARROW_ERRORS as error:
        raise _no_catalogue(path, error) from None


def check_files(catalogue: Catalogue) -> None:
    """Check that all image files exist; of millions, or behind a URL, only some, evenly spaced, which is logged.

    Raises:
        FileNotFoundError: files are missing; the message has their number and the first of them.
    """
    count = min(len(catalogue), _MAX_LOOKED_FOR[isinstance(catalogue.folder, RemotePath)])
    rows = np.linspace(0, len(catalogue) - 1, count).astype(np.int64)
    description = f"looking for the images of {catalogue.folder}"
    exist = each_file(is_file, map(catalogue.path, rows.tolist()), total=count, description=description)
    missing = [row for row, exists in zip(rows.tolist(), exist, strict=True) if not exists]
    if count < len(catalogue):
        _LOGGER.info("looked for %s of %s images of %s", f"{count:,}", f"{len(catalogue):,}", catalogue.folder)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {count} images are not in {catalogue.folder}, the first is "
            f"{catalogue.name(missing[0])[:_LONGEST]}."
        )


def are_absolute(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return which names, large_string, are absolute paths or URLs, which lie in no folder, bool (N,)."""
    if sys.platform == "win32" or _holds(b"://", names):  # regular expressions for each name take longer
        return pc.match_substring_regex(names, IS_ABSOLUTE)
    return pc.starts_with(names, "/")


def _holds(part: bytes, texts: pa.ChunkedArray) -> bool:
    """Return whether a part may occur in any text; all texts are searched at once, as few have such parts."""
    return any(re.search(re.escape(part), _bytes_of(chunk)) for chunk in texts.chunks if len(chunk))


def count_repeated(names: pa.ChunkedArray) -> int:
    """Count the names that other names before them are equal to, by hashes of 64 bits: their texts may be on disk."""
    hashes = np.empty(len(names), np.int64)
    start = 0
    for batch in pa.table({"name": names}).to_batches(_ROWS_AT_ONCE):
        hashes[start : start + len(batch)] = np.fromiter(map(hash, batch["name"].to_pylist()), np.int64, len(batch))
        start += len(batch)
    hashes.sort()
    return int((hashes[1:] == hashes[:-1]).sum())


def _with_slash(folder: Path) -> str:
    """Return the absolute path of a folder, with slashes on Windows too, and one at its end, also of the root."""
    return f"{folder.resolve().as_posix().rstrip('/')}/"


def _bytes_of(texts: pa.LargeStringArray) -> memoryview:
    """Return the bytes of some texts one after another, without copying them."""
    ends = np.frombuffer(texts.buffers()[1], np.int64, len(texts) + 1, texts.offset * 8)
    return memoryview(texts.buffers()[2])[ends[0] : ends[-1]]


def _each(change: Callable[[str], str], texts: pa.Array) -> pa.Array:
    return pa.array(map(change, texts.to_pylist()), texts.type)


def _shown(catalogue: Catalogue, folder: Path) -> Catalogue:
    """Log where images lie that are not in the folder that a user named, and return the catalogue."""
    root, paths = catalogue.folder, catalogue.table["path"]
    if root != folder:
        _LOGGER.info("the images of %s lie in %s", folder, root)
    leads = are_absolute(paths)
    if pc.any(leads).as_py():
        inside = root.around[0] if isinstance(root, RemotePath) else _with_slash(root)
        leads = pc.and_not(leads, pc.starts_with(paths, inside))
    if _holds(b"..", paths):
        leads = pc.or_(leads, pc.match_substring_regex(paths, r"(^|/)\.\.(/|$)"))
    if pc.any(leads).as_py():
        rows = np.flatnonzero(leads.to_numpy())
        _LOGGER.log(
            logging.INFO if root == Path("/") else logging.WARNING,  # local files and URLs have no other folder
            "%d of %d paths of %s lead out of %s, the first is %s",
            *(len(rows), len(catalogue), folder, root, catalogue.name(int(rows[0]))),
        )
    return catalogue


def _taken(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Read rows of a table in the given order; few of many without joining its chunks in memory, as arrow does."""
    if table.num_columns == 0 or table.column(0).num_chunks < 2 or 8 * len(rows) > len(table):
        return table.take(rows).combine_chunks()
    batches, rows = table.to_batches(), np.asarray(rows, np.int64)
    starts = np.cumsum([0, *map(len, batches)])
    owners = np.searchsorted(starts, rows, side="right") - 1
    order = np.argsort(owners, kind="stable")
    bounds = np.searchsorted(owners[order], np.arange(len(batches) + 1))
    parts = [
        batch.take(pa.array(rows[order[first:last]] - start))
        for batch, start, (first, last) in zip(batches, starts.tolist(), pairwise(bounds.tolist()), strict=False)
        if last > first
    ]
    return pa.Table.from_batches(parts, table.schema).combine_chunks().take(np.argsort(order))


def catalogue_writer(path: Path, schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.ipc.RecordBatchFileWriter:
    """Open an Arrow file for record batches that `open_catalogue` can memory-map together."""
    return pa.ipc.new_file(str(path), schema.with_metadata({_METADATA_KEY: json.dumps(metadata)}))


def _mapped(path: Path, folder: Path | RemotePath) -> Catalogue:
    return Catalogue(folder, pa.ipc.open_file(pa.memory_map(str(path))).read_all(), path)


def _check_columns(table: pa.Table) -> None:
    """Check the columns that a catalogue reads: their types, their bounds, and that no image lacks a value it needs.

    Raises:
        ValueError: there is no row, or a column is missing, there twice, of another type, or has impossible values.
    """
    if not len(table):
        raise ValueError("it holds no image")
    for name, (what, has_type) in _TYPES.items():
        if name not in table.column_names and name not in _REQUIRED:
            continue
        columns = [
            column for column, its_name in zip(table.columns, table.column_names, strict=True) if name == its_name
        ]
        if len(columns) != 1:
            raise ValueError(f"it has {len(columns)} columns {name}, it should have one")
        if not has_type(columns[0].type):
            raise ValueError(f"its column {name} is {columns[0].type}, it should be {what}")
        parts = [columns[0], pc.list_flatten(columns[0])] if name == "positives" else [columns[0]]
        if name in (*_REQUIRED, "positives") and any(part.null_count for part in parts):
            raise ValueError(f"its column {name} lacks values")
    for name, limit in _LIMITS.items():
        lowest, highest = pc.min_max(table[name]).as_py().values()  # NaN, unknown, is skipped
        if lowest < -limit or highest > limit:
            raise ValueError(f"its column {name} has values from {lowest:.6g} to {highest:.6g}")


def metadata_of(path: Path) -> Metadata:
    """Read the metadata of an index.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        with pa.memory_map(str(path)) as source:
            values = json.loads((pa.ipc.open_file(source).schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    except (*_ARROW_ERRORS, RecursionError) as error:
        raise _no_catalogue(path, error) from None
    return as_kind(values, Metadata, path, advice="Remove it or make it again.")


def _no_catalogue(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no catalogue of progeo: {str(error).rstrip('.')}. Remove it or make it again.")
