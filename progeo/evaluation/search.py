"""Nearest neighbours among descriptors, by faiss."""

from collections.abc import Iterable
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


def nearest_neighbours(parts: Iterable[np.ndarray], queries: np.ndarray, count: int) -> Neighbours:
    """Search exactly, by Euclidean distance; of equally near images the first comes first (on a GPU: any).

    Args:
        parts: descriptors of the database one after the other, float16 or float32 (n, D) each: no more than one part
            and its distances need be in memory.
        queries: descriptors, float32 (Q, D).
        count: neighbours of a query; at most as many as the database has.
    """
    queries = np.ascontiguousarray(queries, np.float32)
    squared, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    start = 0
    for part in parts:
        database = np.ascontiguousarray(part, np.float32)
        part_squared, part_rows = _search(queries, database, min(count, len(database)))
        squared = np.concatenate([squared, part_squared], axis=1)
        rows = np.concatenate([rows, start + part_rows], axis=1)
        order = np.argsort(squared, axis=1, kind="stable")[:, :count]
        squared, rows = np.take_along_axis(squared, order, axis=1), np.take_along_axis(rows, order, axis=1)
        start += len(database)
    return Neighbours(rows, np.sqrt(np.maximum(squared, 0)))


def _search(queries: np.ndarray, database: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if faiss.get_num_gpus():
        return faiss.knn_gpu(faiss.StandardGpuResources(), queries, database, count)
    return faiss.knn(queries, database, count)
