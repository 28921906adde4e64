"""Re-rank database images by the neighbors that they share with a query (Zhong et al., CVPR 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csc_array, csr_array, vstack

from progeo.evaluation.search import Neighbors, squared_distances
from progeo.features.store import ShardedRows
from progeo.progress import followed

_BLOCK_VALUES = 2**24
"""Values of the largest temporary matrix of floats: 64 MiB."""
_MAX_BLOCK = 2**12
_MIN_OVERLAP = 2.0 / 3
"""The neighbors of a neighbor are added if more than this fraction of them are neighbors already."""


@dataclass(frozen=True)
class _Images:
    """Descriptors of all n images: Q queries, then N of the database."""

    queries: np.ndarray
    database: ShardedRows | np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """All rows, int64 (n,)."""
        return np.arange(len(self.queries) + len(self.database))

    @property
    def of_database(self) -> np.ndarray:
        """Rows of the database images, int64 (N,)."""
        return self.rows[len(self.queries) :]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the descriptors at ascending rows, float32 (b, D)."""
        split = np.searchsorted(rows, len(self.queries))
        images = rows[split:] - len(self.queries)
        stored = self.database[images] if isinstance(self.database, np.ndarray) else self.database.take(images)
        return np.concatenate([self.queries[rows[:split]], stored.astype(np.float32)])

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Split rows into blocks whose descriptors and distances to another block fit in memory."""
        return _split(rows, min(_MAX_BLOCK, _BLOCK_VALUES // self.queries.shape[1]))


@dataclass(frozen=True)
class Reranker:
    """What all images have as neighbors, by which database images are re-ranked, see `build_reranker`."""

    images: _Images
    encodings: csr_array
    """Weights of the neighbors of each image, which add up to 1, float32 (n, n)."""
    largest: np.ndarray
    """Largest squared distance of each image to another one, float32 (n,)."""
    weight: float

    @property
    def num_bytes(self) -> int:
        """Size of the weights of the neighbors in bytes."""
        return self.encodings.data.nbytes + self.encodings.indices.nbytes + self.encodings.indptr.nbytes

    def distances(self) -> Iterator[np.ndarray]:
        """Yield the re-ranked distances of blocks of queries to all database images, float32 (b, N) each."""
        for reranked, _ in self._blocks():
            yield reranked

    def nearest(self, count: int) -> Neighbors:
        """Find the database images with the smallest re-ranked distances; equal ones are ordered by descriptor.

        Args:
            count: neighbors per query; fewer are returned if the database is smaller.
        """
        rows, distances, total = [], [], len(self.images.queries)
        for reranked, original in followed(
            self._blocks(), "re-ranking", total=total, size=lambda block: len(block[0]), unit="queries"
        ):
            rows.append(np.lexsort((original, reranked))[:, :count])
            distances.append(np.take_along_axis(reranked, rows[-1], axis=1))
        return Neighbors(np.concatenate(rows), np.concatenate(distances))

    def distances_of(self, queries: np.ndarray) -> np.ndarray:
        """Compute the re-ranked distances of some images to all database images, float32 (b, N).

        Args:
            queries: ascending rows, int64 (b,): those of queries, or Q + the row of a database image.
        """
        return self._block(queries)[0]

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield re-ranked and original distances of blocks of queries to all database images, float32 (b, N) each."""
        size = min(_MAX_BLOCK, _BLOCK_VALUES // len(self.images.of_database))
        return map(self._block, _split(np.arange(len(self.images.queries)), size))

    def _block(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        queries = self.images.take(rows)
        parts = [
            squared_distances(queries, self.images.take(part)) for part in self.images.blocks(self.images.of_database)
        ]
        original = _relative(np.concatenate(parts, axis=1), self.largest[rows, None])
        jaccard = np.stack([self._jaccard(row) for row in rows.tolist()])
        return jaccard * np.float32(1 - self.weight) + original * np.float32(self.weight), original

    @cached_property
    def _of_database(self) -> csc_array:
        """Weights of the neighbors of each database image, by neighbor, (N, n)."""
        return csc_array(self.encodings[self.images.of_database])

    def _jaccard(self, query: int) -> np.ndarray:
        """Compute Jaccard distances between the neighbors of a query and those of database images, float32 (N,)."""
        columns, weights = _row(self.encodings, query)
        shared = self._of_database[:, columns]
        smaller = np.minimum(shared.data, np.repeat(weights, np.diff(shared.indptr)))
        overlap = np.bincount(shared.indices, smaller, minlength=len(self.images.of_database))
        return (1 - overlap / (2 - overlap)).astype(np.float32)


def k_reciprocal(
    queries: np.ndarray, database: ShardedRows | np.ndarray, *, k1: int, k2: int, weight: float
) -> np.ndarray:
    """Compute k-reciprocal re-ranked distances of queries to a database, float32 (Q, N); see `build_reranker`."""
    return np.concatenate(list(build_reranker(queries, database, k1=k1, k2=k2, weight=weight).distances()))


def build_reranker(
    queries: np.ndarray, database: ShardedRows | np.ndarray, *, k1: int, k2: int, weight: float
) -> Reranker:
    """Find the k-reciprocal neighbors of all images: those that are among the nearest of each other.

    As in the code of the paper, which OpenIBL uses, a distance is the fourth power of the Euclidean distance, relative
    to the largest one of an image. Memory grows with the number of neighbors, not of pairs.

    Args:
        queries: descriptors, (Q, D).
        database: descriptors, (N, D), of which only some are in memory at a time.
        k1: number of nearest images that may be neighbors; all of them if there are fewer.
        k2: number of nearest images, itself included, over which the neighbors of each image are averaged; 1 does not.
        weight: weight of the original distances, 0 to 1; the other part is that of the Jaccard distances of neighbors.
    """
    stored = database if isinstance(database, ShardedRows) else np.asarray(database)
    images = _Images(np.asarray(queries, np.float32), stored)
    nearest, largest = _nearest_images(images, max(k1 + 1, k2))
    encodings = _encodings(images, nearest, largest, k1)
    if k2 != 1:
        averaged = _pattern(nearest[:, :k2])
        encodings = csr_array(averaged @ encodings) / np.float32(min(k2, nearest.shape[1]))
    return Reranker(images, encodings, largest, weight)


def _nearest_images(images: _Images, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest images of each image, itself first, int64 (n, K), and its largest squared distance, (n,)."""
    found = []
    largest = np.full(len(images.rows), np.finfo(np.float32).tiny)
    for block in followed(images.blocks(images.rows), "comparing pairs", total=len(images.rows), size=len):
        descriptors = images.take(block)
        rows, squared = np.empty((len(block), 0), np.int64), np.empty((len(block), 0), np.float32)
        for part in images.blocks(images.rows):
            here = squared_distances(descriptors, images.take(part))
            largest[block] = np.maximum(largest[block], here.max(axis=1))
            itself = np.flatnonzero((block >= part[0]) & (block <= part[-1]))
            here[itself, block[itself] - part[0]] = -1
            near = np.sort(np.argpartition(here, min(count, len(part)) - 1, axis=1)[:, :count], axis=1)
            rows = np.concatenate([rows, part[near]], axis=1)
            squared = np.concatenate([squared, np.take_along_axis(here, near, axis=1)], axis=1)
            order = np.argsort(squared, axis=1, kind="stable")[:, :count]
            rows, squared = np.take_along_axis(rows, order, axis=1), np.take_along_axis(squared, order, axis=1)
        found.append(rows)
    return np.concatenate(found), largest


def _encodings(images: _Images, nearest: np.ndarray, largest: np.ndarray, k1: int) -> csr_array:
    """Compute the weights of the neighbors of each image, and of those neighbors' neighbors that fit, (n, n)."""
    mutual, closer = _mutual(nearest[:, : k1 + 1]), _mutual(nearest[:, : round(k1 / 2) + 1])
    num_closer = np.diff(closer.indptr)
    blocks = []
    for rows in followed(_split(images.rows, _MAX_BLOCK), "weighting neighbors", total=len(images.rows), size=len):
        neighbors = mutual[rows]
        shared = (neighbors @ closer.T).multiply(neighbors).tocoo()
        is_kept = shared.data > _MIN_OVERLAP * num_closer[shared.col]
        kept = csr_array((shared.data[is_kept], (shared.row[is_kept], shared.col[is_kept])), shape=shared.shape)
        expanded = csr_array(neighbors + kept @ closer)
        expanded.sort_indices()
        for each, descriptor in enumerate(images.take(rows)):
            columns, weights = _row(expanded, each)
            squared = np.square(images.take(columns) - descriptor).sum(axis=1)
            weights[:] = np.exp(-_relative(squared, largest[rows[each]]))
            weights /= weights.sum()
        blocks.append(expanded)
    return csr_array(vstack(blocks))


def _mutual(nearest: np.ndarray) -> csr_array:
    """Return 1 where two images are among the nearest of each other, float32 (n, n)."""
    pattern = _pattern(nearest)
    return csr_array(pattern.multiply(pattern.T))


def _pattern(nearest: np.ndarray) -> csr_array:
    """Return 1 at the nearest images of each image, float32 (n, n)."""
    num_images, count = nearest.shape
    ones, starts = np.ones(nearest.size, np.float32), np.arange(0, nearest.size + 1, count)
    return csr_array((ones, nearest.ravel(), starts), shape=(num_images, num_images))


def _row(matrix: csr_array, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Return views of the columns and the values of a row."""
    here = slice(*matrix.indptr[row : row + 2])
    return matrix.indices[here], matrix.data[here]


def _relative(squared: np.ndarray, largest: np.ndarray) -> np.ndarray:
    return np.square(squared / largest)


def _split(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield consecutive blocks of rows."""
    for start in range(0, len(rows), max(1, size)):
        yield rows[start : start + max(1, size)]
