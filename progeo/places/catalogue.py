"""The catalogue: a columnar table of images, in memory or mapped from an Arrow file.

A folder of images `x` may have an index, the file `x.arrow` beside it; a set of images that lie elsewhere is such a
file alone. Wherever a folder of images is asked for, either will do.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from progeo.files import each_file, replacing
from progeo.places.filename import Unparsed, parse_columns, says_position, warn_of_unparsed
from progeo.places.paths import beside, changes_since, find_paths

_ROWS_AT_ONCE = 2**20
_PARSERS = min(8, os.cpu_count() or 1)
_COLUMNS = ("east", "north", "zone", "heading")
_RULES = 2
"""Of what images a folder holds; 1 skipped links to folders and counted what is hidden."""
Positions = Literal["required", "optional", "ignored"]
"""Of the names of images: each must say where it was taken; those that begin with @ do; none does, whatever it says."""
_ABOUT = b"progeo"
"""Key of what an Arrow file says of itself."""


@dataclass(frozen=True)
class Catalogue:
    """N images below one folder."""

    folder: Path
    table: pa.Table
    """Columns path (relative to `folder`), east, north (meters), zone (0: absent), heading (degrees, NaN: absent)."""
    file: Path | None = None
    """The Arrow file that the table is mapped from."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the file for itself, instead of being sent what is in it."""
        if self.file is None:
            return Catalogue, (self.folder, self.table)
        return open_catalogue, (self.file, self.folder)

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
        """UTM zone, int8 (N,), 0 where absent."""
        return self.table["zone"].to_numpy()

    @property
    def heading(self) -> np.ndarray:
        """Degrees clockwise from north, float64 (N,), NaN where absent."""
        return self.table["heading"].to_numpy()

    @property
    def degrees(self) -> np.ndarray | None:
        """Latitude and longitude (2, N), where the catalogue was made from them."""
        if "latitude" not in self.table.column_names:
            return None
        degrees = np.stack([self.table["latitude"].to_numpy(), self.table["longitude"].to_numpy()])
        return degrees if np.isfinite(degrees).all() else None

    @property
    def positives(self) -> list[np.ndarray] | None:
        """Right database rows of each query, where they are given and do not follow from distances."""
        if "positives" not in self.table.column_names:
            return None
        return [np.asarray(rows, np.int64) for rows in self.table["positives"].to_pylist()]

    @property
    def conditions(self) -> np.ndarray | None:
        """In what light or weather each image was taken, str (N,), where that was written down."""
        if "condition" not in self.table.column_names:
            return None
        conditions = np.array(self.table["condition"].fill_null("").to_pylist())
        return conditions if (conditions != "").any() else None

    @property
    def panoramas(self) -> np.ndarray:
        """The panorama that each image is a part of, str (N,): written down, or the pano_id in its name.

        Raises:
            ValueError: no panorama is known.
        """
        if "panorama" in self.table.column_names:
            return self.table["panorama"].to_numpy()
        ids = parse_columns(self.table["path"], ("pano_id",))["pano_id"]
        if not all(ids):
            raise ValueError(f"The names of the images of {self.folder} do not say which panorama they are parts of.")
        return ids

    @cached_property
    def places_fingerprint(self) -> str:
        """A digest of where the images were taken."""
        digest = hashlib.sha256()
        for column in _COLUMNS:
            digest.update(np.ascontiguousarray(self.table[column].to_numpy()).tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the list of paths."""
        texts, lengths = hashlib.sha256(), hashlib.sha256()
        for part in self.table["path"].chunks:
            ends = np.frombuffer(part.buffers()[1], np.int64, len(part) + 1, part.offset * 8)
            texts.update(memoryview(part.buffers()[2])[ends[0] : ends[-1]])
            lengths.update(np.diff(ends).tobytes())
        return hashlib.sha256(texts.digest() + lengths.digest()).hexdigest()[:16]

    def name(self, row: int) -> str:
        """The path of image `row` relative to the folder."""
        return self.table["path"][row].as_py()

    def path(self, row: int) -> Path:
        """The file of image `row`."""
        return self.folder / self.name(row)

    def take(self, rows: np.ndarray) -> "Catalogue":
        """The catalogue of these `rows` alone, in the order given."""
        return Catalogue(self.folder, self.table.take(rows).combine_chunks())

    def save(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        """Write the table as an Arrow file that `open_catalogue` maps into memory, and what it says of itself."""
        with replacing(path) as temporary, _writer(temporary, self.table.schema, about or {}) as writer:
            writer.write_table(self.table, max_chunksize=_ROWS_AT_ONCE)


def read_catalogue(folder: Path, *, positions: Positions = "required") -> Catalogue:
    """Read the catalogue of a folder: its index where it has one, else the names of the images found in it.

    Args:
        folder: with images at any depth.
        positions: whether names say where images were taken; where they do not, east and north are NaN.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: a name that does not follow the convention, or an index that is older than the folder.
    """
    index = index_file(folder)
    if not index.is_file():
        batches = _parsed_in_turn(folder, find_paths(folder).batches, positions)
        return Catalogue(folder, pa.Table.from_batches(batches))
    about = _about(index)
    root = folder / about.get("root", "")
    again = f"run `progeo dataset index {root}{f' --out {folder}' if root != folder else ''}` again"
    if about.get("seen") and about.get("rules") != _RULES:
        raise ValueError(f"{index} was made when links to folders were skipped and hidden images counted: {again}.")
    for change in changes_since(root, about.get("seen", {}), about.get("list")):
        raise ValueError(f"{change} changed since {index} was made: {again}.")
    return open_catalogue(index, root)


def index_catalogue(
    folder: Path, out: Path | None = None, *, check: Callable[[Catalogue], object] | None = None
) -> Path:
    """Find the images of a folder, parse their names and write its index; returns that file.

    Args:
        folder: of images.
        out: what stands for the folder from then on, with the index beside it; None is the folder itself.
        check: raises an error where the catalogue must not be written.

    Raises:
        FileNotFoundError, ValueError: as `read_catalogue` and `check`.
        OSError: the index cannot be written.
    """
    index = index_file(out or folder)
    found = find_paths(folder)
    batches = _parsed_in_turn(folder, found.batches)
    first = next(batches)
    about: dict[str, Any] = {"seen": found.seen, "list": found.list_changed_ns, "rules": _RULES}
    if index != index_file(folder):
        about["root"] = str(folder.absolute())  # not where a link leads to: the list lies beside the link
    with replacing(index) as temporary:
        with _writer(temporary, first.schema, about) as writer:
            for batch in chain([first], batches):  # never all of them in memory
                writer.write_batch(batch)
        if check is not None:
            check(open_catalogue(temporary, folder))
    return index


def index_file(folder: Path) -> Path:
    """Where the index of a folder is."""
    return beside(folder, ".arrow")


def build_catalogue(folder: Path, paths: Sequence[str]) -> Catalogue:
    """Parse `paths`, relative to `folder`, into a catalogue in their order."""
    return Catalogue(folder, pa.Table.from_batches([_parsed(pa.array(paths, pa.large_string()))]))


def open_catalogue(path: Path, folder: Path) -> Catalogue:
    """Map a catalogue saved by `Catalogue.save`; `folder` is where its images lie now."""
    return Catalogue(folder, pa.ipc.open_file(pa.memory_map(str(path))).read_all(), path)


def check_files(catalogue: Catalogue) -> None:
    """Look whether all images are there.

    Raises:
        FileNotFoundError: with how many are not, and the first of them.
    """
    there = each_file(
        lambda name: (catalogue.folder / name).is_file(),
        map(catalogue.name, range(len(catalogue))),
        total=len(catalogue),
        description=f"looking for the images of {catalogue.folder}",
    )
    missing = [row for row, is_there in enumerate(there) if not is_there]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(catalogue)} images are not in {catalogue.folder}, the first is "
            f"{catalogue.name(missing[0])}."
        )


def _parsed_in_turn(
    folder: Path, batches: Iterator[pa.Array], positions: Positions = "required"
) -> Iterator[pa.RecordBatch]:
    """Parse the names of a folder side by side, a few batches ahead of whoever takes them, in their order."""
    coming: deque[Future[pa.RecordBatch]] = deque()
    unparsed: list[Unparsed] = []
    bar = tqdm(desc=f"reading the names of {folder}", unit="img", leave=False, disable=None)
    with ThreadPoolExecutor(_PARSERS) as pool, bar:  # Arrow computes outside of Python's lock
        for batch in batches:
            coming.append(pool.submit(_parsed, batch, unparsed, positions))
            bar.update(len(batch))
            if len(coming) > _PARSERS:
                yield coming.popleft().result()
        yield from (future.result() for future in coming)
    warn_of_unparsed(unparsed, folder)
    pa.default_memory_pool().release_unused()  # what only parsing needed, before anything else is made


def _parsed(
    paths: pa.Array, unparsed: list[Unparsed] | None = None, positions: Positions = "required"
) -> pa.RecordBatch:
    if positions == "ignored":
        return _parsed_in_part(paths, np.array([], np.int64), unparsed)
    try:
        return pa.RecordBatch.from_pydict({"path": paths, **parse_columns(paths, _COLUMNS, unparsed)})
    except ValueError:
        named = says_position(paths)
        if positions == "required" or named.all():
            raise
        return _parsed_in_part(paths, np.flatnonzero(named), unparsed)


def _parsed_in_part(paths: pa.Array, named: np.ndarray, unparsed: list[Unparsed] | None) -> pa.RecordBatch:
    """The same where only the names of some rows follow the convention; nothing is known of the others."""
    columns = {name: np.full(len(paths), np.nan) for name in _COLUMNS} | {"zone": np.zeros(len(paths), np.int8)}
    for name, values in parse_columns(paths.take(pa.array(named)), _COLUMNS, unparsed).items():
        columns[name][named] = values
    return pa.RecordBatch.from_pydict({"path": paths, **columns})


def _writer(path: Path, schema: pa.Schema, about: Mapping[str, Any]) -> pa.ipc.RecordBatchFileWriter:
    return pa.ipc.new_file(str(path), schema.with_metadata({_ABOUT: json.dumps(about)}))


def _about(path: Path) -> dict[str, Any]:
    try:
        with pa.memory_map(str(path)) as source:
            return json.loads((pa.ipc.open_file(source).schema.metadata or {}).get(_ABOUT, b"{}"))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no catalogue of progeo: {error}. Remove it or make it again.") from None
