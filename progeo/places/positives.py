"""Which database images are correct for a query: those taken within some meters of it, looking the same way."""

import numpy as np
from scipy.spatial import cKDTree

from progeo.places.catalogue import Catalogue
from progeo.places.geographic import positions_m

_ROUNDING_DEG = 1e-9


def find_positives(
    database: Catalogue, queries: Catalogue, radius_m: float, *, angle_deg: float | None = None
) -> list[np.ndarray]:
    """Find the correct database images of each query: as they are given with it, else by distance and viewing angle.

    Args:
        database: N images.
        queries: Q images.
        radius_m: meters, positive.
        angle_deg: how far the headings may differ at most, above 0 and at most 180; None looks at no heading.

    Returns:
        Q sorted int64 arrays of database rows, empty where a query has none.

    Raises:
        ValueError: a radius or an angle out of range; an angle where positives are given or headings are absent.
    """
    given = queries.positives
    if angle_deg is not None:
        _check_angle(database, queries, angle_deg, is_given=given is not None)
    if given is not None:
        return given
    database_m, queries_m = positions_m(database, queries)
    found = positives_within(database_m, queries_m, radius_m)
    return found if angle_deg is None else looking_alike(found, database.heading, queries.heading, angle_deg)


def positives_within(database_m: np.ndarray, queries_m: np.ndarray, radius_m: float) -> list[np.ndarray]:
    """Database images within a radius of each query, the radius itself included.

    Args:
        database_m: UTM east and north in meters, (N, 2).
        queries_m: UTM east and north in meters, (Q, 2).
        radius_m: meters, positive.

    Returns:
        Q sorted int64 arrays of database rows, empty where a query has none.
    """
    if radius_m <= 0:
        raise ValueError(f"positive_radius_m must be positive, got {radius_m}.")
    found = cKDTree(database_m).query_ball_point(queries_m, radius_m, return_sorted=True)
    return [np.asarray(rows, np.int64) for rows in found]


def looking_alike(
    positives: list[np.ndarray], database_deg: np.ndarray, queries_deg: np.ndarray, angle_deg: float
) -> list[np.ndarray]:
    """Keep the database images whose heading differs from the query's by at most an angle, the angle itself included.

    Args:
        positives: Q arrays of database rows.
        database_deg: headings, degrees clockwise from north, (N,).
        queries_deg: the same of queries, (Q,).
        angle_deg: 0 to 180.

    Returns:
        Q int64 arrays of database rows in the order they had.
    """
    rows = np.concatenate([np.empty(0, np.int64), *positives])
    query = np.repeat(np.arange(len(positives)), [len(each) for each in positives])
    turn_deg = np.abs((database_deg[rows] - queries_deg[query] + 180) % 360 - 180)
    alike = turn_deg <= angle_deg + _ROUNDING_DEG
    counts = np.bincount(query[alike], minlength=len(positives))
    return np.split(rows[alike], np.cumsum(counts)[:-1])


def _check_angle(database: Catalogue, queries: Catalogue, angle_deg: float, *, is_given: bool) -> None:
    if not 0 < angle_deg <= 180:
        raise ValueError(f"positive_angle_deg must be above 0 and at most 180, got {angle_deg:g}.")
    if is_given:
        raise ValueError(
            f"positive_angle_deg {angle_deg:g} cannot be used: the correct images of {queries.folder} are given, "
            f"and do not follow from distances and headings. Leave it out."
        )
    absent = [int(np.isnan(catalogue.heading).sum()) for catalogue in (database, queries)]
    if any(absent):
        raise ValueError(
            f"positive_angle_deg {angle_deg:g} needs the heading of every image: {absent[0]:,} of {len(database):,} "
            f"database images and {absent[1]:,} of {len(queries):,} queries have none. Leave it out."
        )
