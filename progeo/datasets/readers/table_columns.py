"""Columns of a table of images: find them by name and read them as numbers or text."""

import logging
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from progeo.datasets.readers.mapped_tables import joined, pieces_of
from progeo.datasets.readers.table_files import read_columns
from progeo.places.paths import portable_names
from progeo.remote_files import RemotePath

_LOGGER = logging.getLogger("progeo")
_NAMES: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "image", "file", "filename", "file_name", "image_path", "sourcefile", "photo"),
    "latitude": ("latitude", "lat", "gpslatitude"),
    "longitude": ("longitude", "lon", "lng", "long", "gpslongitude"),
    "east": ("east", "utm_east", "easting", "utm_easting"),
    "north": ("north", "utm_north", "northing", "utm_northing"),
    "zone": ("zone", "utm_zone", "zone_number", "utm_zone_number"),
    "letter": ("letter", "band", "utm_letter", "zone_letter", "utm_band", "utm_zone_letter"),
    "hemisphere": ("hemisphere",),
    "epsg": ("epsg", "crs", "srid"),
    "heading": tuple("heading yaw bearing compass compass_angle orientation northdeg ca gpsimgdirection".split()),
    "condition": ("condition",),
    "time": ("time", "timestamp", "date", "captured_at"),
}
"""Accepted names of each column, in any case, with spaces or underscores; gps... and sourcefile are exiftool's."""
_TEXTS = frozenset(name for column in ("path", "condition", "time") for name in _NAMES[column])
_SAME = {"latitude": 1e-4, "longitude": 1e-4, "east": 10.0, "north": 10.0}
"""Maximum difference of the positions in two columns of the same meaning, in degrees or meters."""
_BLANK = pa.array(["", "na", "n/a", "#n/a", "nan", "null", "none", "-", "?", "\\n", "unknown"], pa.large_string())
_NUMBER = r"^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$"
_GSV_CITIES = "{city_id}_{place_id:07d}_{year}_{month:02d}_{northdeg:03d}_{lat}_{lon}_{panoid}.JPG"
"""Template of GSV-Cities' image names, for which its tables have no column."""


@dataclass(frozen=True)
class ImageTable:
    """The known columns of a table of N images."""

    file: Path
    columns: Mapping[str, pa.ChunkedArray]
    """Columns by their meaning, such as latitude, whatever their name in the table."""
    names: Mapping[str, str]
    """Name in the table of each column."""
    paths: pa.ChunkedArray
    """Image paths relative to the folder of the images."""

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, row: int) -> str:
        """Return the name of a row for messages."""
        return f"{self.paths[row]}, row {row + 1}"

    def has(self, *names: str) -> bool:
        """Return whether all of these columns exist."""
        return set(names) <= self.columns.keys()

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as float64 (N,), NaN where it is blank."""
        return _numbers(self.columns[name], self.names[name], self.file)

    def texts(self, name: str) -> pa.ChunkedArray:
        """Return a column as texts, without surrounding spaces."""
        return _texts(self.columns[name], self.names[name], self.file)

    def known_texts(self, name: str) -> pa.ChunkedArray:
        """Return a column as texts, "" where it is blank; all "" if there is no such column."""
        if name not in self.columns:
            return pa.chunked_array([pa.repeat(pa.scalar("", pa.large_string()), len(self))])
        texts = self.texts(name)
        return pc.if_else(_is_blank(texts), "", texts)

    def warn(self, sentence: str, rows: np.ndarray, more: str = "") -> None:
        """Log a warning about some rows, bool (N,), with their number and the first of them."""
        count = f"{rows.sum():,} of {len(self):,} rows"
        _LOGGER.warning(f"%s: {sentence}%s", self.file, count, self.name(int(rows.argmax())), more)


def open_table(file: Path, images: Path | RemotePath, given: Mapping[str, str], template: str | None) -> ImageTable:
    """Read a table and find its columns; the arguments are those of `read_table`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing, duplicated or contradicted by another, or an image has no path.
    """
    known = {*(name for names in _NAMES.values() for name in names), *_fields(_GSV_CITIES)}
    used = {*given.values(), *_fields(template or "")}
    table = read_columns(file, _TEXTS, lambda name: name in used or _called(name) in known)
    if not table.num_rows:
        raise ValueError(f"{file} has no rows.")
    if unknown := given.keys() - _NAMES.keys():
        raise ValueError(f"columns must be of {', '.join(_NAMES)}, got {', '.join(sorted(unknown))}.")
    if template is not None and "path" in given:
        raise ValueError(f"Give the column of paths ({given['path']}) or a template of paths ({template}), not both.")
    found = {name: _candidates(table, file, synonyms, given.get(name)) for name, synonyms in _NAMES.items()}
    if {"east", "north"} <= given.keys() and not {"latitude", "longitude"} & given.keys():
        found |= {"latitude": [], "longitude": []}
    columns = {name: _column(table, file, name, names) for name, names in found.items() if names}
    called = {name: names[0] for name, names in found.items() if names}
    if not found["path"] and template is None and _fields(_GSV_CITIES) <= set(table.column_names):
        template = _GSV_CITIES
    if template is None and "path" not in columns:
        raise ValueError(
            f"{file} needs a column path; its first line names {', '.join(table.column_names)}. Say which one it is "
            f"with `columns` path=NAME, or how to put paths together from columns, such as `path` '{{NAME}}.jpg'."
        )
    held = pa.table({"path": columns["path"]}) if template is None else table
    paths = joined(_paths(held, file, images, template))["path"]
    return ImageTable(file, columns, called, paths)


def _paths(table: pa.Table, file: Path, images: Path | RemotePath, template: str | None) -> Iterator[pa.Table]:
    """Yield the paths of images relative to their folder in pieces, from the column `path` or by a template."""
    first_row = 1
    for piece in pieces_of(table):
        if template is None:
            paths = _texts(piece["path"], "path", file)
        else:
            paths = _paths_from(template, piece, file, first_row)
        empty = pc.equal(paths, "").to_numpy()
        if empty.any():
            raise ValueError(f"{file}: row {int(empty.argmax()) + first_row} has no path.")
        yield pa.table({"path": portable_names(paths, images)})
        first_row += len(piece)


def _fields(template: str) -> set[str]:
    """Return the names of the columns that a template of paths is made from."""
    return set(re.findall(r"{(\w+)", template))


def read_image_texts(file: Path, images: Path | RemotePath, column: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Read the paths of images relative to `images`, and a column of texts, "" where it is blank.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: a column is missing or duplicated, or there are no rows.
    """
    table = read_columns(file, {*_TEXTS, column.lower()})
    if not table.num_rows:
        raise ValueError(f"{file} has no rows.")
    names = [name for name in _candidates(table, file, _NAMES["path"], None) if name != column]
    if not names:
        raise ValueError(f"{file} needs a column path or image; it has {', '.join(table.column_names)}.")
    paths, texts = (_texts(_only(table, file, name), name, file) for name in (names[0], column))
    return portable_names(paths, images), pc.if_else(_is_blank(texts), "", texts)


def _candidates(table: pa.Table, file: Path, synonyms: tuple[str, ...], given: str | None) -> list[str]:
    """List the table's names for a column, best match first."""
    if given is not None:
        return [given]
    named = [(name, _called(name)) for name in table.column_names]
    return [
        name
        for synonym in synonyms
        for name, called in named
        if called == synonym and not _is_way_up(table, file, name)
    ]


def _called(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _is_way_up(table: pa.Table, file: Path, name: str) -> bool:
    """Return whether a column `orientation` holds EXIF orientations, 1 to 8 or words, instead of headings."""
    if name.strip().lower() != "orientation" or table.column_names.count(name) > 1:
        return False
    texts = _texts(table[name], name, file)
    is_way_up = pc.or_(_is_blank(texts), pc.match_substring_regex(texts, r"^[1-8](\.0)?$|[A-Za-z]{3}"))
    if not pc.all(is_way_up).as_py():
        return False
    _LOGGER.info("%s: the column %s is taken for which way up images are, not for headings", file, name)
    return True


def _column(table: pa.Table, file: Path, column: str, names: list[str]) -> pa.ChunkedArray:
    """Return the first of the columns with the given names, all of the same meaning.

    Raises:
        ValueError: a column is missing or duplicated, or another has different positions.
    """
    first, *others = (_only(table, file, name) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        if column not in _SAME:
            _LOGGER.info("%s: %s is read from the column %s, not from %s", file, column, names[0], name)
            continue
        one, another = _numbers(first, names[0], file), _numbers(other, name, file)
        differ = ~np.isclose(one, another, rtol=0, atol=_SAME[column], equal_nan=True)
        if differ.any():
            row = int(differ.argmax())
            raise ValueError(
                f"{file} has the columns {names[0]} and {name}, and they differ: row {row + 1} has {one[row]} and "
                f"{another[row]}. Say which it is, such as `columns` {column}={names[0]}."
            )
    return first


def _only(table: pa.Table, file: Path, name: str) -> pa.ChunkedArray:
    count = table.column_names.count(name)
    if count == 1:
        return table[name]
    if count:
        raise ValueError(f"{file} has {count} columns {name}: rename or remove all but one of them.")
    raise ValueError(f"{file} has no column {name}; it has {', '.join(table.column_names)}.")


def _paths_from(template: str, table: pa.Table, file: Path, first_row: int) -> pa.ChunkedArray:
    """Build paths from a template such as `{city}/{key}.jpg` or `{place_id:07d}.jpg`; the rows count from the first."""
    parts: list[pa.ChunkedArray | pa.Scalar] = []
    try:
        fields = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"path {template} cannot be read: {error}. Names of columns stand in braces.") from None
    for text, name, form, conversion in fields:
        parts.append(pa.scalar(text, pa.large_string()))
        if name is None:
            continue
        width = re.fullmatch(r"(?:0>?([0-9]+)d?)?", form or "")
        if width is None or conversion:
            raise ValueError(
                f"path {template}: {{{name}:{form}}} cannot be read. Give {{{name}}}, or zeros in front, such as "
                f"{{{name}:07d}}."
            )
        values = _texts(_only(table, file, name), name, file)
        missing = pc.equal(values, "").to_numpy()
        if missing.any():
            row = int(missing.argmax()) + first_row
            raise ValueError(f"{file}: row {row} has no {name}, which its path is made of.")
        parts.append(pc.utf8_lpad(values, int(width[1]), "0") if width[1] else values)
    return pc.binary_join_element_wise(*parts, pa.scalar("", pa.large_string()))


def _texts(column: pa.ChunkedArray, name: str, file: Path) -> pa.ChunkedArray:
    """Convert a column to texts without surrounding spaces, "" where absent."""
    try:
        return pc.fill_null(pc.utf8_trim_whitespace(column.cast(pa.large_string())), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"{file}: the column {name} must hold texts.") from None


def _is_blank(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(pc.utf8_lower(texts), value_set=_BLANK)


def _numbers(column: pa.ChunkedArray, name: str, file: Path) -> np.ndarray:
    """Convert a column to float64 (N,), NaN where it is blank."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = _texts(column, name, file)
        blank = _is_blank(texts)
        wrong = ~pc.or_(blank, pc.match_substring_regex(texts, _NUMBER)).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{file}: the column {name} must hold decimal numbers, row {row + 1} has {texts[row].as_py()!r}."
            )
        column = pc.if_else(blank, None, pc.replace_substring_regex(texts, r"^\+", ""))
    try:
        values = pc.fill_null(pc.cast(column, pa.float64()), np.nan).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise ValueError(f"{file}: the column {name} must hold numbers.") from None
    if np.isinf(values).any():
        raise ValueError(
            f"{file}: the column {name} must hold numbers, row {int(np.isinf(values).argmax()) + 1} has inf."
        )
    return values
