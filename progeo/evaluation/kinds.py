"""Kinds of faiss indexes: which one by default, how it is trained, and what its distances are."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from progeo.evaluation.clustering import cluster, nearest_centers
from progeo.features.store import Rows
from progeo.progress import phase

_MAX_EXACT = 200_000
"""Number of rows from which an index is compressed by default."""
_MAX_TRAINING = 2**17
_MAX_TRAINING_VALUES = 2**27
"""Maximum number of values of descriptors that an index is trained on, 512 MB."""
_ROWS_PER_LIST, _MIN_ROWS_PER_LIST = 64, 32
"""Number of rows that each inverted list is clustered from, if there are as many, and by default at least."""
_MAX_TRAINING_CODES = 2**16
"""Number of rows that codes are trained on, of which faiss takes no more either."""
_LISTS_PER_VISIT = 4
"""Number of lists of which a search visits one by default: a quarter of them."""
_REFINE = 200
"""Number of rows that are compared exactly by default."""
_CRASHES = re.compile(r"(?<![0-9F])0+(?![0-9])|(HNSW|NSG)1(?![0-9])")
"""Numbers in a factory string that crash faiss, where `IVF0` for example raises an error."""
_CODE_LOCATION = re.compile(r"^Error in .* at \S+:\d+: (Error: )?")


_STORES = (
    (faiss.IndexPreTransform, "index"),
    (faiss.IndexRefine, "refine_index"),
    (faiss.IndexHNSW, "storage"),
    (faiss.IndexNSG, "storage"),
)
"""Kinds of indexes that keep rows in another one, and where."""
_RESTORE_NONE = (
    *(faiss.IndexLSH, faiss.IndexRaBitQ, faiss.IndexRaBitQFastScan),
    *(faiss.IndexIVFRaBitQ, faiss.IndexIVFRaBitQFastScan),
)
"""Kinds of indexes that restore other rows than those they compare."""


_FILLED_BY_LIST = (faiss.IndexIVFFlat, faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFRaBitQ)
"""Kinds of indexes that take rows with their lists."""


@dataclass(frozen=True)
class IndexKind:
    """A kind of index, and how it is searched."""

    faiss: str
    """Factory string."""
    probes: int
    """Number of inverted lists that a search visits."""
    refine: int
    """Number of best rows that are compared exactly; 0 takes the distances of the index."""


def default_kind(num_rows: int, width: int) -> IndexKind:
    """Return the kind of an index of rows (N, D): exact, or for many rows lists of codes of one bit a dimension."""
    if num_rows < _MAX_EXACT:
        return IndexKind("Flat", probes=1, refine=0)
    wanted = min(2 * num_rows**0.5, _MAX_TRAINING_VALUES / width / _MIN_ROWS_PER_LIST)
    lists = 2 ** max(0, round(math.log2(wanted)))
    return IndexKind(f"IVF{lists},RaBitQ", probes=max(1, lists // _LISTS_PER_VISIT), refine=_REFINE)


def default_refine(index: faiss.Index) -> int:
    """Return the number of rows to compare exactly in an index: 0 if it stores them as they are."""
    return 0 if _store(index).sa_code_size() >= 4 * index.d else _REFINE


def check_refine(index: faiss.Index, refine: int) -> None:
    """Check that an index whose own distances are not Euclidean is refined.

    Raises:
        ValueError: it is not.
    """
    if refine == 0 and isinstance(_store(index), faiss.IndexLSH):
        raise ValueError("`refine` must be above 0 for LSH, which counts different bits, got 0. Use for example 200.")


@dataclass(frozen=True)
class Restored:
    """Rows as an index restores them, for one without descriptors beside it; lossy if the index is.

    Raises:
        ValueError: the index cannot restore rows.
    """

    index: faiss.Index

    def __post_init__(self) -> None:
        if isinstance(_store(self.index), _RESTORE_NONE):
            raise self._error()
        inverted = faiss.try_extract_index_ivf(self.index)
        if inverted is not None:
            inverted.make_direct_map()

    def __len__(self) -> int:
        return self.index.ntotal

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and dimensions."""
        return self.index.ntotal, self.index.d

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Restore rows, float32 (n, D)."""
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else rows
        try:
            return self.index.reconstruct_batch(numbers)
        except RuntimeError:  # faiss raises nothing else
            raise self._error() from None

    def _error(self) -> ValueError:
        kind = type(_store(self.index)).__name__
        return ValueError(f"An index of the kind {kind} does not restore its rows: build it anew.")


def _store(index: Any) -> Any:
    """Return the index that holds the rows compared last."""
    index = faiss.downcast_index(index)
    while name := next((name for kind, name in _STORES if isinstance(index, kind)), ""):
        index = faiss.downcast_index(getattr(index, name))
    return index


def train_kind(database: Rows, kind: str) -> faiss.Index:
    """Train an index on a sample of a database, bounded in rows and bytes; it is returned without rows.

    Args:
        database: descriptors (N, D).
        kind: faiss factory string: `IVF1024,RaBitQ`, `OPQ32,IVF1024,PQ32`, `HNSW32`, `SQ8`, `PCA128,Flat`.

    Raises:
        ValueError: faiss does not know this factory string, or the database is too small to train the index.
    """
    index = untrained_kind(kind, len(database), database.width)
    with _naming(kind, len(database), database.width):
        _train(index, _sample(database, num_lists_of(index)))
    return index


def untrained_kind(kind: str, num_rows: int, width: int) -> Any:
    """Build an empty index of a kind for descriptors (N, D), which is to be trained.

    Raises:
        ValueError: see `train_kind`.
    """
    with _naming(kind, num_rows, width):
        if _CRASHES.search(kind):
            raise RuntimeError("a number in it is too small")
        index = faiss.index_factory(width, kind)
        if num_lists_of(index) < 1:
            raise RuntimeError("it would have no list")
        if isinstance(index, faiss.IndexIDMap):
            raise RuntimeError("its rows have numbers of their own")
        return index


def num_lists_of(index: faiss.Index) -> int:
    """Return the number of inverted lists of an index, 1 if it has none."""
    return getattr(faiss.try_extract_index_ivf(index), "nlist", 1)


@contextmanager
def _naming(kind: str, num_rows: int, width: int) -> Iterator[None]:
    """Turn an error of faiss into a sentence about a kind of index of descriptors (N, D)."""
    try:
        yield
    except RuntimeError as error:  # faiss raises nothing else
        raise ValueError(
            f"There is no index {kind!r} of {num_rows} descriptors of {width} dimensions: {faiss_reason(error)}. Use "
            f"for example IVF{max(1, int(num_rows**0.5))},Flat."
        ) from None


def add_rows(index: Any, rows: np.ndarray) -> None:
    """Add descriptors, float32 (n, D), to an index."""
    if isinstance(index, faiss.IndexPreTransform):
        for transform in transforms(index):
            rows = transform.apply(rows)
        inner = faiss.downcast_index(index.index)
        add_rows(inner, rows)
        index.ntotal = inner.ntotal
    elif type(index) in _FILLED_BY_LIST and _has_plain_lists(index):
        lists = nearest_centers(rows, index.quantizer.reconstruct_n(0, index.nlist))
        index.add_core(len(rows), faiss.swig_ptr(rows), None, faiss.swig_ptr(lists))
    else:
        index.add(rows)


def transforms(index: Any) -> list[Any]:
    """Return the transforms of an `IndexPreTransform`, such as PCA, in their order."""
    return [faiss.downcast_VectorTransform(index.chain.at(number)) for number in range(index.chain.size())]


def _train(index: Any, rows: np.ndarray) -> None:
    """Train an index on rows, float32 (n, D): the centers of inverted lists on all, codes on some."""
    if isinstance(index, faiss.IndexPreTransform):
        for transform in transforms(index):
            if not transform.is_trained:
                with phase(f"training {type(transform).__name__}"):
                    transform.train(_some(rows))
            rows = transform.apply(rows)
        _train(faiss.downcast_index(index.index), rows)
        index.is_trained = True
        return
    if isinstance(index, faiss.IndexIVF) and _has_plain_lists(index) and index.nlist <= len(rows):
        index.quantizer.add(cluster(rows, index.nlist))
    with phase(f"training {type(index).__name__}"):
        index.train(_some(rows))


def _some(rows: np.ndarray) -> np.ndarray:
    """Return the rows that codes are trained on, spread over rows (n, D); few enough are not copied."""
    if len(rows) <= _MAX_TRAINING_CODES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, _MAX_TRAINING_CODES).astype(np.int64)]


def _has_plain_lists(index: Any) -> bool:
    """Whether the lists of an index are those of the nearest centers, which are stored as they are."""
    return isinstance(faiss.downcast_index(index.quantizer), faiss.IndexFlat)


def training_size(num_rows: int, width: int, num_lists: int) -> int:
    """Return the number of rows of a database (N, D) that an index is trained on."""
    wanted = max(_MAX_TRAINING, _ROWS_PER_LIST * num_lists)
    return min(num_rows, wanted, max(1, _MAX_TRAINING_VALUES // width))


def _sample(database: Rows, num_lists: int) -> np.ndarray:
    """Return rows spread over a database, float32 (n, D)."""
    size = training_size(len(database), database.width, num_lists)
    rows = np.unique(np.linspace(0, len(database) - 1, size).astype(np.int64))
    return np.ascontiguousarray(database.take(rows), np.float32)


def faiss_reason(error: Exception) -> str:
    """Return the message of a faiss error without its code location and final period."""
    return _CODE_LOCATION.sub("", str(error).strip().splitlines()[-1]).rpartition("failed: ")[2].rstrip(".")
