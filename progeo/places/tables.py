"""Images whose places somebody wrote down: CSV, Parquet and GeoJSON -> catalogue."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from progeo.files import read_json
from progeo.places.catalogue import Catalogue, check_files
from progeo.places.coordinates import project

_TEXTS = ("path", "condition", "time")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path"),
    "latitude": ("latitude", "lat"),
    "longitude": ("longitude", "lon", "lng", "long"),
    "east": ("east", "utm_east", "easting"),
    "north": ("north", "utm_north", "northing"),
    "zone": ("zone", "utm_zone"),
    "heading": ("heading", "yaw", "bearing", "compass", "compass_angle", "orientation"),
    "condition": ("condition",),
    "time": ("time", "timestamp", "date", "captured_at"),
}
"""What a column may be called, in any case."""


def read_table(file: Path, images: Path) -> Catalogue:
    """Read a table of images.

    Args:
        file: .csv, .tsv, .parquet or .geojson (points). A column path, relative to `images`; latitude and longitude in
            degrees or east and north in UTM metres; if there are, heading in degrees, zone, condition and time.
        images: folder that the paths are relative to.

    Raises:
        FileNotFoundError: no such file, or an image that is not there.
        ValueError: a column that is missing or holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"There is no table {file}.")
    table = _known_columns(_read(file), file)
    columns: dict[str, np.ndarray | pa.ChunkedArray] = {"path": _texts(table, "path", file).cast(pa.large_string())}
    if {"latitude", "longitude"} <= table.keys():
        try:
            positions = project(_numbers(table, "latitude", file), _numbers(table, "longitude", file))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        columns |= {"east": positions.east, "north": positions.north}
        columns |= {name: _numbers(table, name, file) for name in ("latitude", "longitude")}
        zone = np.full(len(positions.east), positions.zone)
    elif {"east", "north"} <= table.keys():
        columns |= {name: _numbers(table, name, file, may_be_absent=False) for name in ("east", "north")}
        zone = np.nan_to_num(_numbers(table, "zone", file)) if "zone" in table else np.zeros(len(columns["east"]))
    else:
        raise ValueError(f"{file} needs columns latitude and longitude, or east and north; it has no such pair.")
    wrong = (zone != np.floor(zone)) | (zone < 0) | (zone > 60)
    if wrong.any():
        raise ValueError(f"{file}: row {int(wrong.argmax()) + 1}: zone must be from 1 to 60, got {zone[wrong][0]:g}.")
    count = len(columns["east"])
    columns["zone"] = zone.astype(np.int8)
    columns["heading"] = _numbers(table, "heading", file) % 360 if "heading" in table else np.full(count, np.nan)
    columns |= {name: _texts(table, name, file) for name in ("condition", "time") if name in table}
    catalogue = Catalogue(images, pa.table(columns))
    check_files(catalogue)
    return catalogue


def _read(file: Path) -> pa.Table:
    try:
        if file.suffix.lower() in (".csv", ".tsv"):
            delimiter = "\t" if file.suffix.lower() == ".tsv" else ","
            return _read_csv(file, delimiter)
        if file.suffix.lower() == ".parquet":
            return pa_parquet.read_table(file)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read: {error}.") from None
    if file.suffix.lower() == ".geojson":
        return _read_geojson(file)
    raise ValueError(f"{file}: a table is a .csv, .tsv, .parquet or .geojson file.")


def _read_csv(file: Path, delimiter: str) -> pa.Table:
    """Numbers as numbers; what is text as it stands: 0001 is another name than 1."""
    with file.open(encoding="utf-8-sig") as stream:
        header = next(csv.reader(stream, delimiter=delimiter), [])
    texts = {name for column in _TEXTS for name in _NAMES[column]}
    types = {name: pa.large_string() for name in header if name.strip().lower() in texts}
    options = pa_csv.ConvertOptions(column_types=types)
    return pa_csv.read_csv(file, parse_options=pa_csv.ParseOptions(delimiter=delimiter), convert_options=options)


def _read_geojson(file: Path) -> pa.Table:
    content = read_json(file)
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list) or not features:
        raise ValueError(f"{file} has no features.")
    rows = []
    for number, feature in enumerate(features, 1):
        try:
            kind, properties = feature["geometry"]["type"], feature.get("properties") or {}
            longitude, latitude = feature["geometry"]["coordinates"][:2]
            rows.append({**properties, "longitude": float(longitude), "latitude": float(latitude)})
        except (KeyError, TypeError, ValueError, OverflowError):
            raise ValueError(f"{file}: feature {number} must be a Point with a longitude and a latitude.") from None
        if kind != "Point":
            raise ValueError(f"{file}: feature {number} must be a Point, got {kind}.")
    names = dict.fromkeys(name for row in rows for name in row)
    try:
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{file}: a property has values of several kinds: {error}.") from None


def _known_columns(table: pa.Table, file: Path) -> dict[str, pa.ChunkedArray]:
    by_lower_name = {name.strip().lower(): name for name in table.column_names}
    known = {
        column: table[by_lower_name[name]]
        for column, names in _NAMES.items()
        for name in reversed(names)
        if name in by_lower_name
    }
    if "path" not in known:
        raise ValueError(f"{file} needs a column path; it has {', '.join(table.column_names)}.")
    if not table.num_rows:
        raise ValueError(f"{file} has no rows.")
    empty = pc.fill_null(pc.equal(_texts(known, "path", file), ""), True).to_numpy()
    if empty.any():
        raise ValueError(f"{file}: row {int(empty.argmax()) + 1} has no path.")
    return known


def _texts(table: Mapping[str, pa.ChunkedArray], column: str, file: Path) -> pa.ChunkedArray:
    try:
        return pc.utf8_trim_whitespace(table[column].cast(pa.string()))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"{file}: the column {column} must hold texts.") from None


def _numbers(
    table: Mapping[str, pa.ChunkedArray], column: str, file: Path, *, may_be_absent: bool = True
) -> np.ndarray:
    """A column as float64 (N,), NaN where it is empty."""
    try:
        numbers = pc.cast(table[column], pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"{file}: the column {column} must hold numbers.") from None
    values = pc.fill_null(numbers, np.nan).to_numpy()
    if not may_be_absent and np.isnan(values).any():
        raise ValueError(f"{file}: row {int(np.isnan(values).argmax()) + 1} has no {column}.")
    return values
