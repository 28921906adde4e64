"""Which database images count as right for a query: those taken within some metres of it."""

import numpy as np
from scipy.spatial import cKDTree


def positives_within(database_m: np.ndarray, queries_m: np.ndarray, radius_m: float) -> list[np.ndarray]:
    """Database images within a radius of each query, the radius itself included.

    Args:
        database_m: UTM east and north in metres, (N, 2).
        queries_m: UTM east and north in metres, (Q, 2).
        radius_m: metres, positive.

    Returns:
        Q sorted int64 arrays of database rows, empty where a query has none.
    """
    if radius_m <= 0:
        raise ValueError(f"positive_radius_m must be positive, got {radius_m}.")
    found = cKDTree(database_m).query_ball_point(queries_m, radius_m, return_sorted=True)
    return [np.asarray(rows, np.int64) for rows in found]
