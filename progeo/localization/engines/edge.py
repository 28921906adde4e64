"""A collection of Qdrant Edge: an engine in this process, whose points are in a folder."""

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict
from uuid import UUID
from weakref import WeakValueDictionary

import numpy as np

from progeo.atomic import replacing_folder
from progeo.files import write_json
from progeo.json_files import read_json_as
from progeo.localization.engines.collection import PAYLOAD_INDEXES, Contents, Hit, Points
from progeo.localization.engines.options import Quantization

_SHARD, _CONTENTS = "shard", "collection.json"
_MAX_PARTS = 100_000
_MIN_FREE_BYTES = 2**28
"""Room on the disk that is not used: Qdrant Edge maps sparse files, and the system kills a process that finds none."""
_BLOCK_BYTES = 512
_LOCK = threading.Lock()
_OPEN: "WeakValueDictionary[tuple[Path, int], _Shard]" = WeakValueDictionary()
"""Shards that this process has open, which could not open one a second time while an index is opened anew: by path, and
by the time of their creation, as another can take the place of one that was removed."""


class _Contents(TypedDict):
    width: int
    owner: str


class _Shard:
    """An opened shard."""

    def __init__(self, shard: Any) -> None:
        self.calls = shard


class EdgeCollection:
    """A collection of Qdrant Edge; see `Collection`."""

    def __init__(self, folder: Path) -> None:
        """Choose the folder; it is opened by the first call."""
        import qdrant_edge

        self.types: Any = qdrant_edge
        self.folder = folder
        self._shard: _Shard | None = None

    @property
    def place(self) -> str:
        """Where the collection is, in words."""
        return f"the Qdrant Edge in {self.folder}"

    def range_of(self, **limits: float) -> Any:
        """Return a range of numbers, see `Collection`."""
        return self.types.RangeFloat(**limits)

    def is_empty(self, field: str) -> Any:
        """Return the condition that a field is not in the payload."""
        return self.types.IsEmptyCondition(field)

    def contents(self) -> Contents | None:
        """Return what the collection holds; None if there is none."""
        if not (file := self.folder / _CONTENTS).is_file():
            if self.folder.exists() and not (self.folder.is_dir() and not any(self.folder.iterdir())):
                raise ValueError(f"`engine_url` {self.folder} is no folder of Qdrant Edge: name a new or an empty one.")
            return None
        return Contents(**read_json_as(file, _Contents))

    def create(self, width: int, *, owner: str, quantization: Quantization) -> None:
        """Create the collection unless it exists."""
        if self.contents() is not None:
            return
        edge = self.types
        kinds: dict[str, Callable[[], Any]] = {
            "none": lambda: None,
            "int8": lambda: edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=0.99, always_ram=True),
            "binary": lambda: edge.BinaryQuantizationConfig(always_ram=True),
        }
        vectors = edge.EdgeVectorParams(size=width, distance=edge.Distance.Euclid)
        config = edge.EdgeConfig(vectors=vectors, quantization_config=kinds[quantization]())
        with replacing_folder(self.folder) as temporary, self._in_words():
            _check_room(temporary)
            (temporary / _SHARD).mkdir()
            shard = edge.EdgeShard.create(str(temporary / _SHARD), config)
            for field, kind in PAYLOAD_INDEXES.items():
                schema = getattr(edge.PayloadSchemaType, kind)
                shard.update(edge.UpdateOperation.create_field_index(field, schema))
            shard.flush()
            shard.close()
            write_json(temporary / _CONTENTS, _Contents(width=width, owner=owner))

    def upsert(self, points: Points) -> None:
        """Store points; those of the same identifiers are replaced."""
        edge = self.types
        rows = zip(points.ids, points.vectors.tolist(), points.payloads, strict=True)
        self._update(edge.UpdateOperation.upsert_points([edge.Point(*each) for each in rows]))

    def search(
        self, queries: np.ndarray, filters: Sequence[Any], count: int, *, exact: bool, oversampling: float | None
    ) -> list[list[Hit]]:
        """Find the nearest points of each query, see `Collection`."""
        edge = self.types
        quantization = edge.QuantizationSearchParams(ignore=exact, rescore=True, oversampling=oversampling)
        params = edge.SearchParams(exact=exact, quantization=None if oversampling is None else quantization)
        requests = [
            edge.QueryRequest(limit=count, query=edge.Query.Nearest(query), filter=allowed, params=params)
            for query, allowed in zip(queries.tolist(), filters, strict=True)
        ]
        with self._in_words():
            answers = self._opened().query_batch(edge.QueryBatchRequest(requests))
        return [[Hit(point.id, point.score) for point in points] for points in answers]

    def count(self, allowed: Any) -> int:
        """Count the points that a filter allows."""
        with self._in_words():
            return self._opened().count(self.types.CountRequest(exact=True, filter=allowed))

    def parts(self) -> dict[str, int]:
        """Count the points of each part."""
        with self._in_words():
            found = self._opened().facet(self.types.FacetRequest("part", limit=_MAX_PARTS, exact=True))
        return {hit.value: hit.count for hit in found}

    def delete_points(self, ids: Sequence[UUID]) -> None:
        """Delete points; those that are not there are skipped."""
        self._update(self.types.UpdateOperation.delete_points(list(ids)))

    def delete_part(self, part: str) -> None:
        """Delete all points of a part."""
        edge = self.types
        allowed = edge.Filter(must=[edge.FieldCondition("part", match=edge.MatchValue(part))])
        self._update(edge.UpdateOperation.delete_points_by_filter(allowed))

    def flush(self) -> None:
        """Return once what was stored survives a loss of power."""
        with self._in_words():
            self._opened().flush()

    def optimize(self) -> None:
        """Build graphs of large segments, which takes longer than to store them."""
        files = (path.stat() for path in self.folder.rglob("*"))
        _check_room(self.folder, sum(_BLOCK_BYTES * file.st_blocks for file in files))  # which may be written anew
        with self._in_words():
            self._opened().optimize()
            self._opened().flush()

    def _update(self, operation: Any) -> None:
        _check_room(self.folder)
        with self._in_words():
            self._opened().update(operation)

    def _opened(self) -> Any:
        """Return the shard, opened once by this process."""
        if self._shard is None:
            if self.contents() is None:
                raise FileNotFoundError(
                    f"There is no Qdrant Edge in {self.folder}: put it back, or build the index anew."
                )
            path = (self.folder / _SHARD).resolve()
            key = path, (self.folder / _CONTENTS).stat().st_mtime_ns
            with _LOCK:
                shard = _OPEN.get(key)
                if shard is None:
                    shard = _OPEN[key] = _Shard(self.types.EdgeShard.load(str(path)))
            self._shard = shard
        return self._shard.calls

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Put errors of Qdrant Edge, which have no class of their own, into one sentence."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            if "WouldBlock" in str(error):
                raise ConnectionError(
                    f"The Qdrant Edge in {self.folder} is open in another process, and only one can open it: stop that "
                    f"one, or take a server."
                ) from None
            reason = " ".join(str(error).split()).rstrip(".")
            raise ValueError(f"The Qdrant Edge in {self.folder} cannot be used: {reason}.") from None


def _check_room(folder: Path, needed_bytes: int = 0) -> None:
    free, needed_bytes = shutil.disk_usage(folder).free, needed_bytes + _MIN_FREE_BYTES
    if free < needed_bytes:
        raise OSError(
            f"The disk of {folder} has room for {free / 1e6:,.0f} MB, and Qdrant Edge needs {needed_bytes / 1e6:,.0f} "
            f"MB: make room, and run this command again."
        )
