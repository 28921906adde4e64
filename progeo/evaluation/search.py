"""Nearest neighbours among descriptors, by faiss."""

from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np

_ROWS_AT_ONCE = 2**17


@dataclass(frozen=True)
class Neighbours:
    """The nearest database images of Q queries, best first."""

    rows: np.ndarray
    """Database rows, int64 (Q, K)."""
    distances: np.ndarray
    """Euclidean distances between descriptors, float32 (Q, K)."""


def nearest_neighbours(database: np.ndarray, queries: np.ndarray, count: int) -> Neighbours:
    """Search exactly, by Euclidean distance; of equally near images the first comes first (on a GPU: any).

    The database is gone through in parts, so it may be a file mapped into memory, and never are all distances there.

    Args:
        database: descriptors, float16 or float32 (N, D).
        queries: descriptors, float32 (Q, D).
        count: neighbours of a query; at most N are there.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    squared, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start, part in _parts(database):
        part_squared, part_rows = _search(queries, part, min(count, len(part)))
        squared = np.concatenate([squared, part_squared], axis=1)
        rows = np.concatenate([rows, start + part_rows], axis=1)
        order = np.argsort(squared, axis=1, kind="stable")[:, :count]
        squared, rows = np.take_along_axis(squared, order, axis=1), np.take_along_axis(rows, order, axis=1)
    return Neighbours(rows, np.sqrt(np.maximum(squared, 0)))


def _parts(database: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(database), _ROWS_AT_ONCE):
        yield start, np.ascontiguousarray(database[start : start + _ROWS_AT_ONCE], np.float32)


def _search(queries: np.ndarray, database: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if faiss.get_num_gpus():
        return faiss.knn_gpu(faiss.StandardGpuResources(), queries, database, count)
    return faiss.knn(queries, database, count)
