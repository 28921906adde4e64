"""The descriptors of a place index in an engine."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from progeo.engine.log import LOGGER
from progeo.evaluation.search import Neighbors
from progeo.features.store import Rows
from progeo.localization.engines.collection import Collection, Hit
from progeo.localization.engines.connecting import EngineMetadata
from progeo.localization.engines.filters import filter_of
from progeo.localization.engines.points import batch_size, batches, keys_and_rows, part_key, point_id
from progeo.localization.stores import Restriction
from progeo.places.catalogue import Catalogue
from progeo.places.nearby import check_known

_MIN_OVERSAMPLING = {"none": None, "int8": 2.0, "binary": 4.0}
"""Rows whose original descriptors are compared, as a multiple of the neighbors, by quantization: on 100,000 clustered
rows of 256 dimensions, recall@1 against an exact search is then 1 (without, 0.94 and 0.87)."""
_NEEDS = {"near": ("latitude and longitude", "latitude"), "heading": ("heading", "heading")}
"""What each restriction needs to be known of images, in words, and its column."""
_QUERIES_AT_ONCE = 64
_POINTS_DELETED_AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class EngineStore:
    """Descriptors of an opened place index that an engine searches; see `DescriptorStore`."""

    collection: Collection
    engine: EngineMetadata
    parts: Mapping[str, int]
    """Number of rows of each part of the catalogue in turn, by its identifier."""
    removed: np.ndarray
    """Rows of the catalogue that are not found any more, sorted, int64 (r,)."""
    catalogue: Catalogue
    folder: Path
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
            self._check_known(each)
        count = min(count, self.count())
        oversampling = _MIN_OVERSAMPLING[self.engine.quantization]
        if oversampling is not None:
            oversampling = max(oversampling, refine / max(count, 1))
        found = [
            self._found(
                queries[start : start + _QUERIES_AT_ONCE],
                several[start : start + _QUERIES_AT_ONCE],
                count,
                exact=self.is_exact or among is not None,
                oversampling=oversampling,
            )
            for start in range(0, len(queries), _QUERIES_AT_ONCE)
        ]
        rows = [each.rows for each in found] or [np.empty((0, count), np.int64)]
        distances = [each.distances for each in found] or [np.empty((0, count), np.float32)]
        return Neighbors(np.concatenate(rows), np.concatenate(distances))

    def count(self, among: Restriction | None = None) -> int:
        """Return the number of rows that a search can find."""
        if among is None:
            return sum(self.parts.values()) - len(self.removed)
        self._check_known(among)
        return self.collection.count(filter_of(self.collection, among, parts=self._starts))

    def check(self) -> None:
        """Check that the engine holds the descriptors of the index.

        Raises:
            ConnectionError: it cannot be reached.
            ValueError: the collection is gone, that of another index, or lacks points.
        """
        check_owner(self.collection, self.engine)
        held = self.collection.parts()
        starts = np.cumsum([0, *self.parts.values()])
        num_removed = np.diff(np.searchsorted(self.removed, starts)).tolist()
        lacking = [
            rows - removed - held.get(part_key(part), 0)
            for (part, rows), removed in zip(self.parts.items(), num_removed, strict=True)
        ]
        if (num_lacking := sum(number for number in lacking if number > 0)) > 0:
            raise ValueError(
                f"{num_lacking:,} of {self.count():,} images of {self.folder} are missing in {self.collection.place}: "
                f"restore it, or build the index anew."
            )

    @cached_property
    def _starts(self) -> dict[str, int]:
        """First row of each part by its key."""
        starts = np.cumsum([0, *self.parts.values()]).tolist()
        return {part_key(part): start for part, start in zip(self.parts, starts, strict=False)}

    @cached_property
    def _first_known(self) -> dict[str, np.ndarray]:
        """First known value of each column, by the argument that needs it; NaN if there is none, (1,)."""
        found = {}
        for name, (_, column) in _NEEDS.items():
            values = self.catalogue.table[column].to_numpy()
            first = int(np.argmin(np.isnan(values))) if len(values) else 0
            found[name] = values[first : first + 1]
        return found

    def _check_known(self, among: Restriction) -> None:
        for name, (what, _) in _NEEDS.items():
            if getattr(among, name) is not None:
                check_known(self._first_known[name], what, self.folder, name=name)

    def _found(
        self,
        queries: np.ndarray,
        among: Sequence[Restriction],
        count: int,
        *,
        exact: bool,
        oversampling: float | None,
    ) -> Neighbors:
        """Search for some queries; deeper if rows were found that are removed, or in no part of this generation."""
        depth, others = count, set[str]()
        while True:
            filters = [filter_of(self.collection, each, other_than=others) for each in among]
            hits = self.collection.search(queries, filters, depth, exact=exact, oversampling=oversampling)
            found = self._neighbors(hits, depth)
            num_found = (found.rows >= 0).sum(axis=1)
            num_hits = np.array([len(each) for each in hits])
            if not ((num_found < count) & (num_hits == depth)).any() or not depth:
                return Neighbors(found.rows[:, :count], found.distances[:, :count])
            others |= {key for each in hits for key, _ in keys_and_rows(each)} - self._starts.keys()
            depth *= 2

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


@dataclass(frozen=True)
class EngineWriter:
    """Stores the descriptors of new parts in an engine; see `DescriptorWriter`."""

    collection: Collection
    engine: EngineMetadata
    encoder: str
    """Fingerprint of the encoder."""

    def add(self, part: str, rows: Rows, images: Catalogue) -> None:
        """Store the rows of a part; those that a command stored before it was killed are not sent again.

        Raises:
            ConnectionError: the engine cannot be reached.
            ValueError: the collection is that of another index or of descriptors of other dimensions, or the engine
                refuses the points.
        """
        self.collection.create(rows.width, owner=self.engine.owner, quantization=self.engine.quantization)
        check_owner(self.collection, self.engine, width=rows.width)
        key, step = part_key(part), batch_size(rows.width)
        stored = self._num_stored(key)
        start = 0 if stored > len(rows) else stored // step * step
        if start:
            LOGGER.info("%s of %s images are in %s already", f"{start:,}", f"{len(rows):,}", self.collection.place)
        for points in batches(key, rows, images, start=start, encoder=self.encoder):
            self.collection.upsert(points)
        if (stored := self._num_stored(key)) != len(rows):
            raise ValueError(
                f"{self.collection.place} holds {stored:,} of {len(rows):,} points that were sent to it: look at its "
                f"log, and run this command again."
            )
        self.collection.finish()

    def remove(self, rows: Mapping[str, np.ndarray]) -> None:
        """Delete rows of parts, once a generation has marked them as removed; a second time does no harm."""
        for part, of_part in rows.items():
            key = part_key(part)
            for start in range(0, len(of_part), _POINTS_DELETED_AT_ONCE):
                chosen = of_part[start : start + _POINTS_DELETED_AT_ONCE]
                self.collection.delete_points([point_id(key, row) for row in chosen.tolist()])
        self.collection.finish()

    def keep_only(self, parts: Iterable[str]) -> None:
        """Delete the points of all other parts, which commands that were killed have stored."""
        for key in self.collection.parts().keys() - {part_key(part) for part in parts}:
            self.collection.delete_part(key)

    def _num_stored(self, key: str) -> int:
        return self.collection.count(filter_of(self.collection, Restriction(), parts=[key]))


def check_owner(collection: Collection, engine: EngineMetadata, *, width: int | None = None) -> None:
    """Check that a collection is that of a place index.

    Args:
        width: dimensions of its descriptors; None for any.

    Raises:
        ValueError: it is gone, that of another index, or has other dimensions.
    """
    held, place = collection.contents(), collection.place
    if held is None:
        raise ValueError(f"There is no {place.removeprefix('the ')}: restore it, or build the index anew.")
    if held.owner != engine.owner:
        raise ValueError(
            f"{place} is that of another place index or encoder: name another with `engine_collection`, or delete it."
        )
    if width not in (None, held.width):
        raise ValueError(f"{place} has {held.width} dimensions, and the descriptors {width}: build the index anew.")
