"""Search rows that lie in several parts: compressed by faiss, compared exactly with their mapped descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import faiss
import numpy as np

from progeo.evaluation.search import Neighbors, index_neighbors, nearest_among, nearest_neighbors


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a place index."""

    descriptors: np.ndarray
    """Descriptors, float16 or float32 (n, D), memory-mapped."""
    index: faiss.Index | None = None
    """Compressed index of the same rows, trained as those of the other parts; None compares all rows exactly."""
    removed: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Rows that are not found any more, sorted, int64 (r,)."""


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows in parts: row r of a part is row `starts[part] + r` of all."""

    parts: Sequence[Part]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each part, and the number of all rows, int64 (P + 1,)."""
        return np.cumsum([0, *(len(part.descriptors) for part in self.parts)])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read the descriptors of rows, int64 (n,), as float32 (n, D)."""
        found = np.empty((len(rows), self.parts[0].descriptors.shape[1]), np.float32)
        owners = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owners).tolist():
            here = owners == number
            found[here] = self.parts[number].descriptors[rows[here] - self.starts[number]]
        return found

    def neighbors(self, queries: np.ndarray, count: int, *, probes: int, refine: int) -> Neighbors:
        """Search all parts, by Euclidean distance.

        Compressed parts return candidates, the best of which are compared exactly; results of the parts are merged,
        ties ordered by row.

        Args:
            queries: descriptors, float32 (Q, D).
            count: neighbors per query, K; the row is -1 and the distance infinite where there are fewer.
            probes: number of inverted lists of compressed parts that are visited.
            refine: number of best rows of compressed parts that are compared exactly; at least `count` are.
        """
        candidates = max(count, refine)
        found = Neighbors(np.full((len(queries), 0), -1), np.full((len(queries), 0), np.inf, np.float32))
        for start, part in zip(self.starts.tolist(), self.parts, strict=False):
            num_wanted = count if part.index is None else candidates
            found = _merged(found, _shifted(_of_part(part, queries, num_wanted, probes=probes), start), candidates)
        if any(part.index is not None for part in self.parts):
            found = self._compared(found.rows, queries)
        return _padded(found, count)

    def neighbors_among(self, rows: np.ndarray, queries: np.ndarray, count: int) -> Neighbors:
        """Compare queries with all of some rows exactly, sorted, int64 (n,); removed ones are skipped."""
        rows = rows[~np.isin(rows, self.removed)]
        if not len(rows):
            return _padded(Neighbors(np.full((len(queries), 0), -1), np.zeros((len(queries), 0), np.float32)), count)
        return _padded(nearest_among(rows, queries, min(count, len(rows)), take=self.take), count)

    @cached_property
    def removed(self) -> np.ndarray:
        """All removed rows, sorted, int64 (r,)."""
        starts = self.starts.tolist()
        return np.concatenate([part.removed + start for part, start in zip(self.parts, starts, strict=False)])

    def _compared(self, rows: np.ndarray, queries: np.ndarray) -> Neighbors:
        """Sort candidates (Q, R), -1 for none, by their exact distances."""
        found = self.take(np.maximum(rows, 0).ravel()).reshape(*rows.shape, -1)
        distances = np.linalg.norm(found - queries[:, None], axis=2)
        return _sorted(Neighbors(rows, np.where(rows < 0, np.float32(np.inf), distances)))


def _of_part(part: Part, queries: np.ndarray, count: int, *, probes: int) -> Neighbors:
    """Search a part for the nearest rows that are not removed; more are searched for until there are enough."""
    size = len(part.descriptors)
    num_wanted = min(count, size - len(part.removed))
    depth = min(size, num_wanted + min(len(part.removed), num_wanted))
    while True:
        if part.index is None:
            found = nearest_neighbors([part.descriptors], queries, depth)
        else:
            found = index_neighbors(part.index, queries, depth)
        is_removed = np.isin(found.rows, part.removed)
        rows = np.where(is_removed, -1, found.rows)
        is_short = ((rows >= 0).sum(axis=1) < num_wanted) & is_removed.any(axis=1)
        if depth == size or not is_short.any():
            return _sorted(Neighbors(rows, np.where(rows < 0, np.float32(np.inf), found.distances)))
        depth = min(size, 2 * depth)


def _shifted(neighbors: Neighbors, start: int) -> Neighbors:
    return Neighbors(np.where(neighbors.rows < 0, -1, neighbors.rows + start), neighbors.distances)


def _merged(first: Neighbors, second: Neighbors, count: int) -> Neighbors:
    both = zip((first.rows, first.distances), (second.rows, second.distances), strict=True)
    rows, distances = (np.concatenate(each, axis=1) for each in both)
    found = _sorted(Neighbors(rows, np.where(rows < 0, np.float32(np.inf), distances)))
    return Neighbors(found.rows[:, :count], found.distances[:, :count])


def _sorted(neighbors: Neighbors) -> Neighbors:
    """Sort by distance, then row; -1, none, last."""
    last = np.where(neighbors.rows < 0, np.iinfo(np.int64).max, neighbors.rows)
    order = np.lexsort((last, neighbors.distances), axis=1)
    return Neighbors(*(np.take_along_axis(each, order, axis=1) for each in (neighbors.rows, neighbors.distances)))


def _padded(neighbors: Neighbors, count: int) -> Neighbors:
    missing = ((0, 0), (0, max(0, count - neighbors.rows.shape[1])))
    rows = np.pad(neighbors.rows[:, :count], missing, constant_values=-1)
    return Neighbors(rows, np.pad(neighbors.distances[:, :count], missing, constant_values=np.inf))
