"""Distances between the images of a database and queries, in a plane or, for wide sets, along great circles."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from progeo.places.catalogue import Catalogue
from progeo.places.extent import extent_of
from progeo.places.geographic import degrees_of, positions_m

EARTH_RADIUS_M = 6_371_008.8
"""Mean radius of the Earth."""
_WIDE_M = 100_000


@dataclass(frozen=True)
class Distances:
    """Points of N database images and Q queries, NaN where unknown, and distances between them in meters."""

    database: np.ndarray
    """Positions in meters, (N, 2) of a plane, or (N, 3) from the center of the Earth."""
    queries: np.ndarray
    """Likewise, (Q, 2) or (Q, 3)."""

    def between(self, predictions: np.ndarray) -> np.ndarray:
        """Compute the distances between each query and database rows (Q, K), -1 for none: (Q, K), NaN if unknown."""
        straight_m = np.linalg.norm(self.database[predictions] - self.queries[:, None], axis=2)
        return np.where(predictions < 0, np.nan, self._along(straight_m))

    def of_pairs(self, rows: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """Compute the distances between database rows and queries, int64 (M,) each: (M,), NaN if unknown."""
        return self._along(np.linalg.norm(self.database[rows] - self.queries[queries], axis=1))

    def nearest(self) -> np.ndarray:
        """Compute the distance of each query to the nearest database image, (Q,); all positions must be known."""
        from scipy.spatial import cKDTree  # commands that search no positions start without it

        return self._along(cKDTree(self.database).query(self.queries)[0])

    def straight_m(self, distance_m: float) -> float:
        """Convert a distance along the surface to the straight distance between points."""
        if not self._on_sphere:
            return distance_m
        return 2 * EARTH_RADIUS_M * float(np.sin(min(distance_m / (2 * EARTH_RADIUS_M), np.pi / 2)))

    @property
    def _on_sphere(self) -> bool:
        return self.database.shape[1] == 3

    def _along(self, straight_m: np.ndarray) -> np.ndarray:
        """Convert straight distances to distances along the surface."""
        if not self._on_sphere:
            return straight_m
        return 2 * EARTH_RADIUS_M * np.arcsin(np.minimum(straight_m / (2 * EARTH_RADIUS_M), 1))


def distances_between(database: Catalogue, queries: Catalogue, *, great_circle: bool = False) -> Distances:
    """Compute the distances between images, in the plane of `positions_m` or along great circles.

    Raises:
        ValueError: see `positions_m`.
    """
    if not great_circle:
        return Distances(*positions_m(database, queries))
    return Distances(*(_on_sphere(degrees_of(catalogue)) for catalogue in (database, queries)))


def distance_text(distance_m: float) -> str:
    """Format a distance in meters, or from 10 km in kilometers."""
    return f"{distance_m:,.1f} m" if distance_m < 10_000 else f"{distance_m / 1000:,.1f} km"


def is_wide(*catalogues: Catalogue) -> bool:
    """Return whether images cover more than 100 km, and the latitudes and longitudes of all are known.

    A few images far from all others do not make a set wide, see `extent_of`.
    """
    columns = {name: np.concatenate([getattr(each, name) for each in catalogues]) for name in ("east", "north", "zone")}
    is_narrow = all(np.ptp(columns[name]) <= _WIDE_M for name in ("east", "north"))
    if is_narrow and len(np.unique(columns["zone"])) == 1:
        return False
    latitude, longitude = np.concatenate([degrees_of(each) for each in catalogues], axis=1)
    if not np.isfinite(latitude + longitude).all():
        return False
    names = pa.array([""] * len(latitude), pa.large_string())
    extent = extent_of(
        Catalogue(
            catalogues[0].folder, pa.table({"path": names, **columns, "latitude": latitude, "longitude": longitude})
        )
    )
    return extent is not None and max(extent.size_m) > _WIDE_M


def _on_sphere(degrees: np.ndarray) -> np.ndarray:
    """Convert latitudes and longitudes (2, N) to points (N, 3) in meters from the center of the Earth."""
    latitude, longitude = np.radians(degrees)
    around = np.cos(latitude)
    points = [around * np.cos(longitude), around * np.sin(longitude), np.sin(latitude)]
    return EARTH_RADIUS_M * np.stack(points, axis=1)
