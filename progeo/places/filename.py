"""The file naming convention of SF-XL and the VPR dataset downloader: parse names into columns and format them.

A name is
`@utm_east@utm_north@zone@letter@latitude@longitude@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`.
Only east and north are required. A field is absent if it is empty, if the name ends before it, or if its value is
invalid for the field, because other programs write names such as `@utm_east@utm_north@anything@.jpg`.
"""

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from progeo.places.coordinates import MAX_NUMBER


@dataclass(frozen=True)
class ParsedNames:
    """The fields of N names, one array each; absent numbers (float64) are NaN, absent texts are ""."""

    east: np.ndarray
    north: np.ndarray
    zone: np.ndarray
    """UTM zone number, int8, 0 if absent."""
    letter: np.ndarray
    latitude: np.ndarray
    longitude: np.ndarray
    pano_id: np.ndarray
    tile: np.ndarray
    heading: np.ndarray
    """Degrees clockwise from north."""
    pitch: np.ndarray
    roll: np.ndarray
    height: np.ndarray
    timestamp: np.ndarray
    note: np.ndarray


@dataclass(frozen=True)
class Unparsed:
    """The names with an invalid value in one field; the field counts as absent in them."""

    field: str
    count: int
    example: str
    """The path of the first such name."""


FIELDS = tuple(field.name for field in dataclasses.fields(ParsedNames))
_LOGGER = logging.getLogger("progeo")
_AT_ONCE = 2**17
_REQUIRED = ("east", "north")
_EXPECTED = {
    "east": "a number of meters",
    "north": "a number of meters",
    "zone": "a UTM zone from 1 to 60",
    "latitude": "a number of degrees",
    "longitude": "a number of degrees",
    "heading": "a number of degrees clockwise from north",
    "pitch": "a number of degrees",
    "roll": "a number of degrees",
    "height": "a number of meters",
}
_NUMBER = r"^(?:[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?[nN][aA][nN])$"
"""Text that Arrow parses as a number."""
_ZONE = r"^(?:0?[1-9]|[1-5][0-9]|60)(?:\.0*)?$"
"""A zone of at most two digits: a frame number such as 0007 is not a zone."""
_FORMATS = {"east": "010.2f", "north": "010.2f", "zone": "02d", "latitude": "09.5f", "longitude": "010.5f"}


def parse_names(names: Sequence[str] | np.ndarray | pa.Array) -> ParsedNames:
    """Parse file names into columns, and log a warning about fields with invalid values.

    Args:
        names: N paths or names; only the part after the last `/` is parsed.

    Raises:
        ValueError: a name without a number for east and north, or with a line break.
    """
    return ParsedNames(**parse_columns(names, FIELDS))


def parse_columns(
    names: Sequence[str] | np.ndarray | pa.Array, fields: Sequence[str], unparsed: list[Unparsed] | None = None
) -> dict[str, np.ndarray]:
    """Parse only some `fields` of the names, to save memory for millions of names. See `parse_names`.

    To warn only once after several calls, pass a list as `unparsed`: it is extended, and nothing is logged.
    """
    paths = names if isinstance(names, (pa.Array, pa.ChunkedArray)) else pa.array(list(names), pa.large_string())
    chunks = paths.chunks if isinstance(paths, pa.ChunkedArray) else [paths]
    parts = [chunk.slice(start, _AT_ONCE) for chunk in chunks for start in range(0, max(1, len(chunk)), _AT_ONCE)]
    found: list[Unparsed] = [] if unparsed is None else unparsed
    columns = [_parsed(part, fields, found) for part in parts]
    if unparsed is None:
        warn_of_unparsed(found)
    return {field: np.concatenate([part[field] for part in columns]) for field in fields}


def says_position(names: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return which paths have a name that starts with `@`, as the naming convention requires, bool (N,)."""
    return np.asarray(pc.match_substring_regex(names, "(^|/)@[^/]*$"))


def warn_of_unparsed(unparsed: Sequence[Unparsed], source: object = "names") -> None:
    """Log one warning per field with the number of names that have an invalid value in it."""
    for field in dict.fromkeys(each.field for each in unparsed):
        found = [each for each in unparsed if each.field == field]
        example = min(each.example for each in found)
        _LOGGER.warning(
            "%s: %s of them have something else than %s in field %d (%s), absent there, for example %r in %r",
            source,
            f"{sum(each.count for each in found):,}",
            _EXPECTED[field],
            FIELDS.index(field) + 1,
            field,
            _text(example, field),
            example,
        )


def complete_fields(count: int, **known: np.ndarray) -> ParsedNames:
    """Build the fields of `count` names; those not given are absent."""
    absent = {field: np.full(count, np.nan if field in _EXPECTED else "") for field in FIELDS}
    return ParsedNames(**{**absent, **known})


def format_names(fields: ParsedNames, *, extension: str = ".jpg") -> list[str]:
    """Format N names; `parse_names` returns the same fields, rounded to 1 cm and 1e-5 degrees."""
    columns = (_formatted(getattr(fields, field), _FORMATS.get(field, "g")) for field in FIELDS)
    return [f"@{'@'.join(values)}@{extension}" for values in zip(*columns, strict=True)]


def _formatted(values: np.ndarray, spec: str) -> list[str]:
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else format(value, spec) for value in values]
    if values.dtype.kind == "i":
        return [format(value, spec) if value else "" for value in values]
    return [str(value) for value in values]


def _parsed(paths: pa.Array, fields: Sequence[str], unparsed: list[Unparsed]) -> dict[str, np.ndarray]:
    folder_and_name = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
    names = folder_and_name.values.take(pa.array(folder_and_name.offsets.to_numpy()[1:] - 1))
    columns = _columns(names, paths, fields)
    for field in filter(_EXPECTED.__contains__, fields):
        wrong = np.abs(columns[field]) > MAX_NUMBER
        if field in _REQUIRED:
            wrong |= np.isnan(columns[field])
        if not wrong.any():
            continue
        example = paths[int(wrong.argmax())].as_py()
        if field in _REQUIRED:
            raise ValueError(_complaint(example, field))
        unparsed.append(Unparsed(field, int(wrong.sum()), example))
        columns[field] = np.where(wrong, np.nan, columns[field])
    if "zone" in fields:
        columns["zone"] = np.nan_to_num(columns["zone"]).astype(np.int8)
    return columns


def _columns(names: pa.Array, paths: pa.Array, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Parse the fields of N names; absent numbers are NaN, invalid numbers infinite, absent texts "".

    Raises:
        ValueError: a name has a line break in it; the message has its path.
    """
    try:
        return _columns_of_alike(names, fields)
    except pa.ArrowInvalid:
        marks = pc.count_substring(names, "@").to_numpy()
    if marks.min() == marks.max():
        broken = pc.index(pc.match_substring_regex(names, "[\r\n]"), True).as_py()
        if broken >= 0:
            raise ValueError(f"{paths[broken].as_py()!r} has a line break in it: rename that file.")
        return _columns_of_alike(names, fields, free_text=True)
    rows = [np.flatnonzero(marks == number) for number in np.unique(marks)]
    parts = [_columns(names.take(pa.array(part)), paths.take(pa.array(part)), fields) for part in rows]
    order = np.argsort(np.concatenate(rows))
    return {field: np.concatenate([part[field] for part in parts])[order] for field in fields}


def _columns_of_alike(names: pa.Array, fields: Sequence[str], *, free_text: bool = False) -> dict[str, np.ndarray]:
    """Parse names with equally many `@` as lines of a CSV with that delimiter, the fastest way in Arrow.

    Args:
        free_text: read all fields as text, so that invalid numbers become infinite instead of an error.

    Raises:
        pa.ArrowInvalid: a line break in a name or, unless `free_text`, an invalid number.
    """
    columns = {field: np.full(len(names), *((np.nan,) if field in _EXPECTED else ("", object))) for field in fields}
    if not len(names):
        return columns
    num_marks = names[0].as_py().count("@")
    # The last field is the extension.
    known = {str(FIELDS.index(field) + 1): field for field in fields if FIELDS.index(field) + 1 < num_marks}
    if free_text and not known:
        return columns
    kinds = dict.fromkeys(fields, pa.string())
    if not free_text:
        kinds |= {field: pa.float64() for field in fields if field in _EXPECTED}
    if "zone" in fields:
        kinds["zone"] = pa.dictionary(pa.int32(), pa.string())  # a city has few zones, so each is parsed once
    lines = pc.binary_join(pa.ListArray.from_arrays([0, len(names)], names.cast(pa.string())), "\n")[0].as_buffer()
    table = pa_csv.read_csv(
        pa.BufferReader(lines),
        pa_csv.ReadOptions(
            column_names=[str(number) for number in range(num_marks + 1)], use_threads=False, block_size=len(lines) + 1
        ),
        pa_csv.ParseOptions(delimiter="@", quote_char=False, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            include_columns=list(known) or ["0"],
            column_types={name: kinds[field] for name, field in known.items()},
            null_values=[""],
            check_utf8=False,
        ),
    )
    if len(table) != len(names):
        raise pa.ArrowInvalid("a line break in a name")
    for name, field in known.items():
        values = table[name].combine_chunks()
        columns[field] = _numbers(values, field) if field in _EXPECTED else values.to_numpy(zero_copy_only=False)
    return columns


def _numbers(values: pa.Array, field: str) -> np.ndarray:
    """Convert numbers or texts to float64 (N,): NaN if absent, infinite if not a number."""
    if pa.types.is_dictionary(values.type):
        of_text = np.append(_numbers(values.dictionary, field), np.nan)
        return of_text[values.indices.fill_null(len(of_text) - 1).to_numpy()]
    if pa.types.is_string(values.type):
        texts = pc.utf8_trim(values, " \t")  # as Arrow does when it parses numbers
        is_number = pc.match_substring_regex(texts, _ZONE if field == "zone" else _NUMBER)
        values = pc.if_else(is_number, texts, pc.if_else(pc.equal(texts, ""), "nan", "inf")).cast(pa.float64())
    return values.fill_null(np.nan).to_numpy(zero_copy_only=False)


def _complaint(path: str, field: str) -> str:
    number, got = FIELDS.index(field) + 1, _text(path, field)
    limit = ", at most 10^8" if re.search(r"\d$", got) else ""
    return (
        f"{path!r} does not follow the naming convention @utm_east@utm_north@zone@letter@latitude@longitude@pano_id@"
        f"tile@heading@pitch@roll@height@timestamp@note@.jpg: field {number} ({field}) should be {_EXPECTED[field]}"
        f"{limit}, got {got!r}. Only east and north must be there, and an @ before .jpg; `progeo dataset import table` "
        f"and `progeo dataset import photos` take images of any name."
    )


def _text(path: str, field: str) -> str:
    pieces = path.rsplit("/", 1)[-1].split("@")[:-1]
    return next(iter(pieces[FIELDS.index(field) + 1 :]), "")
