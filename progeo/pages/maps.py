"""Data of the map of a page: positions of the database, points, polygons, and what is drawn only for a chosen row."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import METERS_PER_DEGREE, middle_of, offsets_m, outliers
from progeo.places.geographic import degrees_of, positions_m
from progeo.printable import escaped, printable

TILE_HOST = "https://tile.openstreetmap.de"
"""Server of street tiles of pages in files, asked only after a click.

FOSSGIS runs it. It needs no key, and is reported to answer pages opened from a file, which send no referrer and which
tile.openstreetmap.org refuses (https://wiki.openstreetmap.org/wiki/Blocked_tiles).
"""
MAX_DRAWN = 10_000
"""Maximum number of database positions, and of points, that a map draws one by one."""
_NUM_SQUARES = 120
"""Number of squares along the longer side of the area, if positions are counted in squares."""
_MIN_SQUARE_M = 1.0
_DECIMALS: Mapping["Unit", int] = MappingProxyType({"degrees": 6, "meters": 1})
"""Decimals of coordinates: 6 of degrees are 0.1 m."""

_TILE_URL = re.compile(r"(https?://[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?)/[!-~]*", re.ASCII)

Unit = Literal["degrees", "meters"]
Kind = Literal["correct", "wrong", "query", "found", "match", "photo", "problem"]


@dataclass(frozen=True)
class Tiles:
    """Street tiles below a map."""

    url: str
    """Address with {z}, {x} and {y}."""
    attribution: str = ""
    """Text about their source."""
    at_once: bool = False
    """Show them when the page opens, not only after a click."""

    def __post_init__(self) -> None:
        if not (_TILE_URL.fullmatch(self.url) and all(part in self.url for part in ("{z}", "{x}", "{y}"))):
            raise ValueError(
                f"`tile_url` must be an address with {{z}}, {{x}} and {{y}}, got {printable(self.url)}. Use for "
                f"example https://tile.example.org/{{z}}/{{x}}/{{y}}.png."
            )

    @property
    def host(self) -> str:
        """Scheme, host and port of the address, as in a Content-Security-Policy."""
        found = _TILE_URL.fullmatch(self.url)
        assert found is not None
        return found[1]


OPENSTREETMAP = Tiles(f"{TILE_HOST}/{{z}}/{{x}}/{{y}}.png", "© OpenStreetMap contributors")


@dataclass(frozen=True)
class MapFrame:
    """Positions of catalogues in one unit."""

    unit: Unit
    positions: list[np.ndarray]
    """For each catalogue latitude and longitude, or north and east in meters, float64 (N, 2), NaN where unknown."""


def map_frame(*catalogues: Catalogue, great_circle: bool = False) -> MapFrame:
    """Compute the positions of catalogues for a map: degrees if they are known wherever meters are, else meters.

    Longitudes continue beyond 180 degrees, so that a set around the 180 degree meridian stays together.

    Args:
        great_circle: use degrees even if some positions are known in meters only, since these have no common plane.

    Raises:
        ValueError: see `positions_m`.
    """
    degrees = [degrees_of(catalogue) for catalogue in catalogues]
    known = [np.isfinite(each).all(axis=0) for each in degrees]
    lost = [np.isfinite(each.east + each.north) & ~found for each, found in zip(catalogues, known, strict=True)]
    if any(each.any() for each in known) and (great_circle or not any(each.any() for each in lost)):
        together = np.concatenate([each[:, found] for each, found in zip(degrees, known, strict=True)], axis=1)
        _, middle = middle_of(*together)
        for each in degrees:
            each[1] -= 360 * np.round((each[1] - middle) / 360)
        return MapFrame("degrees", [each.T for each in degrees])
    return MapFrame("meters", [each[:, ::-1] for each in positions_m(*catalogues)])


@dataclass(frozen=True)
class Points:
    """Points of one kind, which decides their shape and color."""

    name: str
    """Name in the key of the map."""
    kind: Kind
    positions: np.ndarray
    """In the unit of the map, (N, 2), NaN where unknown: such a point is not drawn."""
    keys: Sequence[int] | None = None
    """Row of the page that a click on each point chooses."""
    labels: Sequence[str] | None = None
    """Tooltip of each point."""
    targets: np.ndarray | None = None
    """End of the arrow that starts at each point, (N, 2), NaN for none: where a query was localized."""


@dataclass(frozen=True)
class Polygons:
    """Quadrilaterals of one color."""

    name: str
    """Name in the key of the map."""
    color: int | None
    """Number of the color; colors repeat after eight. None is gray."""
    corners: np.ndarray
    """In the unit of the map, (N, 4, 2)."""
    labels: Sequence[str] | None = None
    """Tooltip of each polygon."""
    weights: Sequence[float] | None = None
    """Opacity of each polygon, 0 to 1."""


@dataclass(frozen=True)
class Detail:
    """What is drawn only while a row of the page is chosen."""

    points: Sequence[Points] = ()
    polygons: Sequence[Polygons] = ()


@dataclass(frozen=True)
class Map:
    """The map of a page."""

    unit: Unit
    """Unit of all positions, see `map_frame`."""
    database: np.ndarray | None
    """Positions (N, 2); above `MAX_DRAWN` of them, squares show how many there are."""
    database_name: str = "database"
    points: Sequence[Points] = ()
    """Above `MAX_DRAWN` points in total, an even sample of each kind is drawn, and all those with a detail."""
    polygons: Sequence[Polygons] = ()
    details: Mapping[int, Detail] = field(default_factory=dict)
    """By key of a row."""
    tiles: Tiles | None = OPENSTREETMAP
    """Street tiles that a map in degrees offers; None offers none."""

    def data(self) -> dict[str, Any]:
        """Return the content for the script of the page, as plain data."""
        placed = self._placed()
        view, num_outside = self._view(placed)
        num_points = sum(_known(points.positions).sum() for points in self.points)
        step = max(1, math.ceil(num_points / MAX_DRAWN))
        return {
            "unit": self.unit,
            "tiles": None if self.tiles is None or self.unit == "meters" else asdict(self.tiles),
            "bounds": None if view is None else _flat(view, self.unit),
            "outside": num_outside,
            "database": None if self.database is None else self._database_data(self.database, view),
            "points": [self._points_data(points, self._drawn(points, step)) for points in self.points],
            "polygons": [self._polygons_data(polygons) for polygons in self.polygons],
            "details": {
                str(key): {
                    "points": [self._points_data(each, _rows_of(each)) for each in detail.points],
                    "polygons": [self._polygons_data(each) for each in detail.polygons],
                }
                for key, detail in self.details.items()
            },
        }

    def _placed(self) -> np.ndarray:
        """Return all known positions that are drawn from the beginning, (N, 2)."""
        database = [] if self.database is None else [self.database]
        corners = [polygons.corners.reshape(-1, 2) for polygons in self.polygons]
        everything = [*database, *(points.positions for points in self.points), *corners]
        together = np.concatenate([np.empty((0, 2)), *everything])
        return together[_known(together)]

    def _view(self, placed: np.ndarray) -> tuple[np.ndarray | None, int]:
        """Return the area to show first, its lower and upper corner (2, 2), and the number of positions outside.

        A few positions far from all others, which are mistakes, do not make the rest too small to see.
        """
        if not len(placed):
            return None, 0
        if self.unit == "degrees":
            offsets = offsets_m(placed.T, middle_of(*placed.T))
        else:
            offsets = placed - np.median(placed, axis=0)
        far = outliers(np.linalg.norm(offsets, axis=1))
        near = placed[~far]
        return np.stack([near.min(axis=0), near.max(axis=0)]), int(far.sum())

    def _database_data(self, positions: np.ndarray, view: np.ndarray | None) -> dict[str, Any]:
        known = positions[_known(positions)]
        shared = {"name": escaped(self.database_name), "count": len(positions), "known": len(known)}
        if len(known) <= MAX_DRAWN or view is None:
            return {**shared, "positions": _flat(known, self.unit)}
        side_m, sides = self._squares(view)
        corners, counts = np.unique(np.floor((known - view[0]) / sides).astype(np.int64), axis=0, return_counts=True)
        return {
            **shared,
            "side_m": round(side_m, 1),
            "origin": view[0].tolist(),
            "sides": sides.tolist(),
            "squares": np.column_stack([corners, counts]).ravel().tolist(),
        }

    def _squares(self, view: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the side of squares in meters, and along both coordinates in their unit."""
        units_m = np.ones(2)
        if self.unit == "degrees":
            units_m = METERS_PER_DEGREE * np.array([1, max(math.cos(math.radians(view[:, 0].mean())), 0.01)])
        side_m = max(float(((view[1] - view[0]) * units_m).max()) / _NUM_SQUARES, _MIN_SQUARE_M)
        return side_m, side_m / units_m

    def _drawn(self, points: Points, step: int) -> np.ndarray:
        """Return the rows of the points that are drawn."""
        rows = _rows_of(points)
        if step == 1 or points.keys is None:
            return rows[::step]
        has_detail = np.isin(np.asarray(points.keys)[rows], list(self.details))
        has_detail[::step] = True
        return rows[has_detail]

    def _points_data(self, points: Points, rows: np.ndarray) -> dict[str, Any]:
        numbers = rows.tolist()
        return {
            "name": escaped(points.name),
            "kind": points.kind,
            "count": len(points.positions),
            "known": len(_rows_of(points)),
            "positions": _flat(points.positions[rows], self.unit),
            "keys": None if points.keys is None else [int(points.keys[row]) for row in numbers],
            "labels": None if points.labels is None else [escaped(points.labels[row]) for row in numbers],
            "targets": None if points.targets is None else _flat(points.targets[rows], self.unit),
        }

    def _polygons_data(self, polygons: Polygons) -> dict[str, Any]:
        labels, weights = polygons.labels, polygons.weights
        rows = np.flatnonzero(np.isfinite(polygons.corners).all(axis=(1, 2)))
        return {
            "name": escaped(polygons.name),
            "color": polygons.color,
            "corners": _flat(polygons.corners[rows].reshape(-1, 2), self.unit),
            "labels": None if labels is None else [escaped(labels[row]) for row in rows.tolist()],
            "weights": None if weights is None else [round(float(weights[row]), 3) for row in rows.tolist()],
        }


def _known(positions: np.ndarray) -> np.ndarray:
    return np.isfinite(positions).all(axis=1)


def _rows_of(points: Points) -> np.ndarray:
    return np.flatnonzero(_known(points.positions))


def _flat(positions: np.ndarray, unit: Unit) -> list[float | None]:
    """Round positions (N, 2) and list their 2 N coordinates, None for unknown ones."""
    values = np.round(np.asarray(positions, np.float64), _DECIMALS[unit]).ravel().tolist()
    return [value if math.isfinite(value) else None for value in values]
