"""The descriptors of a place index in an engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from progeo.evaluation.search import Neighbors
from progeo.localization.engines.collection import Collection, Hit
from progeo.localization.engines.connecting import EngineMetadata, check_owner, connect
from progeo.localization.engines.filters import filter_of
from progeo.localization.engines.points import batch_size, keys_and_rows, part_key
from progeo.localization.index_metadata import IndexMetadata, PartMetadata
from progeo.localization.restriction import Restriction

_MIN_OVERSAMPLING = {"none": None, "int8": 2.0, "binary": 4.0}
"""Rows whose original descriptors are compared, as a multiple of the neighbors, by quantization: on 100,000 clustered
rows of 256 dimensions, recall@1 against an exact search is then 1 (without, 0.94 and 0.87)."""
_QUERIES_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class EngineStore:
    """Descriptors of an opened place index that an engine searches; see `DescriptorStore`."""

    collection: Collection
    engine: EngineMetadata
    parts: Sequence[PartMetadata]
    removed: np.ndarray
    """Rows that are not found, sorted, int64 (r,)."""
    folder: Path
    """Folder of the index."""
    is_exact: bool = False
    """Whether all points are compared in every search, which takes their number of steps."""

    @property
    def num_lists(self) -> int:
        """Number of inverted lists: 0."""
        return 0

    def search(
        self,
        queries: np.ndarray,
        count: int,
        *,
        probes: int,
        refine: int,
        among: Restriction | Sequence[Restriction] | None = None,
        cell_queries: np.ndarray | None = None,
    ) -> Neighbors:
        """Search as `DescriptorStore.search` says; a search among restrictions compares all points they allow."""
        several = among if isinstance(among, Sequence) else [among or Restriction()] * len(queries)
        for each in several:
            each.check_known(self.parts, self.folder)
        count = min(count, self.count())
        oversampling = _MIN_OVERSAMPLING[self.engine.quantization]
        if oversampling is not None:
            oversampling = max(oversampling, refine / max(count, 1))
        step = min(_QUERIES_AT_ONCE, batch_size(queries.shape[1]))
        found = [
            self._found(
                queries[start : start + step],
                several[start : start + step],
                count,
                exact=self.is_exact or among is not None,
                oversampling=oversampling,
            )
            for start in range(0, len(queries), step)
        ]
        rows = [each.rows for each in found] or [np.empty((0, count), np.int64)]
        distances = [each.distances for each in found] or [np.empty((0, count), np.float32)]
        return Neighbors(np.concatenate(rows), np.concatenate(distances))

    def count(self, among: Restriction | None = None) -> int:
        """Return the number of rows that a search can find."""
        if among is None:
            return int(self._bounds[-1]) - len(self.removed)
        among.check_known(self.parts, self.folder)
        return self.collection.count(filter_of(self.collection, among, parts=self._starts))

    def check(self) -> None:
        """Check that the engine holds the descriptors of the index.

        Raises:
            ConnectionError: it cannot be reached.
            ValueError: the collection is gone, that of another index, or lacks points.
        """
        check_owner(self.collection, self.engine)
        held = self.collection.parts()
        num_removed = np.diff(np.searchsorted(self.removed, self._bounds)).tolist()
        lacking = [
            part.rows - removed - held.get(part_key(part.engine_id), 0)
            for part, removed in zip(self.parts, num_removed, strict=True)
        ]
        if (num_lacking := sum(number for number in lacking if number > 0)) > 0:
            raise ValueError(
                f"{num_lacking:,} of {self.count():,} images of {self.folder} are missing in {self.collection.place}: "
                f"restore it, or build the index anew."
            )

    @cached_property
    def _starts(self) -> dict[str, int]:
        """First row of each part by its key."""
        starts = zip(self.parts, self._bounds.tolist(), strict=False)
        return {part_key(part.engine_id): start for part, start in starts}

    @cached_property
    def _bounds(self) -> np.ndarray:
        """First row of each part, and the number of all rows, int64 (P + 1,)."""
        return np.cumsum([0, *(part.rows for part in self.parts)])

    def _found(
        self,
        queries: np.ndarray,
        among: Sequence[Restriction],
        count: int,
        *,
        exact: bool,
        oversampling: float | None,
    ) -> Neighbors:
        """Search for some queries; deeper in the parts of this generation if other or removed rows were found."""
        depth, parts = count, tuple[str, ...]()
        while True:
            filters = [filter_of(self.collection, each, parts=parts) for each in among]
            try:
                hits = self.collection.search(queries, filters, depth, exact=exact, oversampling=oversampling)
            except ValueError as error:  # which no query can cause
                raise ConnectionError(str(error)) from None
            found = self._neighbors(hits, depth)
            num_found = (found.rows >= 0).sum(axis=1)
            num_hits = np.array([len(each) for each in hits])
            if not ((num_found < count) & (num_hits == depth)).any() or not depth:
                return Neighbors(found.rows[:, :count], found.distances[:, :count])
            depth, parts = 2 * depth, tuple(self._starts)

    def _neighbors(self, hits: Sequence[Sequence[Hit]], depth: int) -> Neighbors:
        """Return rows and distances of hits, ordered by distance, then row; those of no row last, as -1."""
        rows = np.full((len(hits), depth), -1)
        distances = np.full(rows.shape, np.inf, np.float32)
        for query, each in enumerate(hits):
            for rank, (key, row) in enumerate(keys_and_rows(each)):
                rows[query, rank] = self._starts[key] + row if key in self._starts else -1
            distances[query, : len(each)] = [hit.distance for hit in each]
        rows[np.isin(rows, self.removed)] = -1
        distances[rows < 0] = np.inf
        order = np.lexsort((rows, distances), axis=1)
        return Neighbors(*(np.take_along_axis(each, order, axis=1) for each in (rows, distances)))


def open_engine_store(folder: Path, metadata: IndexMetadata, removed: np.ndarray) -> EngineStore:
    """Connect to the engine of a place index, and check that it holds the descriptors of the index.

    Args:
        folder: folder of the index.
        removed: removed rows, sorted, int64 (r,).

    Raises:
        ConnectionError, ValueError: see `EngineStore.check`; its client is not installed.
    """
    assert metadata.engine is not None
    store = EngineStore(connect(metadata.engine, folder), metadata.engine, metadata.parts, removed, folder)
    store.check()
    return store
