"""The naming convention of SF-XL and of the field's dataset downloader, as columns both ways.

A name is
`@utm_east@utm_north@zone@letter@latitude@longitude@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg`.
Only east and north must be there; a field left empty, or cut off at the end, is absent.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


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
_AT_ONCE = 2**16
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
    with ThreadPoolExecutor() as pool:  # Arrow computes outside of Python's lock
        columns = list(pool.map(lambda part: _parsed(part, fields), parts))
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
    basenames = folder_and_name.values.take(pa.array(folder_and_name.offsets.to_numpy()[1:] - 1))
    last = max(FIELDS.index(field) for field in fields) + 1
    pieces = pc.split_pattern(basenames, "@", max_splits=last + 1)
    return {field: _field(basenames, pieces, field) for field in fields}


def _field(basenames: pa.Array, pieces: pa.ListArray, field: str) -> np.ndarray:
    """The values of one field, from names split at every `@`: piece 0 is the empty text before the first one."""
    position = FIELDS.index(field) + 1
    counts = pc.list_value_length(pieces).to_numpy(zero_copy_only=False)
    # The last piece is the extension, so a field is there only when a piece follows it.
    present = counts > position + 1
    starts = pieces.offsets.to_numpy()[:-1]
    indices = pa.array(np.where(present, starts + position, 0), mask=~present)
    texts = pc.fill_null(pieces.values.take(indices), "")
    if field not in _EXPECTED:
        return texts.to_numpy(zero_copy_only=False)
    try:
        numbers = pc.if_else(pc.equal(texts, ""), None, texts).cast(pa.float64())
    except pa.ArrowInvalid:
        row = next(i for i, text in enumerate(texts.to_pylist()) if text and not _is_number(text))
        raise ValueError(_complaint(basenames, row, field, texts[row].as_py())) from None
    values = pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)
    wrong = np.isinf(values)
    if field in ("east", "north"):
        wrong |= np.isnan(values)
    if field == "zone":
        wrong |= (values < 1) | (values > 60) | (values % 1 > 0)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(_complaint(basenames, row, field, texts[row].as_py()))
    return np.nan_to_num(values).astype(np.int8) if field == "zone" else values


def _complaint(basenames: pa.Array, row: int, field: str, text: str) -> str:
    return (
        f"{basenames[row].as_py()!r} does not follow the naming convention @utm_east@utm_north@zone@letter@latitude@"
        f"longitude@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg: "
        f"field {FIELDS.index(field) + 1} ({field}) should be {_EXPECTED[field]}, got {text!r}."
    )


def _is_number(text: str) -> bool:
    try:
        pa.scalar(text).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True
