"""GSV-Cities as downloaded: Dataframes/CITY.csv, and Images/CITY with an image for each line (Ali-bey et al., 2022)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.datasets.readers.table_files import read_columns
from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import project
from progeo.progress import followed

_WIDTHS = {"city_id": 1, "place_id": 7, "year": 4, "month": 2, "northdeg": 3, "lat": 1, "lon": 1, "panoid": 1}
"""Columns in the order in which they make the name of an image, each with its number of characters, at least."""


def read_gsv_cities(folder: Path, cities: Sequence[str] = (), *, min_images: int = 4) -> Catalogue:
    """Read the images of some cities, with their places.

    A place is called CITY/0000123, since all cities number theirs alike. The condition is the year and month
    of an image, such as 2018-05. Positions are in the UTM zone of the middle of each city.

    Args:
        folder: holds Dataframes and Images.
        cities: names of tables in Dataframes; an empty sequence reads all of them.
        min_images: places with fewer images are excluded.

    Raises:
        FileNotFoundError: a table or an image does not exist.
        ValueError: a table has no such column, or a value that cannot be; or no place has enough images.
    """
    tables = folder / "Dataframes"
    there = {file.stem: file for file in sorted(tables.glob("*.csv"))}
    missing = [city for city in cities if city not in there]
    if missing or not there:
        raise FileNotFoundError(
            f"{tables} holds no table {', '.join(missing) or 'of a city'}; cities in it: {', '.join(there) or 'none'}."
        )
    chosen_cities = list(dict.fromkeys(cities) or there)
    reading = followed(chosen_cities, f"reading {folder}", total=len(chosen_cities), unit="cities")
    found = pa.concat_tables(_read_city(folder, there[city]) for city in reading)
    places = pc.value_counts(found["place"].combine_chunks())
    enough = pc.filter(places.field("values"), pc.greater_equal(places.field("counts"), min_images))
    chosen = found.filter(pc.is_in(found["place"], value_set=enough)).combine_chunks()
    if not len(chosen):
        most = pc.max(places.field("counts")).as_py()
        raise ValueError(f"No place of {folder} has `min_images` {min_images} images, one has {most}: lower it.")
    return Catalogue(folder, chosen)


def _read_city(folder: Path, file: Path) -> pa.Table:
    table = read_columns(file, set())
    if lacking := [name for name in _WIDTHS if name not in table.column_names]:
        raise ValueError(f"{file} has no column {', '.join(lacking)}; it has {', '.join(table.column_names)}.")
    if not len(table):
        raise ValueError(f"{file} has no lines of images: omit its city, or download it again.")
    texts = {name: pc.utf8_lpad(_filled(table, name, file), width, "0") for name, width in _WIDTHS.items()}
    values = {name: _numbers(texts[name], name, file) for name in ("lat", "lon", "northdeg")}
    paths = _paths(folder, file, texts)
    positions = project(values["lat"], values["lon"], name=lambda row: f"{file}: {paths[row]}")
    return pa.table(
        {
            "path": paths,
            "east": positions.east,
            "north": positions.north,
            "zone": np.full(len(paths), positions.zone, np.int8),
            "heading": values["northdeg"] % 360,
            "latitude": values["lat"],
            "longitude": values["lon"],
            "condition": _joined("-", texts["year"], texts["month"]),
            "place": _joined("/", pa.scalar(file.stem, pa.large_string()), texts["place_id"]),
        }
    )


def _filled(table: pa.Table, name: str, file: Path) -> pa.ChunkedArray:
    """Return a column of texts without surrounding spaces, none of them empty."""
    texts = pc.utf8_trim_whitespace(pc.fill_null(table[name], ""))
    empty = pc.equal(texts, "").to_numpy()
    if empty.any():
        raise ValueError(f"{file}: row {int(empty.argmax()) + 1} has no {name}.")
    return texts


def _numbers(texts: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    try:
        values = pc.cast(texts, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        raise ValueError(f"{file}: the column {name} must hold numbers.") from None
    if not np.isfinite(values).all():
        raise ValueError(f"{file}: row {int((~np.isfinite(values)).argmax()) + 1} has no {name}.")
    return values


def _paths(folder: Path, file: Path, texts: dict[str, pa.ChunkedArray]) -> pa.ChunkedArray:
    """Find the images of a table among the files of the folders of its cities: .jpg here, .JPG there.

    Raises:
        FileNotFoundError: images are missing; the message has their number and the first of them.
    """
    cities = pc.unique(texts["city_id"]).to_pylist()
    listed = [f"{city}/{path.name}" for city in cities for path in _images(folder / "Images" / city)]
    paths = pa.array(listed, pa.large_string())
    stems = _joined("/", texts["city_id"], _joined("_", *texts.values()))
    rows = pc.index_in(stems, value_set=pc.replace_substring_regex(paths, r"\.[^.]*$", ""))
    if rows.null_count:
        first = stems.filter(pc.is_null(rows))[0]
        raise FileNotFoundError(
            f"{rows.null_count} of {len(stems)} images of {file} are not in {folder / 'Images'}, the first is "
            f"{first}.jpg."
        )
    return _joined("/", pa.scalar("Images", pa.large_string()), paths.take(rows))


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}: choose the cities that are there with `cities`.")
    return [path for path in folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg")]


def _joined(separator: str, *parts: pa.ChunkedArray | pa.Scalar) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*parts, pa.scalar(separator, pa.large_string()))
