"""Nearest neighbours among descriptors, by faiss."""

from dataclasses import dataclass

import faiss
import numpy as np


@dataclass(frozen=True)
class Neighbours:
    """The nearest database images of Q queries, best first."""

    rows: np.ndarray
    """Database rows, int64 (Q, K)."""
    distances: np.ndarray
    """Euclidean distances between descriptors, float32 (Q, K)."""


def nearest_neighbours(database: np.ndarray, queries: np.ndarray, count: int) -> Neighbours:
    """Search exactly, by Euclidean distance.

    Args:
        database: descriptors, float32 (N, D).
        queries: descriptors, float32 (Q, D).
        count: neighbours of a query; at most N are there.
    """
    index = faiss.IndexFlatL2(database.shape[1])
    index.add(np.ascontiguousarray(database, np.float32))
    squared, rows = index.search(np.ascontiguousarray(queries, np.float32), min(count, len(database)))
    return Neighbours(rows, np.sqrt(np.maximum(squared, 0)))
