"""Mapillary Street-Level Sequences (MSLS) as downloaded: CITY/{database,query} with images and metadata tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import utm

from progeo.datasets.readers.ground_truth import build_side
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import check_numbers
from progeo.places.positives import positives_within
from progeo.printable import first_line
from progeo.progress import followed

SUBTASKS = ("all", "s2w", "w2s", "o2n", "n2o", "d2n", "n2d")
"""Columns of subtask_index.csv: all, summer to winter, old to new, day to night, and their reverses."""
_RAW = {"lon": pa.float64(), "lat": pa.float64(), "ca": pa.float64(), "captured_at": pa.string(), "pano": pa.bool_()}
_SIDES = {"database": "database", "queries": "query"}
_TEST = "test"
_PLACED = "postprocessed.csv"


def read_msls(
    folder: Path, cities: Sequence[str] = (), *, subtask: str | None = "all", positive_radius_m: float | None = 25.0
) -> dict[str, Catalogue]:
    """Read database and queries of one or more cities as selected by the MSLS benchmark, without panoramas.

    Positions are those of postprocessed.csv, which the benchmark uses for distances. Zone, latitude, longitude, heading
    and time come from raw.csv. The condition is day or night. Cities of the test set without these tables give names
    only, of panoramas too, as the benchmark counts them.

    Args:
        folder: folder of one city, of several cities, or one that contains train_val and test.
        cities: names of cities, such as cph and sf; an empty sequence reads all cities found outside of test.
        subtask: one of `SUBTASKS`; None reads all images.
        positive_radius_m: queries without a database image of their city within this radius are excluded, as in the
            benchmark; None keeps them.

    Raises:
        FileNotFoundError: a city or one of its tables is missing.
        ValueError: inconsistent tables; cities with and without positions; or several cities of which one has no known
            zone, so that they could overlap.
    """
    if subtask is not None and subtask not in SUBTASKS:
        raise ValueError(f"subtask must be one of {', '.join(SUBTASKS)}, got {subtask!r}.")
    chosen = _city_folders(folder, cities)
    unplaced = [city for city in chosen if _is_unplaced(city)]
    if 0 < len(unplaced) < len(chosen):
        raise ValueError(
            f"{folder}: {', '.join(city.name for city in unplaced)} of the test set have no positions, unlike the "
            f"others: import them apart, with `cities`."
        )
    if unplaced:
        return {side: _unplaced_side(folder, unplaced, name, subtask) for side, name in _SIDES.items()}
    tables: dict[str, list[pa.Table]] = {side: [] for side in _SIDES}
    for city in followed(chosen, f"reading {folder}", total=len(chosen), unit="cities"):
        database, queries = (_side(folder, city / name, subtask) for name in _SIDES.values())
        zone = _zone(database, queries)
        if positive_radius_m is not None:
            found = positives_within(_positions(database), _positions(queries), positive_radius_m)
            queries = queries.filter(pa.array([len(rows) > 0 for rows in found], pa.bool_()))
        for side, table in zip(_SIDES, (database, queries), strict=True):
            tables[side].append(table.append_column("zone", pa.array(np.full(len(table), zone, np.int8))))
    zones = {zone for part in tables["database"] for zone in pc.unique(part["zone"]).to_pylist()}
    if len(tables["database"]) > 1 and 0 in zones:
        raise ValueError(
            f"{folder}: a city has no longitudes in raw.csv, so that its UTM zone is unknown and images of several "
            f"cities could seem to be near each other. Make a set of each city with `cities`."
        )
    sides = {side: pa.concat_tables(parts).combine_chunks() for side, parts in tables.items()}
    for side, table in sides.items():
        if not len(table):
            raise ValueError(f"{folder}: no image is left of the {side} (subtask {subtask}).")
    return {side: Catalogue(folder, table) for side, table in sides.items()}


def _city_folders(folder: Path, cities: Sequence[str]) -> list[Path]:
    """Find the folders of the named cities, or of all cities."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    if not cities and _is_city(folder):
        return [folder]
    parts = ("", "train_val", _TEST) if cities else ("", "train_val")
    parents = [folder / part for part in parts if (folder / part).is_dir()]
    there = {path.name: path for parent in parents for path in sorted(parent.iterdir()) if _is_city(path)}
    missing = sorted({*cities} - {*there})
    if missing or not there:
        raise FileNotFoundError(
            f"{folder} holds no city {', '.join(missing) or 'with the folders database and query'}; cities in it or in "
            f"its train_val or test: {', '.join(there) or 'none'}."
        )
    return [there[city] for city in (dict.fromkeys(cities) or there)]


def _is_city(path: Path) -> bool:
    return all((path / name).is_dir() for name in _SIDES.values())


def _is_unplaced(city: Path) -> bool:
    """Return whether a city is of the test set, and without positions."""
    return city.parent.name == _TEST and not any((city / side / _PLACED).is_file() for side in _SIDES.values())


def _side(root: Path, folder: Path, subtask: str | None) -> pa.Table:
    """Read the selected images of one side of a city, with all columns except the zone."""
    placed = _read(folder / _PLACED, {"easting": pa.float64(), "northing": pa.float64(), "night": pa.bool_()})
    raw = _in_order_of(placed, _read(folder / "raw.csv", _RAW), folder / "raw.csv")
    counts = pc.invert(raw["pano"])
    if subtask is not None:
        file = folder / "subtask_index.csv"
        counts = pc.and_(counts, _in_order_of(placed, _read(file, {subtask: pa.bool_()}), file)[subtask])
    prefix = "" if folder.parent == root else f"{folder.parent.relative_to(root).as_posix()}/"
    heading = raw["ca"].to_numpy()
    names = pc.binary_join_element_wise(f"{prefix}{folder.name}/images/", placed["key"], ".jpg", "")
    table = pa.table(
        {
            "path": names.cast(pa.large_string()),
            "east": placed["easting"],
            "north": placed["northing"],
            "heading": np.where((heading >= 0) & (heading <= 360), heading % 360, np.nan),
            "latitude": raw["lat"],
            "longitude": raw["lon"],
            "condition": pc.if_else(placed["night"], "night", "day"),
            "time": raw["captured_at"],
        }
    ).filter(counts)
    east, north = table["east"].to_numpy(), table["north"].to_numpy()
    absent = np.isnan(east + north)
    if absent.any():
        raise ValueError(f"{folder / 'postprocessed.csv'}: {table['path'][int(absent.argmax())]} has no position.")
    check_numbers(lambda row: f"{folder / 'postprocessed.csv'}: {table['path'][row]}", east=east, north=north)
    return table


def _unplaced_side(root: Path, cities: Sequence[Path], side: str, subtask: str | None) -> Catalogue:
    """Read the names of the selected images of cities without positions."""
    names = []
    for city in cities:
        file = city / side / "subtask_index.csv"
        table = _read(file, {subtask or "all": pa.bool_()})
        keys = table["key"] if subtask is None else table["key"].filter(table[subtask])
        prefix = "" if city == root else f"{city.relative_to(root).as_posix()}/"
        names += [f"{prefix}{side}/images/{key}.jpg" for key in keys.to_pylist()]
    if not names:
        raise ValueError(f"{root}: no image is left of the folders {side} (subtask {subtask}).")
    return build_side(root, names)


def _read(file: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Read each image's key and some columns of a table; absent numbers are NaN."""
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no table {file}: each side of a city needs postprocessed.csv, raw.csv and subtask_index.csv; "
            f"cities in a folder test may have only the last."
        )
    types = {"key": pa.string(), **columns}
    try:
        table = pa_csv.read_csv(file, convert_options=pa_csv.ConvertOptions(column_types=types))
        held = table.column_names
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}.") from None
    if twice := [name for name in types if held.count(name) > 1]:
        raise ValueError(f"{file} has {held.count(twice[0])} columns {twice[0]}: remove all but one of them.")
    if missing := types.keys() - {*held}:
        raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; it has {', '.join(held)}.")
    known: dict[str, pa.ChunkedArray] = {}
    for name, kind in types.items():
        known[name] = pc.fill_null(table[name], np.nan) if pa.types.is_floating(kind) else table[name]
        if known[name].null_count:
            raise ValueError(f"{file}: the column {name} is empty in {known[name].null_count} lines.")
    return pa.table(known)


def _in_order_of(table: pa.Table, other: pa.Table, file: Path) -> pa.Table:
    """Reorder the rows of another table to match the keys of this one."""
    rows = pc.index_in(table["key"], value_set=other["key"].combine_chunks())
    if rows.null_count:
        first = table["key"].filter(pc.is_null(rows))[0]
        raise ValueError(f"{file} has no line for {rows.null_count} keys of postprocessed.csv, the first is {first}.")
    return other.take(rows)


def _zone(database: pa.Table, queries: pa.Table) -> int:
    """Return the UTM zone of a city's median position, or 0 if its longitudes are unknown."""
    both = pa.concat_tables([database, queries])
    latitude, longitude = both["latitude"].to_numpy(), both["longitude"].to_numpy()
    known = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180)
    if not known.any():
        return 0
    return utm.latlon_to_zone_number(float(np.median(latitude[known])), float(np.median(longitude[known])))


def _positions(table: pa.Table) -> np.ndarray:
    return np.stack([table["east"].to_numpy(), table["north"].to_numpy()], axis=1)
