"""Merge the predictions of several crops of a query into predictions of the query."""

import numpy as np

from progeo.evaluation.metrics import first_of_each_panorama

_MAJORITY_WEIGHT = 0.01
_VOTES_AMONG = (1, 5, 10)


def nearest_of_crops(rows: np.ndarray, squared: np.ndarray, count: int) -> np.ndarray:
    """Merge the predictions of all crops of a query by distance, without duplicates: int64 (Q, count), padded with -1.

    Args:
        rows: database rows predicted for each crop, int64 (Q, C, K); -1 where there is none.
        squared: squared Euclidean distances between descriptors, (Q, C, K).
        count: number of predictions to keep.
    """
    rows, squared = (each.reshape(len(rows), -1) for each in (rows, squared))
    ordered = np.take_along_axis(rows, np.argsort(squared, axis=1, kind="stable"), axis=1)
    return first_of_each_panorama(ordered, np.arange(ordered.max(initial=-1) + 1), count)


def votes_of_crops(rows: np.ndarray, squared: np.ndarray, count: int) -> np.ndarray:
    """Merge the predictions of all crops by majority voting; arguments and result as of `nearest_of_crops`.

    For n of 1, 5 and 10, if c > 1 crops have an image among their first n, its squared distances there decrease by 0.01
    c / n.
    """
    squared = np.array(squared, np.float64)
    for found, nearer in zip(rows, squared, strict=True):
        for n in _VOTES_AMONG:
            among, counts = np.unique(found[:, :n], return_counts=True)
            votes = np.where(counts > 1, counts, 0)[np.searchsorted(among, found[:, :n])]
            nearer[:, :n] -= _MAJORITY_WEIGHT * votes / n
    return nearest_of_crops(rows, squared, count)
