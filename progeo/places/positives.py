"""Positives: the database images that are correct for a query, by distance and optionally by viewing angle."""

import numpy as np

from progeo.places.catalogue import Catalogue
from progeo.places.distances import Distances, distances_between
from progeo.progress import phase

_ROUNDING_DEG = 1e-9
_FAR_M = 1000


@phase("finding positives")
def find_positives(
    database: Catalogue,
    queries: Catalogue,
    radius_m: float,
    *,
    angle_deg: float | None = None,
    great_circle: bool = False,
) -> list[np.ndarray]:
    """Find the positives of each query: those stored with the queries if any, else by distance and viewing angle.

    Args:
        radius_m: maximum distance in meters, positive.
        angle_deg: maximum heading difference, above 0 and at most 180; None ignores headings.
        great_circle: measure radii from 1 km along great circles, see `distances_between`; below, meters of UTM are
            more exact than a sphere, and those of published recalls, and great circles only cross borders of zones.

    Returns:
        Q sorted int64 arrays of database rows, empty for a query without positives.

    Raises:
        ValueError: radius or angle out of range; an angle although positives are stored or headings are missing.
    """
    given = queries.positives
    if angle_deg is not None:
        _check_angle(database, queries, angle_deg, is_given=given is not None)
    if given is not None:
        return given
    is_far = radius_m >= _FAR_M
    distances = distances_between(database, queries, great_circle=great_circle and is_far)
    found = positives_within(distances.database, distances.queries, distances.straight_m(radius_m))
    if great_circle and not is_far:
        around = distances_between(database, queries, great_circle=True)
        nearby = positives_within(around.database, around.queries, around.straight_m(radius_m))
        found = _across_zones(found, nearby, distances)
    return found if angle_deg is None else looking_alike(found, database.heading, queries.heading, angle_deg)


def positives_within(database_m: np.ndarray, queries_m: np.ndarray, radius_m: float) -> list[np.ndarray]:
    """Find the database images within a radius of each query, including those exactly at the radius.

    Args:
        database_m: positions in meters, such as UTM east and north, (N, 2); `queries_m` likewise, (Q, 2).
        radius_m: meters, positive.

    Returns:
        As of `find_positives`.

    Raises:
        ValueError: the radius is not positive.
    """
    if radius_m <= 0:
        raise ValueError(f"positive_radius_m must be positive, got {radius_m}.")
    from scipy.spatial import cKDTree  # commands that search no positions start without it

    found = cKDTree(database_m).query_ball_point(queries_m, radius_m, return_sorted=True)
    return [np.asarray(rows, np.int64) for rows in found]


def looking_alike(
    positives: list[np.ndarray], database_deg: np.ndarray, queries_deg: np.ndarray, angle_deg: float
) -> list[np.ndarray]:
    """Keep the positives whose heading differs from the query's by at most an angle, inclusive.

    Args:
        positives: Q arrays of database rows, whose order is kept.
        database_deg, queries_deg: headings in degrees clockwise from north, (N,) and (Q,).
        angle_deg: 0 to 180.
    """
    rows, query = _flat(positives)
    alike = turns(database_deg[rows], queries_deg[query]) <= angle_deg + _ROUNDING_DEG
    counts = np.bincount(query[alike], minlength=len(positives))
    return np.split(rows[alike], np.cumsum(counts)[:-1])


def smallest_turns(positives: list[np.ndarray], database_deg: np.ndarray, queries_deg: np.ndarray) -> np.ndarray:
    """Compute the smallest heading difference between each query and its positives, (Q,) from 0 to 180.

    NaN if the heading of the query or those of all its positives are unknown; arguments as of `looking_alike`.
    """
    rows, query = _flat(positives)
    smallest = np.full(len(positives), np.nan)
    np.fmin.at(smallest, query, turns(database_deg[rows], queries_deg[query]))
    return smallest


def turns(first_deg: np.ndarray, second_deg: np.ndarray) -> np.ndarray:
    """Compute the differences between headings in degrees, from 0 to 180."""
    return np.abs((first_deg - second_deg + 180) % 360 - 180)


def _flat(positives: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the positives of all queries in a row, and the query of each."""
    rows = np.concatenate([np.empty(0, np.int64), *positives])
    return rows, np.repeat(np.arange(len(positives)), [len(each) for each in positives])


def _across_zones(found: list[np.ndarray], nearby: list[np.ndarray], distances: Distances) -> list[np.ndarray]:
    """Add to the positives of each query those nearby that lie in another zone, and so far away in meters of UTM."""
    both = []
    for rows, others, query_m in zip(found, nearby, distances.queries, strict=True):
        is_far = np.linalg.norm(distances.database[others] - query_m, axis=1) > 2 * _FAR_M
        both.append(np.union1d(rows, others[is_far]))
    return both


def _check_angle(database: Catalogue, queries: Catalogue, angle_deg: float, *, is_given: bool) -> None:
    if not 0 < angle_deg <= 180:
        raise ValueError(f"`positive_angle_deg` must be above 0 and at most 180, got {angle_deg:g}.")
    if is_given:
        raise ValueError(
            f"`positive_angle_deg` {angle_deg:g} cannot be used: the correct images of {queries.folder} are given, "
            f"and do not follow from distances and headings. Leave it out."
        )
    absent = [int(np.isnan(catalogue.heading).sum()) for catalogue in (database, queries)]
    if any(absent):
        raise ValueError(
            f"`positive_angle_deg` {angle_deg:g} needs the heading of every image: {absent[0]:,} of {len(database):,} "
            f"database images and {absent[1]:,} of {len(queries):,} queries have none. Leave it out."
        )
