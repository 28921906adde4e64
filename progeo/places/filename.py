"""The naming convention of SF-XL and of the field's dataset downloader, as columns both ways.

A name is
`@utm_east@utm_north@zone@letter@latitude@longitude@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`.
Only east and north must be there; a field left empty, or cut off at the end, is absent.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv


@dataclass(frozen=True)
class ParsedNames:
    """The fields of N names, one array each. Numbers are float64, NaN where absent; texts are "" where absent."""

    east: np.ndarray
    north: np.ndarray
    zone: np.ndarray
    """UTM zone number, int8, 0 where absent."""
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


FIELDS = tuple(field.name for field in dataclasses.fields(ParsedNames))
_AT_ONCE = 2**17
_EXPECTED = {
    "east": "a number of metres",
    "north": "a number of metres",
    "zone": "a UTM zone from 1 to 60",
    "latitude": "a number of degrees",
    "longitude": "a number of degrees",
    "heading": "a number of degrees clockwise from north",
    "pitch": "a number of degrees",
    "roll": "a number of degrees",
    "height": "a number of metres",
}
_FORMATS = {"east": "010.2f", "north": "010.2f", "zone": "02d", "latitude": "09.5f", "longitude": "010.5f"}


def parse_names(names: Sequence[str] | np.ndarray | pa.Array) -> ParsedNames:
    """Parse file names into columns.

    Args:
        names: N paths or names; only what follows the last `/` is read, never a folder's name.

    Raises:
        ValueError: a name that does not follow the convention, with the field and what was expected.
    """
    return ParsedNames(**parse_columns(names, FIELDS))


def parse_columns(names: Sequence[str] | np.ndarray | pa.Array, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """Parse only some `fields` of the names: a catalogue of millions needs four of them. See `parse_names`."""
    paths = names if isinstance(names, (pa.Array, pa.ChunkedArray)) else pa.array(list(names), pa.large_string())
    chunks = paths.chunks if isinstance(paths, pa.ChunkedArray) else [paths]
    parts = [chunk.slice(start, _AT_ONCE) for chunk in chunks for start in range(0, max(1, len(chunk)), _AT_ONCE)]
    columns = [_parsed(part, fields) for part in parts]
    return {field: np.concatenate([part[field] for part in columns]) for field in fields}


def format_names(fields: ParsedNames, *, extension: str = ".jpg") -> list[str]:
    """Format N names of the convention; `parse_names` gives the fields back, rounded to 1 cm and 1e-5 degrees."""
    columns = (_formatted(getattr(fields, field), _FORMATS.get(field, "g")) for field in FIELDS)
    return [f"@{'@'.join(values)}@{extension}" for values in zip(*columns, strict=True)]


def _formatted(values: np.ndarray, spec: str) -> list[str]:
    if values.dtype.kind == "f":
        return ["" if np.isnan(value) else format(value, spec) for value in values]
    if values.dtype.kind == "i":
        return [format(value, spec) if value else "" for value in values]
    return [str(value) for value in values]


def _parsed(paths: pa.Array, fields: Sequence[str]) -> dict[str, np.ndarray]:
    folder_and_name = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
    names = folder_and_name.values.take(pa.array(folder_and_name.offsets.to_numpy()[1:] - 1))
    columns = _columns(names, fields)
    for field in filter(_EXPECTED.__contains__, fields):
        wrong = np.isinf(columns[field])
        if field in ("east", "north"):
            wrong |= np.isnan(columns[field])
        if field == "zone":
            wrong |= (columns[field] < 1) | (columns[field] > 60) | (columns[field] % 1 > 0)
        if wrong.any():
            raise ValueError(_complaint(names[int(wrong.argmax())].as_py(), field))
    if "zone" in fields:
        columns["zone"] = np.nan_to_num(columns["zone"]).astype(np.int8)
    return columns


def _columns(names: pa.Array, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """The fields of N names; where a name has too few, a number is NaN and a text is ""."""
    try:
        return _columns_of_alike(names, fields)
    except pa.ArrowInvalid as error:
        marks = pc.count_substring(names, "@").to_numpy()
        if marks.min() == marks.max():
            raise ValueError(next(_complaints(names, fields), str(error))) from None
    rows = [np.flatnonzero(marks == number) for number in np.unique(marks)]
    parts = [_columns(names.take(pa.array(part)), fields) for part in rows]
    order = np.argsort(np.concatenate(rows))
    return {field: np.concatenate([part[field] for part in parts])[order] for field in fields}


def _columns_of_alike(names: pa.Array, fields: Sequence[str]) -> dict[str, np.ndarray]:
    """The same of names that have equally many marks: lines of a CSV whose comma is `@`, which Arrow reads fastest."""
    columns = {field: np.full(len(names), *((np.nan,) if field in _EXPECTED else ("", object))) for field in fields}
    if not len(names):
        return columns
    num_marks = names[0].as_py().count("@")
    # What follows the last mark is the extension.
    known = {str(FIELDS.index(field) + 1): field for field in fields if FIELDS.index(field) + 1 < num_marks}
    lines = pc.binary_join(pa.ListArray.from_arrays([0, len(names)], names.cast(pa.string())), "\n")[0].as_buffer()
    table = pa_csv.read_csv(
        pa.BufferReader(lines),
        pa_csv.ReadOptions(
            column_names=[str(number) for number in range(num_marks + 1)], use_threads=False, block_size=len(lines) + 1
        ),
        pa_csv.ParseOptions(delimiter="@", quote_char=False, ignore_empty_lines=False),
        pa_csv.ConvertOptions(
            include_columns=list(known) or ["0"],
            column_types={name: pa.float64() if field in _EXPECTED else pa.string() for name, field in known.items()},
            null_values=[""],
            check_utf8=False,
        ),
    )
    if len(table) != len(names):
        raise pa.ArrowInvalid("a line break in a name")
    for name, field in known.items():
        values = table[name].combine_chunks()
        columns[field] = (values.fill_null(np.nan) if field in _EXPECTED else values).to_numpy(zero_copy_only=False)
    return columns


def _complaints(names: pa.Array, fields: Sequence[str]) -> Iterator[str]:
    for name in names.to_pylist():
        if "\n" in name or "\r" in name:
            yield f"{name!r} has a line break in it: rename that file."
        for field in fields:
            text = _text(name, field)
            if field in _EXPECTED and not _is_number(text) if text else field in ("east", "north"):
                yield _complaint(name, field)


def _complaint(name: str, field: str) -> str:
    return (
        f"{name!r} does not follow the naming convention @utm_east@utm_north@zone@letter@latitude@"
        f"longitude@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg: "
        f"field {FIELDS.index(field) + 1} ({field}) should be {_EXPECTED[field]}, got {_text(name, field)!r}."
    )


def _text(name: str, field: str) -> str:
    pieces = name.split("@")[:-1]
    return next(iter(pieces[FIELDS.index(field) + 1 :]), "")


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
