"""Small maps of a city for the report: for each query the probability of its best cells, and where it was taken."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from progeo.evaluation.classification import ClassScores
from progeo.evaluation.retrieved import Retrieved

_MAP_PX = 160
"""Side of the square that a map fills, in pixels."""
_MIN_CELL_PX = 6
"""Minimum side of a drawn cell."""
_MAX_OUTLINED = 4000
"""Maximum number of cells that are drawn to show the shape of the city."""


@dataclass(frozen=True)
class Square:
    """A drawn cell: its upper left corner and its side in meters, and its probability."""

    x: float
    y: float
    side: float
    probability: float


@dataclass(frozen=True)
class QueryMap:
    """The map of one query, in meters, north up."""

    view_box: str
    pixel: float
    """Meters per pixel."""
    squares: list[Square]
    """The best cells, the least probable first."""
    position: tuple[float, float] | None
    """Where the query was taken; None if it is unknown."""
    total: float
    """Sum of the probabilities of the drawn cells."""


@dataclass(frozen=True)
class CityMap:
    """The shape of the city, and the maps of queries by their row."""

    outline: str
    """Path of the cells of all classes, or of some of them."""
    queries: Mapping[int, QueryMap]


def city_map(retrieved: Retrieved, classes: ClassScores, shown: np.ndarray) -> CityMap:
    """Lay out a map for each query at `shown`."""
    centers_m, queries_m = retrieved.positions_m
    origin = np.array([centers_m[:, 0].min(), centers_m[:, 1].max()])
    centers, places = ((each - origin) * [1, -1] for each in (centers_m, queries_m))
    side = float(classes.classifier.cell_side_m)
    corners = np.unique(np.round(centers - side / 2, 1), axis=0)
    corners = corners[:: -(-len(corners) // _MAX_OUTLINED)]
    outline = "".join(f"M{x:g} {y:g}h{side:g}v{side:g}h{-side:g}z" for x, y in corners.tolist())
    bounds = np.stack([centers.min(axis=0) - side, centers.max(axis=0) + side])
    return CityMap(outline, {row: _query_map(row, centers, places[row], bounds, classes) for row in shown.tolist()})


def _query_map(row: int, centers: np.ndarray, place: np.ndarray, bounds: np.ndarray, classes: ClassScores) -> QueryMap:
    is_known = bool(np.isfinite(place).all())
    if is_known:
        bounds = np.stack([np.minimum(bounds[0], place), np.maximum(bounds[1], place)])
    size = float((bounds[1] - bounds[0]).max()) * 1.06
    left, top = (bounds.mean(axis=0) - size / 2).tolist()
    pixel = size / _MAP_PX
    side = max(float(classes.classifier.cell_side_m), _MIN_CELL_PX * pixel)
    found = classes.rows[row] >= 0
    by_cell: dict[tuple[float, float], float] = {}  # classes of one cell differ in heading
    for index, probability in zip(
        classes.rows[row, found].tolist(), classes.probabilities[row, found].tolist(), strict=True
    ):
        x, y = centers[index].tolist()
        by_cell[x, y] = by_cell.get((x, y), 0.0) + probability
    squares = [
        Square(x - side / 2, y - side / 2, side, probability)
        for (x, y), probability in sorted(by_cell.items(), key=lambda item: item[1])
    ]
    return QueryMap(
        view_box=f"{left:.1f} {top:.1f} {size:.1f} {size:.1f}",
        pixel=pixel,
        squares=squares,
        position=tuple(place.tolist()) if is_known else None,
        total=min(1.0, sum(by_cell.values())),
    )
