"""Sort positions by cells of the Earth, about 100 m wide, so that those within a radius are a few ranges of rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from progeo.places.nearby import Near, angle_of, haversine_m

_BANDS_PER_DEGREE = 1000
"""Bands of latitude, 111 m high; those of longitude are as wide, and fewer toward the poles."""
_MAX_COLUMNS = 2**20
_UNKNOWN = 2**40
"""Number of the cell of unknown positions, after all others."""
_MARGIN_DEG = 1e-5
"""More than rounding moves a position, also near the antipode, where distances are least precise."""
_ROWS_AT_ONCE = 2**20


@dataclass(frozen=True)
class CellOrder:
    """N positions sorted by cell."""

    latitude: pa.ChunkedArray
    """Degrees, (N,), NaN where unknown."""
    longitude: pa.ChunkedArray
    order: np.ndarray | None
    """Rows sorted by cell, stably, int64 (N,); None if they are sorted as they are."""
    cells: np.ndarray
    """Numbers of the C cells that hold positions, sorted, int64 (C,)."""
    starts: np.ndarray
    """The positions of cell c are those at `starts[c]` to `starts[c + 1]` of the order, int64 (C + 1,)."""

    def rows_within(self, near: Near) -> np.ndarray:
        """Find the rows within a radius, inclusive: sorted, int64 (n,)."""
        found = [np.zeros(0, np.int64)]
        for first, last in _ranges_of_cells(near):
            starts, ends = np.searchsorted(self.cells, first), np.searchsorted(self.cells, last, side="right")
            found.append(_joined(self.starts[starts], self.starts[ends]))
        rows = np.concatenate(found)
        rows = np.sort(rows if self.order is None else self.order[rows])
        latitude, longitude = (_at(column, rows) for column in (self.latitude, self.longitude))
        return rows[haversine_m(latitude, longitude, near.latitude, near.longitude) <= near.radius_m]


def cell_order(latitude: pa.ChunkedArray, longitude: pa.ChunkedArray) -> np.ndarray:
    """Sort positions in degrees by cell, stably, those that are unknown (NaN) last: rows, int64 (N,)."""
    return np.argsort(_numbered(latitude, longitude), kind="stable")


def build_cell_order(latitude: pa.ChunkedArray, longitude: pa.ChunkedArray) -> CellOrder:
    """Sort positions in degrees by cell; little to do and to hold where they are sorted already."""
    numbers = _numbered(latitude, longitude)
    order = None
    if (numbers[1:] < numbers[:-1]).any():
        order = np.argsort(numbers, kind="stable")
        numbers = numbers[order]
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    return CellOrder(latitude, longitude, order, numbers[starts], np.append(starts, len(numbers)))


def cell_range(latitude: pa.ChunkedArray, longitude: pa.ChunkedArray) -> tuple[int, int] | None:
    """Return the first and the last cell of positions in degrees; None if all are unknown."""
    found = []
    for each in zip(_parts(latitude), _parts(longitude), strict=True):
        cells = _cells(*each)
        if len(cells := cells[cells < _UNKNOWN]):
            found += [int(cells.min()), int(cells.max())]
    return (min(found), max(found)) if found else None


def reaches(near: Near, cells: tuple[int, int]) -> bool:
    """Return whether a circle may hold a position between two cells, see `cell_range`."""
    return any(((first <= cells[1]) & (last >= cells[0])).any() for first, last in _ranges_of_cells(near))


def _numbered(latitude: pa.ChunkedArray, longitude: pa.ChunkedArray) -> np.ndarray:
    """Number the cell of each position, some at a time, int64 (N,)."""
    numbers, start = np.empty(len(latitude), np.int64), 0
    for each in zip(_parts(latitude), _parts(longitude), strict=True):
        numbers[start : start + len(each[0])] = _cells(*each)
        start += len(each[0])
    return numbers


def _cells(latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Number the cell of each position, (N,): bands from the south, in a band from the 180 degree meridian to the east.

    It grows with the longitude in a band, and from band to band.
    """
    known = np.isfinite(latitude) & np.isfinite(longitude)
    band = _band(np.where(known, latitude, 0))
    share = (np.where(known, longitude, 0) + 180) % 360 / 360
    column = np.minimum((share * _columns(band)).astype(np.int64), _columns(band) - 1)
    return np.where(known, band * _MAX_COLUMNS + column, _UNKNOWN)


def _band(latitude: np.ndarray) -> np.ndarray:
    return np.floor((latitude + 90) * _BANDS_PER_DEGREE).astype(np.int64)


def _columns(band: np.ndarray) -> np.ndarray:
    """Return the number of cells in a band, at least 1."""
    middle = (band + 0.5) / _BANDS_PER_DEGREE - 90
    return np.maximum(360 * _BANDS_PER_DEGREE * np.cos(np.radians(middle)), 1).astype(np.int64)


def _ranges_of_cells(near: Near) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the first and last cells of each band, (B,) each, that reach into a square around a circle.

    There are two such ranges across the 180 degree meridian.
    """
    angle = angle_of(near.radius_m) + _MARGIN_DEG
    lowest, highest = near.latitude - angle, near.latitude + angle
    first, last = _band(np.clip([lowest, highest], -90, 90)).tolist()
    band = np.arange(first, last + 1)
    for west, east in _longitudes(near, angle) if -90 < lowest < highest < 90 else [(-180.0, 180.0)]:
        easternmost = band * _MAX_COLUMNS + _columns(band) - 1
        yield _numbers(band, west), _numbers(band, east) if east < 180 else easternmost


def _numbers(band: np.ndarray, longitude: float) -> np.ndarray:
    latitude = (band + 0.5) / _BANDS_PER_DEGREE - 90
    return _cells(latitude, np.full(len(band), longitude))


def _longitudes(near: Near, angle: float) -> list[tuple[float, float]]:
    """Return the one or two ranges of longitudes, -180 to 180, of a circle that holds no pole; `angle` is its radius.

    The circle is widest where a meridian touches it: at asin(sin(angle) / cos(latitude)) from its center.
    """
    ratio = np.sin(np.radians(angle)) / np.cos(np.radians(near.latitude))
    half = float(np.degrees(np.arcsin(np.minimum(ratio, 1)))) + _MARGIN_DEG
    west, east = ((near.longitude + side + 180) % 360 - 180 for side in (-half, half))
    return [(west, east)] if west <= east else [(-180.0, east), (west, 180.0)]


def _joined(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """List the numbers of all ranges, int64 (n,)."""
    sizes = ends - starts
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


def _parts(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    for start in range(0, len(column), _ROWS_AT_ONCE):
        yield column.slice(start, _ROWS_AT_ONCE).to_numpy()


def _at(column: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """Read the values at sorted rows, (n,), without the others, which may be on disk."""
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    values = [
        chunk.to_numpy()[part - (end - len(chunk))]
        for chunk, part, end in zip(column.chunks, parts, ends.tolist(), strict=True)
        if len(part)
    ]
    return np.concatenate([np.zeros(0), *values])
