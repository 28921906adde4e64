"""Search rows that lie in several parts: exactly, or compressed by faiss with an exact comparison of the best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from progeo.evaluation.kinds import Restored, transforms
from progeo.evaluation.search import (
    Neighbors,
    first_neighbors,
    index_neighbors,
    joined,
    nearest_among,
    nearest_neighbors,
    refined,
)

_ROWS_AT_ONCE = 2**13
_LISTS_AT_ONCE = 2**21
"""Maximum number of inverted lists that all queries of a search visit together, of 24 bytes each."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a place index."""

    descriptors: np.ndarray | Restored
    """Descriptors, float16 or float32 (n, D), memory-mapped, or those that the index restores."""
    index: faiss.Index | None = None
    """Compressed index of the same rows, trained as those of the other parts; None compares all rows exactly."""
    removed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows that are not found any more, sorted, int64 (r,)."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows in parts: row r of a part is row `starts[part] + r` of all. Several threads may search them."""

    parts: Sequence[Part]
    """At least one; all are compressed, or none."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each part, and the number of all rows, int64 (P + 1,)."""
        return np.cumsum([0, *(len(part.descriptors) for part in self.parts)])

    @cached_property
    def removed(self) -> np.ndarray:
        """All removed rows, sorted, int64 (r,)."""
        return np.concatenate([part.removed + start for start, part in self._numbered()])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the descriptors of rows, int64 (n,), as float32 (n, D)."""
        found = np.empty((len(rows), self.parts[0].descriptors.shape[1]), np.float32)
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            here = owners == number
            found[here] = self.parts[number].descriptors[rows[here] - self.starts[number]]
        return found

    def neighbors(
        self, queries: np.ndarray, count: int, *, probes: int = 1, refine: int = 0, lists: np.ndarray | None = None
    ) -> Neighbors:
        """Search all parts by Euclidean distance; ties are ordered by row.

        Args:
            queries: descriptors, float32 (Q, D).
            count: neighbors per query, K; the row is -1 and the distance infinite where there are fewer.
            probes: number of inverted lists of compressed parts that are visited.
            refine: number of best rows of compressed parts that are compared exactly, `count` at least; 0 takes the
                distances of the index.
            lists: the inverted lists that are visited instead of the nearest, int64 (Q, L).
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if self.parts[0].index is None:
            return _padded(self._exact_neighbors(queries, count), count)
        found = self._compressed_neighbors(queries, max(count, refine), probes, lists)
        return _padded(refined(found, queries, take=self.take) if refine else found, count)

    def neighbors_among(self, rows: np.ndarray, queries: np.ndarray, count: int) -> Neighbors:
        """Compare queries with all of some rows exactly, sorted, int64 (n,); removed ones are skipped."""
        rows = rows[~np.isin(rows, self.removed)]
        return _padded(nearest_among(rows, queries, min(count, len(rows)), take=self.take), count)

    def _numbered(self) -> Iterator[tuple[int, Part]]:
        """Yield each part with its first row."""
        return zip(self.starts.tolist(), self.parts, strict=False)

    def _exact_neighbors(self, queries: np.ndarray, count: int) -> Neighbors:
        remaining = (rows for part in self.parts for rows in _remaining(part))
        found = nearest_neighbors(remaining, queries, min(count, len(self) - len(self.removed)))
        skipped = np.searchsorted(self.removed - np.arange(len(self.removed)), found.rows, side="right")
        return Neighbors(np.where(found.rows < 0, -1, found.rows + skipped), found.distances)

    def _compressed_neighbors(
        self, queries: np.ndarray, count: int, probes: int, lists: np.ndarray | None
    ) -> Neighbors:
        """Search the indexes of all parts for some of the queries at once."""
        trained: Any = self.parts[0].index
        num_lists = getattr(faiss.try_extract_index_ivf(trained), "nlist", 1)
        step = max(1, _LISTS_AT_ONCE // (min(probes, num_lists) if lists is None else lists.shape[1]))
        found = []
        for start in range(0, max(1, len(queries)), step):
            here = slice(start, start + step)
            shared = _Queries.of(trained, queries[here], probes, None if lists is None else lists[here])
            found.append(self._nearest(shared, count))
        return joined(found)

    def _nearest(self, queries: "_Queries", count: int) -> Neighbors:
        """Search the indexes of all parts."""
        shape = (len(queries.given), 0)
        nearest = Neighbors(np.full(shape, -1), np.full(shape, np.inf, np.float32))
        for start, part in self._numbered():
            found = _of_part(part, queries, min(count, len(part.descriptors) - len(part.removed)))
            rows = np.where(found.rows < 0, -1, found.rows + start)
            nearest = first_neighbors(
                np.concatenate([nearest.rows, rows], axis=1),
                np.concatenate([nearest.distances, found.distances], axis=1),
                count,
            )
        return nearest


@dataclass(frozen=True)
class _Queries:
    """Queries as indexes of a kind get them: those of inverted lists transformed, and with the lists to visit."""

    given: np.ndarray
    """Descriptors, float32 (Q, D)."""
    probes: int
    transformed: np.ndarray
    lists: np.ndarray | None
    """Lists of each query, int64 (Q, L); None if the index itself chooses them or has none."""
    list_distances: np.ndarray
    """Their squared distances, float32 (Q, L)."""

    @classmethod
    def of(cls, index: Any, queries: np.ndarray, probes: int, lists: np.ndarray | None) -> "_Queries":
        inverted, transformed = _inside_transforms(index, queries)
        if not isinstance(inverted, faiss.IndexIVF):
            return cls(queries, probes, queries, None, np.empty((len(queries), 0), np.float32))
        if lists is None:
            distances, lists = inverted.quantizer.search(transformed, min(probes, inverted.nlist))
            return cls(queries, probes, transformed, lists, distances)
        distances = np.zeros(lists.shape, np.float32)
        return cls(queries, probes, transformed, np.ascontiguousarray(lists, np.int64), distances)

    def search(self, index: Any, count: int, of: np.ndarray) -> Neighbors:
        """Search an index for the queries at some positions, int64 (q,)."""
        if self.lists is None:
            return index_neighbors(index, self.given[of], count, probes=self.probes)
        inverted: Any = faiss.extract_index_ivf(index)
        squared, rows = np.empty((len(of), count), np.float32), np.empty((len(of), count), np.int64)
        queries, *visited = (each[of] for each in (self.transformed, self.lists, self.list_distances))
        given = [faiss.swig_ptr(each) for each in (queries, *visited, squared, rows)]
        parameters = faiss.SearchParametersIVF()
        parameters.nprobe = self.lists.shape[1]
        inverted.search_preassigned_c(len(of), given[0], count, *given[1:], False, parameters)
        return Neighbors(rows, np.sqrt(np.maximum(squared, 0)))


def _inside_transforms(index: Any, queries: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the index inside those of transforms, and the queries as it gets them."""
    while isinstance(index, faiss.IndexPreTransform):
        for transform in transforms(index):
            queries = transform.apply(queries)
        index = faiss.downcast_index(index.index)
    return index, queries


def _of_part(part: Part, queries: _Queries, count: int) -> Neighbors:
    """Search a part for the nearest rows that are not removed; more are searched for until there are enough."""
    size, num_queries = len(part.descriptors), len(queries.given)
    rows = np.full((num_queries, count), -1, np.int64)
    distances = np.full((num_queries, count), np.inf, np.float32)
    depth, of = min(size, count + min(len(part.removed), count)), np.arange(num_queries)
    while count and len(of):
        found = queries.search(part.index, depth, of)
        is_removed = np.isin(found.rows, part.removed)
        remaining = first_neighbors(np.where(is_removed, -1, found.rows), found.distances, count)
        rows[of], distances[of] = remaining.rows, remaining.distances
        may_have_more = (remaining.rows[:, -1] < 0) & (found.rows[:, -1] >= 0) & (depth < size)
        depth, of = min(size, 2 * depth), of[may_have_more]
    return Neighbors(rows, distances)


def _remaining(part: Part) -> Iterator[np.ndarray]:
    """Yield the descriptors that are not removed, in order."""
    if not len(part.removed):
        yield part.descriptors[:]
        return
    for start in range(0, len(part.descriptors), _ROWS_AT_ONCE):
        rows = part.descriptors[start : start + _ROWS_AT_ONCE]
        first, last = np.searchsorted(part.removed, (start, start + len(rows)))
        yield np.delete(rows, part.removed[first:last] - start, axis=0) if last > first else rows


def _padded(neighbors: Neighbors, count: int) -> Neighbors:
    missing = ((0, 0), (0, max(0, count - neighbors.rows.shape[1])))
    rows = np.pad(neighbors.rows[:, :count], missing, constant_values=-1)
    return Neighbors(rows, np.pad(neighbors.distances[:, :count], missing, constant_values=np.inf))
