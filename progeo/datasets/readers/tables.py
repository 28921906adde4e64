"""Tables of images with positions: CSV, Parquet and GeoJSON to catalogue."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.datasets.readers.mapped_tables import filtered
from progeo.datasets.readers.table_columns import ImageTable, open_table
from progeo.places.catalogue import Catalogue, check_files, count_repeated
from progeo.places.coordinates import (
    check_degrees,
    check_numbers,
    degrees_of_utm,
    few_that_fit_no_zone,
    hemispheres,
    project,
    swapped,
    zones_apart,
)
from progeo.places.zones import parse_code, parse_zone
from progeo.remote_files import RemotePath

_LOGGER = logging.getLogger("progeo")


@dataclass(frozen=True)
class _Positions:
    """Positions of the images of N rows; all values are NaN where unknown."""

    east: np.ndarray
    north: np.ndarray
    zone: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray


def read_table(
    file: Path, images: Path | RemotePath, *, columns: Mapping[str, str] | None = None, path: str | None = None
) -> Catalogue:
    """Read a table of images; log a warning about rows without a position, which are skipped.

    Args:
        file: .csv, .tsv, .parquet or .geojson (points), or a folder of .parquet files. Columns: path, relative to
            `images`; latitude and longitude in degrees or east and north in UTM meters; optionally zone (also as 23K,
            23S or EPSG:32723), letter, hemisphere, epsg, heading in degrees, condition and time.
        images: folder that the paths are relative to.
        columns: names of columns that have other names, such as `{"path": "photo"}`.
        path: template for paths from columns, such as `{city}/{key}.jpg` or `{place_id:07d}.jpg`.

    Raises:
        FileNotFoundError: the file or an image does not exist.
        ValueError: a column is missing, duplicated or invalid, no row has a position, or latitude and longitude are
            swapped or too far apart.
    """
    table = open_table(file, images, columns or {}, path)
    has_utm = table.has("east", "north")
    if table.has("latitude", "longitude") and not (has_utm and np.isnan(table.numbers("latitude")).all()):
        positions = _from_degrees(table)
    elif has_utm:
        positions = _from_utm(table)
    else:
        raise ValueError(
            f"{file} needs columns latitude and longitude, or east and north; it has no such pair. Say which columns "
            f"they are with `columns` latitude=NAME longitude=NAME."
        )
    values: dict[str, np.ndarray | pa.ChunkedArray] = {
        "path": table.paths,
        "east": positions.east,
        "north": positions.north,
        "zone": positions.zone.astype(np.int8),
        "heading": _headings(table),
    }
    if np.isfinite(positions.latitude).any():
        values |= {"latitude": positions.latitude, "longitude": positions.longitude}
    values |= {name: table.texts(name) for name in ("condition", "time") if table.has(name)}
    catalogue = Catalogue(images, filtered(pa.table(values), np.isfinite(positions.east)))
    try:
        check_files(catalogue)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file}: {error} `images` is the folder in which the paths of the table begin: name another, or take out "
            f"the rows without an image."
        ) from None
    if twice := count_repeated(catalogue.table["path"]):
        _LOGGER.warning("%s: %s rows name an image that another row names, too", file, f"{twice:,}")
    return catalogue


def _headings(table: ImageTable) -> np.ndarray:
    """Read the headings, float64 (N,) in 0..360, NaN where absent."""
    if not table.has("heading"):
        return np.full(len(table), np.nan)
    heading = table.numbers("heading")
    check_numbers(lambda row: f"{table.file}: {table.name(row)}", heading=heading)
    return heading % 360


def _from_degrees(table: ImageTable) -> _Positions:
    latitude, longitude = _pair(table, "latitude", "longitude")
    try:
        check_degrees(latitude, longitude, name=table.name)
        _refuse_swapped(table, latitude, longitude)
        far = few_that_fit_no_zone(latitude, longitude)
        if far.any():
            row = int(far.argmax())
            where = f"{latitude[row]:.5f}, {longitude[row]:.5f}"
            table.warn("skipped %s that lie too far from all others, the first is %s", far, f" at {where}")
            latitude[far] = longitude[far] = np.nan
        positions = project(latitude, longitude, name=table.name)
    except ValueError as error:
        raise ValueError(f"{table.file}: {error}") from None
    return _Positions(
        positions.east, positions.north, np.full(len(table), positions.zone, np.int8), latitude, longitude
    )


def _refuse_swapped(table: ImageTable, latitude: np.ndarray, longitude: np.ndarray) -> None:
    """Raise an error for rows that match the others' area, or their own zone, only with swapped degrees."""
    rows = swapped(latitude, longitude)
    if rows.any():
        raise ValueError(
            f"{rows.sum()} of {len(table)} rows have latitude and longitude swapped, the first is "
            f"{table.name(int(rows.argmax()))}: only at {longitude[rows][0]}, {latitude[rows][0]} does it lie where "
            f"the others do. Put them the right way round."
        )
    zone, _ = _zones(table, "zone", parse_zone)
    known = (zone > 0) & np.isfinite(latitude)
    misfit = known & (zones_apart(zone, longitude) > 1) & (zones_apart(zone, latitude) <= 1)
    if misfit.sum() > known.sum() / 2:
        row = int(misfit.argmax())
        raise ValueError(
            f"{table.name(row)}: its zone is {zone[row]}, where its longitude {longitude[row]} is not, but its "
            f"latitude {latitude[row]} would be. Put latitude and longitude the right way round, or remove the column "
            f"of zones."
        )


def _from_utm(table: ImageTable) -> _Positions:
    east, north = _pair(table, "east", "north")
    check_numbers(lambda row: f"{table.file}: {table.name(row)}", east=east, north=north)
    zone, zone_letters = _zones(table, "zone", parse_zone)
    code_zone, sides = _zones(table, "epsg", parse_code)
    _refuse_zones(
        table, "zone", zone < 0, "zone must be from 1 to 60, got {}. 23, 23K, 23S and EPSG:32723 can be read."
    )
    _refuse_zones(
        table, "epsg", code_zone < 0, "epsg must be that of a UTM zone, 326zz, 327zz, 258zz or 269zz, got {}."
    )
    disagree = (zone > 0) & (code_zone > 0) & (zone != code_zone)
    _refuse_zones(table, "epsg", disagree, "epsg {} is that of another zone than its column zone says.")
    zone = np.where(zone > 0, zone, code_zone)
    halves = pc.utf8_lower(table.known_texts("hemisphere"))
    for letter, word in (("n", "north"), ("s", "south")):  # S is not a band in this column
        halves = pc.replace_substring_regex(halves, f"^{letter}$", word)
    hemisphere = hemispheres(north, letters=[table.known_texts("letter"), zone_letters, halves, sides])
    degrees = degrees_of_utm(east, north, zone, hemisphere)
    unknown = (zone > 0) & np.isfinite(north) & np.isnan(degrees[0])
    if unknown.any():
        table.warn(
            "latitude and longitude of %s are unknown, the first is %s",
            unknown,
            ": its letter or hemisphere is not given, or contradicts the northing. Give a column hemisphere with north "
            "or south, or zones such as 23K",
        )
    return _Positions(east, north, zone, *degrees)


def _refuse_zones(table: ImageTable, column: str, wrong: np.ndarray, sentence: str) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(f"{table.file}: {table.name(row)}: {sentence.format(table.known_texts(column)[row])}")


def _zones(
    table: ImageTable, column: str, parse: Callable[[str], tuple[int, str] | None]
) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Parse a column of zones, (N,), 0 where blank and -1 where invalid, and their letters."""
    texts = table.known_texts(column).combine_chunks().dictionary_encode()
    parsed = [(0, "") if text == "" else parse(text) or (-1, "") for text in texts.dictionary.to_pylist()]
    codes = texts.indices.to_numpy()
    zone = np.array([number for number, _ in parsed], int)[codes]
    return zone, pa.array([letter for _, letter in parsed], pa.large_string()).take(texts.indices)


def _pair(table: ImageTable, *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Read two columns of positions, NaN in both where either is blank.

    Raises:
        ValueError: no row has both.
    """
    one, other = (table.numbers(name) for name in names)
    blank = np.isnan(one) | np.isnan(other)
    if blank.all():
        name = names[0] if np.isnan(one[0]) else names[1]
        raise ValueError(f"{table.file}: none of {len(table)} rows has a position: {table.name(0)} has no {name}.")
    if blank.any():
        table.warn(f"skipped %s without {' and '.join(names)}, the first is %s", blank)
    return np.where(blank, np.nan, one), np.where(blank, np.nan, other)
