"""Search for nearest neighbors among descriptors with faiss, exactly or in a compressed index."""

import hashlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import faiss
import numpy as np

from progeo.atomic import replacing
from progeo.engine.log import LOGGER
from progeo.evaluation.exact_search import Nearest, blocks, squared_of_pairs
from progeo.evaluation.kinds import add_rows, faiss_reason, train_kind
from progeo.features.store import Rows, ShardedRows
from progeo.files import file_digest, write_text
from progeo.progress import followed

_VALUES_AT_ONCE = 2**24
"""Maximum number of values of descriptors in memory when some of them are compared with queries."""
_GPU_MEMORY = 2**28
"""Bytes of a GPU that are kept for searches; faiss would keep 1.5 GiB."""
_TRIAL = """
import sys, faiss, numpy
index = faiss.read_index(sys.argv[1], faiss.IO_FLAG_MMAP_IFC)
_, rows = index.search(numpy.zeros((1, index.d), numpy.float32), min(1000, index.ntotal))
sys.exit(not -1 <= rows.min() <= rows.max() < index.ntotal)
"""


@dataclass(frozen=True)
class Neighbors:
    """The nearest database images of Q queries, best first."""

    rows: np.ndarray
    """Database rows, int64 (Q, K); -1 where there is none."""
    distances: np.ndarray
    """Euclidean distances between descriptors, float32 (Q, K)."""


class _Gpu(threading.local):
    """What faiss needs on a GPU: made once by each thread that searches, as it takes 256 MiB of pinned memory."""

    @cached_property
    def resources(self) -> Any:
        """Its streams and its temporary memory."""
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(_GPU_MEMORY)
        return resources


_GPU = _Gpu()


def nearest_neighbors(parts: Iterable[np.ndarray], queries: np.ndarray, count: int) -> Neighbors:
    """Search exactly by Euclidean distance; ties are ordered by database row (on a GPU: in any order).

    Args:
        parts: consecutive parts of the database descriptors, float16 or float32 (n, D) each; only one part and its
            distances need to fit in memory.
        queries: descriptors, float32 (Q, D).
        count: neighbors per query, at most the size of the database.
    """
    nearest, start = Nearest(np.ascontiguousarray(queries, np.float32), count), 0
    on_gpu = faiss.get_num_gpus() > 0
    for block in blocks(parts, num_queries=None if on_gpu else len(queries)):
        if on_gpu:
            found = faiss.knn_gpu(_GPU.resources, nearest.queries, block, min(count, len(block)))
            nearest.add(*found, start=start)
        else:
            nearest.compare(block, start)
        start += len(block)
    return Neighbors(nearest.rows[:, :start], np.sqrt(np.maximum(nearest.squared[:, :start], 0)))


def index_neighbors(index: faiss.Index, queries: np.ndarray, count: int, *, probes: int | None = None) -> Neighbors:
    """Search an index by Euclidean distance between the stored descriptors; -1 where it returns too few.

    Args:
        index: an index of `open_or_build_index`.
        queries: descriptors, float32 (Q, D).
        count: neighbors per query, at most the size of the index.
        probes: number of inverted lists that are visited; None takes that with which the index was opened.
    """
    parameters = None if probes is None else _search_parameters(index, probes)
    squared, rows = index.search(np.ascontiguousarray(queries, np.float32), min(count, index.ntotal), params=parameters)
    return Neighbors(rows, np.sqrt(np.maximum(squared, 0)))


def _search_parameters(index: Any, probes: int) -> Any:
    """Return what a search of an index gets to visit some of its inverted lists; None if it has none."""
    index, kinds = faiss.downcast_index(index), cast(Any, faiss)
    if isinstance(index, faiss.IndexIVF):
        return kinds.SearchParametersIVF(nprobe=probes)
    if isinstance(index, faiss.IndexPreTransform) and (inner := _search_parameters(index.index, probes)):
        return kinds.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine) and (inner := _search_parameters(index.base_index, probes)):
        return kinds.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    return None


def distances_of(predictions: np.ndarray, queries: np.ndarray, database: ShardedRows) -> np.ndarray:
    """Compute Euclidean descriptor distances between queries and their predictions, float32 (Q, K).

    Args:
        predictions: database rows, int64 (Q, K); -1, for no prediction, gets NaN.
        queries: float32 (Q, D), or (Q, C D) for crops that were searched separately: the nearest crop counts.
        database: (N, D).
    """
    count, width = predictions.shape[1], database.width
    crops = queries.reshape(len(queries), queries.shape[1] // width, 1, width)
    step = max(1, _VALUES_AT_ONCE // max(1, crops.shape[1] * count * width))
    found = np.empty(predictions.shape, np.float32)
    for start in range(0, len(queries), step):
        rows = predictions[start : start + step]
        images = database.take(np.maximum(rows, 0).ravel()).astype(np.float32).reshape(-1, 1, count, width)
        distances = np.linalg.norm(crops[start : start + step] - images, axis=3).min(axis=1)
        found[start : start + step] = np.where(rows < 0, np.nan, distances)
    return found


def nearest_among(
    rows: np.ndarray, queries: np.ndarray, count: int, *, take: Callable[[np.ndarray], np.ndarray]
) -> Neighbors:
    """Find the nearest neighbors of Q queries among some rows exactly; see `nearest_neighbors`.

    Args:
        rows: int64 (n,), `count` at least.
        queries: descriptors, float32 (Q, D).
        take: returns the descriptors (m, D) of some of the rows; it is called with as many as fit into memory.
    """
    step = max(1, _VALUES_AT_ONCE // queries.shape[1])
    parts = (take(rows[start : start + step]) for start in range(0, len(rows), step))
    nearest = nearest_neighbors(parts, queries, count)
    is_found = nearest.rows >= 0  # no row is near a query that is not finite
    return Neighbors(np.where(is_found, rows[nearest.rows], -1), nearest.distances)


def refined(neighbors: Neighbors, queries: np.ndarray, *, take: Callable[[np.ndarray], np.ndarray]) -> Neighbors:
    """Sort the candidates (Q, R) that a compressed index found by their exact distances.

    Args:
        queries: descriptors, float32 (Q, D).
        take: returns the descriptors (m, D) of rows; it is called with as many as fit into memory.
    """
    rows = neighbors.rows
    squared = np.full(rows.shape, np.inf, np.float32)
    step = max(1, _VALUES_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        here = slice(start, start + step)
        of, column = (np.ascontiguousarray(each) for each in np.nonzero(rows[here] >= 0))
        found = np.ascontiguousarray(take(rows[here][of, column]), np.float32)
        given = np.ascontiguousarray(queries[here], np.float32)
        squared[here][of, column] = squared_of_pairs(given, found, of, np.arange(len(found)))
    nearest = first_neighbors(rows, squared, rows.shape[1])
    return Neighbors(nearest.rows, np.sqrt(nearest.distances))


def first_neighbors(rows: np.ndarray, distances: np.ndarray, count: int) -> Neighbors:
    """Return the first of rows (Q, n) by distance, then row; those of -1, none, are last and infinitely far."""
    distances = np.where(rows < 0, np.float32(np.inf), distances)
    last = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    order = np.lexsort((last, distances), axis=1)[:, :count]
    return Neighbors(*(np.take_along_axis(each, order, axis=1) for each in (rows, distances)))


def joined(neighbors: Iterable[Neighbors]) -> Neighbors:
    """Concatenate the neighbors of some queries and of others, of the same number K each."""
    return Neighbors(*map(np.concatenate, zip(*((each.rows, each.distances) for each in neighbors), strict=True)))


def squared_distances(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Compute squared Euclidean distances between queries (Q, D) and images (N, D), all float32: float32 (Q, N)."""
    if faiss.get_num_gpus():
        squared = faiss.pairwise_distance_gpu(_GPU.resources, queries, images)
        return np.maximum(squared, 0, out=squared)
    norms = [np.einsum("nd,nd->n", each, each) for each in (queries, images)]
    squared = queries @ images.T
    squared *= -2
    squared += norms[0][:, None]
    squared += norms[1]
    return np.maximum(squared, 0, out=squared)


def index_path(database: ShardedRows, kind: str, folder: Path | None = None) -> Path:
    """Return the file of the index of a database in its current state: in `folder`, else beside the descriptors."""
    made_from = f"{kind} {database.written_ns} {database.num_bytes}"
    return (folder or database.folder) / f"index_{hashlib.sha256(made_from.encode()).hexdigest()[:8]}.faiss"


def open_or_build_index(database: ShardedRows, kind: str, *, probes: int, folder: Path | None = None) -> faiss.Index:
    """Open the index of a database, memory-mapped; build it first if the file does not exist.

    Args:
        database: descriptors (N, D).
        kind: faiss factory string: `IVF1024,Flat`, `OPQ32,IVF1024,PQ32`, `HNSW32`, `SQ8`, `PCA128,Flat`,
            `PCAW128,Flat`.
        probes: number of inverted lists of an IVF index that a search visits.
        folder: folder of the index, see `index_path`.

    Raises:
        ValueError: faiss does not know this factory string, or the database is too small to train the index.
    """
    return open_built(index_path(database, kind, folder), lambda: build_index(database, kind), probes=probes)


def open_built(path: Path, build: Callable[[], faiss.Index], *, probes: int) -> faiss.Index:
    """Memory-map the index in a file of a cache; build it first if the file is missing or not as it was written."""
    digest = path.with_suffix(".sha256")
    if not (path.is_file() and digest.is_file() and digest.read_bytes() == file_digest(path).encode()):
        if path.is_file():
            LOGGER.warning("%s is not the file that its digest beside it is of: it is built again", path)
        save_index(build(), path)
        write_text(digest, file_digest(path))
    return map_index(path, probes=probes)


def save_index(index: faiss.Index, path: Path) -> None:
    """Write an index to a file."""
    with replacing(path) as temporary:
        try:
            faiss.write_index(index, str(temporary))
        except RuntimeError as error:  # faiss raises nothing else
            raise OSError(str(error).rpartition(": ")[2]) from None


def load_index(path: Path) -> faiss.Index:
    """Load an index into memory, so that descriptors can be added to it."""
    return _read(path, 0)


def map_index(path: Path, *, probes: int) -> faiss.Index:
    """Memory-map an index for searching; `probes` as for `open_or_build_index`.

    A corrupt file can crash the process: see `check_searchable` for one that no digest vouches for.
    """
    index = _read(path, faiss.IO_FLAG_MMAP_IFC)
    if isinstance(faiss.try_extract_index_ivf(index), faiss.IndexIVF):
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
    return index


def check_searchable(path: Path) -> None:
    """Search an index in another process, which a corrupt file may crash.

    Raises:
        ValueError: it cannot be read or searched there.
    """
    trial = subprocess.run([sys.executable, "-c", _TRIAL, str(path)], capture_output=True, check=False)
    if trial.returncode:
        raise ValueError(f"{path} is corrupt or no index, a search in it fails. Delete it and build it again.")


def build_index(database: Rows, kind: str) -> faiss.Index:
    """Train an index on a sample of a database and fill it; `kind` and errors as for `train_kind`."""
    index = train_kind(database, kind)
    add_to_index(index, database)
    return index


def add_to_index(index: faiss.Index, database: Rows) -> None:
    """Add descriptors to an index, one part at a time."""
    for part in followed(database.parts(), "adding to the index", total=len(database), size=len, unit="rows"):
        add_rows(index, np.ascontiguousarray(part, np.float32))


def _read(path: Path, flags: int) -> faiss.Index:
    try:
        return faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:  # a corrupt file claims any size
        raise ValueError(
            f"{path} is corrupt or no index: {faiss_reason(error)}. Delete it and build it again."
        ) from None
