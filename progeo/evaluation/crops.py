"""Queries that search with several crops: from what each crop found to what the query found."""

import numpy as np

_MAJORITY_WEIGHT = 0.01
_VOTES_AMONG = (1, 5, 10)


def nearest_of_crops(rows: np.ndarray, squared: np.ndarray, count: int) -> np.ndarray:
    """What is nearest to any crop of each query, every database image once: int64 (Q, count), -1 where none is left.

    Args:
        rows: database rows that each crop found, int64 (Q, C, K); -1 where there is none.
        squared: squared Euclidean distances between their descriptors, (Q, C, K).
        count: predictions to keep.
    """
    kept = np.full((len(rows), count), -1, np.int64)
    for query, found in enumerate(rows.reshape(len(rows), -1)):
        in_order = found[np.argsort(squared[query].ravel(), kind="stable")]
        in_order = in_order[in_order >= 0]
        _, first = np.unique(in_order, return_index=True)
        once = in_order[np.sort(first)][:count]
        kept[query, : len(once)] = once
    return kept


def votes_of_crops(rows: np.ndarray, squared: np.ndarray, count: int) -> np.ndarray:
    """The same, with database images that several crops found brought nearer: majority voting.

    Of what c crops have among their first n, each squared distance there shrinks by 0.01 c / n, for n of 1, 5 and 10.
    """
    squared = np.array(squared, np.float64)
    for found, nearer in zip(rows, squared, strict=True):
        for n in _VOTES_AMONG:
            among, counts = np.unique(found[:, :n], return_counts=True)
            votes = np.where(counts > 1, counts, 0)[np.searchsorted(among, found[:, :n])]
            nearer[:, :n] -= _MAJORITY_WEIGHT * votes / n
    return nearest_of_crops(rows, squared, count)
