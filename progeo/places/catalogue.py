"""The catalogue: a columnar table of images, in memory or memory-mapped from an Arrow file.

An image folder `x` may have an index, the file `x.arrow` next to it. An index without a folder stands for a set of
images stored elsewhere. Every argument that takes an image folder accepts either.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.atomic import replacing
from progeo.files import each_file, is_file
from progeo.json_files import as_kind
from progeo.places.filename import Unparsed, parse_columns, says_position, warn_of_unparsed
from progeo.places.paths import beside, changes_since, find_paths
from progeo.progress import Progress

_LOGGER = logging.getLogger("progeo")
_ROWS_AT_ONCE = 2**20
_PARSERS = min(8, os.cpu_count() or 1)
_COLUMNS = ("east", "north", "zone", "heading")
_REQUIRED = ("path", *_COLUMNS)
_LONGEST = 4096
_SEARCH_VERSION = 2
"""Version of the search for image files, `rules` in the metadata; 1 skipped links to folders, counted hidden images."""
Positions = Literal["required", "optional", "ignored"]
"""Whether image names hold positions: "required" in every name, "optional" in those that start with @, or "ignored"."""
_METADATA_KEY = b"progeo"
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, SystemError)
"""Errors that a corrupt Arrow file can cause."""
_NUMBER = ("a number", lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind))
_TYPES: Mapping[str, tuple[str, Callable[[pa.DataType], bool]]] = {
    "path": ("text with 64-bit offsets", pa.types.is_large_string),
    **dict.fromkeys((*_COLUMNS, "latitude", "longitude"), _NUMBER),
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


class _Metadata(TypedDict, total=False):
    """Metadata of an Arrow file."""

    root: str
    """Folder of the images, if it is not beside the file."""
    seen: dict[str, int | None]
    list: int | None
    rules: int


@dataclass(frozen=True)
class Catalogue:
    """A table of N images stored below one folder."""

    folder: Path
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
        for column in _COLUMNS:
            digest.update(np.ascontiguousarray(self.table[column].to_numpy()).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the list of paths."""
        texts, lengths = hashlib.sha256(), hashlib.sha256()
        for part in self.table["path"].chunks:
            ends = np.frombuffer(part.buffers()[1], np.int64, len(part) + 1, part.offset * 8)
            texts.update(memoryview(part.buffers()[2])[ends[0] : ends[-1]])
            lengths.update(np.diff(ends).tobytes())
        return hashlib.sha256(texts.digest() + lengths.digest()).hexdigest()[:16]

    def name(self, row: int) -> str:
        """Return the path of image `row` relative to the folder."""
        return self.table["path"][row].as_py()

    def path(self, row: int) -> Path:
        """Return the full path of image `row`."""
        return self.folder / self.name(row)

    def take(self, rows: np.ndarray) -> "Catalogue":
        """Return a catalogue of the given `rows` only, in the order given."""
        return Catalogue(self.folder, _taken(self.table, rows))

    def without(self, rows: np.ndarray) -> "Catalogue":
        """Return a catalogue of all rows but the given ones."""
        return self.take(np.delete(np.arange(len(self)), rows)) if len(rows) else self

    def save(self, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write the table and its metadata as an Arrow file that `open_catalogue` can memory-map."""
        with replacing(path) as temporary, _writer(temporary, self.table.schema, metadata or {}) as writer:
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
        catalogue = Catalogue(folder, pa.Table.from_batches(_parsed_in_turn(folder, found.batches, positions)))
        return catalogue if found.list_changed_ns is None else _shown(catalogue, folder)
    metadata = _metadata(index)
    root = folder / metadata.get("root", "")
    again = f"run `progeo dataset scan {root}{f' --out {folder}' if root != folder else ''}` again"
    if metadata.get("seen") and metadata.get("rules") != _SEARCH_VERSION:
        raise ValueError(f"{index} was made when links to folders were skipped and hidden images counted: {again}.")
    for change in changes_since(root, metadata.get("seen", {}), metadata.get("list")):
        raise ValueError(f"{change} changed since {index} was made: {again}.")
    return _shown(open_catalogue(index, root), folder)


def index_catalogue(
    folder: Path, out: Path | None = None, *, check: Callable[[Catalogue], object] | None = None
) -> Path:
    """Find the images of a folder, parse their names and write the folder's index.

    Args:
        folder: images at any depth.
        out: path to use in place of the folder from now on, with the index next to it; None uses the folder itself.
        check: called with the new catalogue; an error it raises keeps the index from being written.

    Returns:
        The path of the index.

    Raises:
        FileNotFoundError, ValueError: as `read_catalogue` and `check`.
        OSError: the index cannot be written.
    """
    index = index_file(out or folder)
    found = find_paths(folder)
    batches = _parsed_in_turn(folder, found.batches)
    first = next(batches)
    metadata: dict[str, Any] = {"seen": found.seen, "list": found.list_changed_ns, "rules": _SEARCH_VERSION}
    if index != index_file(folder):
        metadata["root"] = str(folder.absolute())  # links are not resolved: the list of images lies next to the link
    with replacing(index) as temporary:
        with _writer(temporary, first.schema, metadata) as writer:
            for batch in chain([first], batches):  # so that they are never all in memory
                writer.write_batch(batch)
        if check is not None:
            check(open_catalogue(temporary, folder))
    return index


def index_file(folder: Path) -> Path:
    """Return the path of a folder's index, whether or not it exists."""
    return beside(folder, ".arrow")


def open_catalogue(path: Path, folder: Path, *, completely: bool = True) -> Catalogue:
    """Memory-map a catalogue written by `Catalogue.save`; `folder` is the current folder of its images.

    Args:
        completely: validate all of it, since a corrupt file can crash the process later; else its structure only, of a
            file that a digest vouches for.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        table = _mapped(path, folder).table
        table.validate(full=completely)
        if completely:
            _check_columns(table)
        del table  # which counts all that was validated as memory of this process
        return _mapped(path, folder)
    except _ARROW_ERRORS as error:
        raise _no_catalogue(path, error) from None


def check_files(catalogue: Catalogue) -> None:
    """Check that all image files exist.

    Raises:
        FileNotFoundError: files are missing; the message has their number and the first of them.
    """
    paths = map(catalogue.path, range(len(catalogue)))
    description = f"looking for the images of {catalogue.folder}"
    exist = each_file(is_file, paths, total=len(catalogue), description=description)
    missing = [row for row, exists in enumerate(exist) if not exists]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(catalogue)} images are not in {catalogue.folder}, the first is "
            f"{catalogue.name(missing[0])[:_LONGEST]}."
        )


def _shown(catalogue: Catalogue, folder: Path) -> Catalogue:
    """Log where images lie that are not in the folder that a user named, and return the catalogue."""
    root, paths = catalogue.folder, catalogue.table["path"]
    if root != folder:
        _LOGGER.info("the images of %s lie in %s", folder, root)
    leads = pc.starts_with(paths, "/")
    if pc.any(leads).as_py():
        leads = pc.and_not(leads, pc.starts_with(paths, f"{root.resolve()}/"))
    if pc.any(pc.match_substring(paths, "..")).as_py():  # regular expressions take longer
        leads = pc.or_(leads, pc.match_substring_regex(paths, r"(^|/)\.\.(/|$)"))
    if pc.any(leads).as_py():
        rows = np.flatnonzero(leads.to_numpy())
        _LOGGER.warning(
            "%d of %d paths of %s lead out of %s, the first is %s",
            *(len(rows), len(catalogue), folder, root, catalogue.name(int(rows[0]))),
        )
    return catalogue


def _parsed_in_turn(
    folder: Path, batches: Iterator[pa.Array], positions: Positions = "required"
) -> Iterator[pa.RecordBatch]:
    """Parse batches of names in parallel, a few batches ahead of the consumer, and yield them in order."""
    pending: deque[Future[pa.RecordBatch]] = deque()
    unparsed: list[Unparsed] = []
    bar = Progress(f"reading the names of {folder}")
    with ThreadPoolExecutor(_PARSERS) as pool, bar:  # Arrow releases the GIL
        for batch in batches:
            pending.append(pool.submit(_parsed, batch, unparsed, positions))
            bar.update(len(batch))
            if len(pending) > _PARSERS:
                yield _result(pending.popleft(), folder)
        yield from (_result(future, folder) for future in pending)
    warn_of_unparsed(unparsed, folder)
    pa.default_memory_pool().release_unused()  # free the memory of parsing before anything else is allocated


def _result(future: Future[pa.RecordBatch], folder: Path) -> pa.RecordBatch:
    try:
        return future.result()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _parsed(paths: pa.Array, unparsed: list[Unparsed], positions: Positions) -> pa.RecordBatch:
    if positions == "ignored":
        return _parsed_in_part(paths, np.array([], np.int64), unparsed)
    try:
        return pa.RecordBatch.from_pydict({"path": paths, **parse_columns(paths, _COLUMNS, unparsed)})
    except ValueError:
        named = says_position(paths)
        if positions == "required" or named.all():
            raise
        return _parsed_in_part(paths, np.flatnonzero(named), unparsed)


def _parsed_in_part(paths: pa.Array, named: np.ndarray, unparsed: list[Unparsed]) -> pa.RecordBatch:
    """Parse the names of the rows `named` only; all other rows have no position, zone or heading."""
    columns = {name: np.full(len(paths), np.nan) for name in _COLUMNS} | {"zone": np.zeros(len(paths), np.int8)}
    for name, values in parse_columns(paths.take(pa.array(named)), _COLUMNS, unparsed).items():
        columns[name][named] = values
    return pa.RecordBatch.from_pydict({"path": paths, **columns})


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


def _writer(path: Path, schema: pa.Schema, metadata: Mapping[str, Any]) -> pa.ipc.RecordBatchFileWriter:
    return pa.ipc.new_file(str(path), schema.with_metadata({_METADATA_KEY: json.dumps(metadata)}))


def _mapped(path: Path, folder: Path) -> Catalogue:
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


def _metadata(path: Path) -> _Metadata:
    try:
        with pa.memory_map(str(path)) as source:
            values = json.loads((pa.ipc.open_file(source).schema.metadata or {}).get(_METADATA_KEY, b"{}"))
    except (*_ARROW_ERRORS, RecursionError) as error:
        raise _no_catalogue(path, error) from None
    return as_kind(values, _Metadata, path, advice="Remove it or make it again.")


def _no_catalogue(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} is no catalogue of progeo: {str(error).rstrip('.')}. Remove it or make it again.")
