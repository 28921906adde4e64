"""The catalogue: a columnar table of images, in memory or mapped from an Arrow file.

A folder of images `x` may have an index, the file `x.arrow` beside it; a set of images that lie elsewhere is such a
file alone. Wherever a folder of images is asked for, either will do.
"""

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from progeo.files import each_file, replacing
from progeo.places.coordinates import Hemisphere, band_letters, fits_one_zone, project
from progeo.places.filename import FIELDS, ParsedNames, Unparsed, format_names, parse_columns, warn_of_unparsed
from progeo.places.geographic import degrees_of, hemispheres_of
from progeo.places.paths import beside, changes_since, find_paths

_LOGGER = logging.getLogger("progeo")
_ROWS_AT_ONCE = 2**20
_PARSERS = min(8, os.cpu_count() or 1)
_COLUMNS = ("east", "north", "zone", "heading")
_ZONE_WIDTH_M = 1e6
_SOUTHERN_ORIGIN_M = 1e7
_RULES = 2
"""Of what images a folder holds; 1 skipped links to folders and counted what is hidden."""
Positions = Literal["required", "optional", "ignored"]
"""Of the names of images: each must say where it was taken; those that begin with @ do; none does, whatever it says."""
_NAMED = "(^|/)@[^/]*$"
_ABOUT = b"progeo"
"""Key of what an Arrow file says of itself."""


@dataclass(frozen=True)
class Catalogue:
    """N images below one folder."""

    folder: Path
    table: pa.Table
    """Columns path (relative to `folder`), east, north (metres), zone (0: absent), heading (degrees, NaN: absent)."""
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
        """UTM easting in metres, float64 (N,)."""
        return self.table["east"].to_numpy()

    @property
    def north(self) -> np.ndarray:
        """UTM northing in metres, float64 (N,)."""
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


def positions_m(*catalogues: Catalogue) -> list[np.ndarray]:
    """East and north of the images of each catalogue, (N, 2) metres.

    They are UTM's where all images lie in one zone. Where they do not, all are measured in the zone of their middle if
    latitude and longitude are known and not too far apart; else east has 1000 km times the zone added, so that images
    of two zones are far apart. Images without a zone are taken to lie in the one zone of the others. Of a set on both
    sides of the equator all northings are counted from the equator.

    Raises:
        ValueError: images without a zone where the others lie in several.
    """
    zones = _zones(catalogues)
    degrees = _degrees_together(catalogues) if len(zones) > 1 else None
    if degrees is not None:
        positions = project(*degrees)
        together = np.stack([positions.east, positions.north], axis=1)
        return np.split(together, np.cumsum([len(catalogue) for catalogue in catalogues])[:-1])
    _refuse_zoneless(catalogues, zones)
    shift_m = _ZONE_WIDTH_M if len(zones) > 1 else 0.0
    positions_of_each = [_positions_m(catalogue, shift_m) for catalogue in catalogues]
    return _from_one_origin(catalogues, positions_of_each) if zones else positions_of_each


def check_zones(*catalogues: Catalogue) -> None:
    """Look whether `positions_m` can tell how far apart images are; log it where zones are measured apart.

    Raises:
        ValueError: images without a zone where the others lie in several.
    """
    zones = _zones(catalogues)
    if len(zones) > 1 and _degrees_together(catalogues) is None:
        _refuse_zoneless(catalogues, zones)
        named = ", ".join(map(str, sorted(zones)))
        _LOGGER.info("images lie in UTM zones %s: those of two zones count as 1000 km apart and more", named)


def index_catalogue(folder: Path, out: Path | None = None) -> Path:
    """Find the images of a folder, parse their names and write its index; returns that file.

    Args:
        folder: of images.
        out: what stands for the folder from then on, with the index beside it; None is the folder itself.

    Raises:
        FileNotFoundError, ValueError: as `read_catalogue`, or positions that nobody can compare, as `check_zones`.
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
        check_zones(open_catalogue(temporary, folder))
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


def link_images(catalogue: Catalogue, folder: Path) -> None:
    """Make a folder of symbolic links to the images, with the standard names.

    Raises:
        FileExistsError: there is such a folder, with something in it.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"There is something in {folder} already: name another --out.")
    folder.mkdir(parents=True, exist_ok=True)
    empty = np.full(len(catalogue), "")
    unknown = np.full(len(catalogue), np.nan)
    numbers = np.array([f"{row:09d}" for row in range(len(catalogue))])
    fields = {name: unknown if name in ("pitch", "roll", "height") else empty for name in FIELDS}
    known = {"east": catalogue.east, "north": catalogue.north, "zone": catalogue.zone, "heading": catalogue.heading}
    latitude, longitude = degrees_of(catalogue)
    known |= {"letter": band_letters(latitude), "latitude": latitude, "longitude": longitude}
    names = format_names(ParsedNames(**{**fields, **known, "pano_id": numbers}), extension="")
    for row, name in enumerate(names):
        path = catalogue.path(row)
        (folder / f"{name}{path.suffix}").symlink_to(path.resolve())


def _zones(catalogues: Sequence[Catalogue]) -> set[int]:
    return set().union(*(pc.unique(catalogue.table["zone"]).to_pylist() for catalogue in catalogues)) - {0}


def _degrees_together(catalogues: Sequence[Catalogue]) -> np.ndarray | None:
    """Latitude and longitude (2, N) of the images of all catalogues, where they are known and fit into one zone."""
    degrees = [pair for catalogue in catalogues if (pair := catalogue.degrees) is not None]
    if len(degrees) < len(catalogues):
        return None
    together = np.concatenate(degrees, axis=1)
    return together if fits_one_zone(together[1]) else None


def _refuse_zoneless(catalogues: Sequence[Catalogue], zones: set[int]) -> None:
    for catalogue in catalogues if len(zones) > 1 else ():
        zoneless = catalogue.zone == 0
        if zoneless.any():
            zoneless &= np.isfinite(catalogue.east) & np.isfinite(catalogue.north)  # without a position nothing is far
        if zoneless.any():
            raise ValueError(
                f"{zoneless.sum():,} of {len(catalogue):,} images of {catalogue.folder} have no UTM zone, such as "
                f"{catalogue.name(int(zoneless.argmax()))}, and the others that they are compared with lie in zones "
                f"{', '.join(map(str, sorted(zones)))}: nobody can tell how far apart they are. Name the zone of each "
                f"(@utm_east@utm_north@zone@letter@.jpg), or give latitudes and longitudes to `progeo dataset "
                f"from-table`."
            )


def _positions_m(catalogue: Catalogue, zone_shift_m: float) -> np.ndarray:
    """East and north (N, 2), each in one piece, as whoever goes through millions wants them."""
    positions = np.empty((2, len(catalogue)))
    for values, column in zip(positions, ("east", "north"), strict=True):
        np.concatenate([chunk.to_numpy() for chunk in catalogue.table[column].chunks], out=values)
    if zone_shift_m:
        positions[0] += zone_shift_m * catalogue.zone
    return positions.T


def _from_one_origin(catalogues: Sequence[Catalogue], positions: list[np.ndarray]) -> list[np.ndarray]:
    """Positions whose northings count from the equator where they lie on both sides of it, as far as that is known."""
    lowest = min(np.fmin.reduce(each[:, 1], initial=np.inf) for each in positions)
    highest = max(np.fmax.reduce(each[:, 1], initial=-np.inf) for each in positions)
    if not highest - lowest > _SOUTHERN_ORIGIN_M / 2:
        return positions
    origins = [hemispheres_of(catalogue) for catalogue in catalogues]
    if all((origin[np.isfinite(each[:, 1])] >= 0).all() for origin, each in zip(origins, positions, strict=True)):
        for each, origin in zip(positions, origins, strict=True):
            each[:, 1] -= np.where(origin == Hemisphere.SOUTHERN, _SOUTHERN_ORIGIN_M, 0)
    return positions


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
        named = pc.match_substring_regex(paths, _NAMED).to_numpy(zero_copy_only=False)
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
