"""Kinds of faiss indexes: which one by default, how it is trained, and what its distances are."""

import re
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from progeo.features.store import Rows

_MAX_EXACT = 200_000
"""Number of rows from which an index is compressed by default."""
_MAX_TRAINING = 2**17
_MAX_TRAINING_VALUES = 2**27
"""Maximum number of values of descriptors that an index is trained on, 512 MB."""
_REFINE = 200
"""Number of candidates that are compared exactly by default."""
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
_RESTORE_NONE = (faiss.IndexLSH, faiss.IndexRaBitQ, faiss.IndexRaBitQFastScan, faiss.IndexIVFRaBitQ)
"""Kinds of indexes that restore other rows than those they compare."""


@dataclass(frozen=True)
class IndexKind:
    """A kind of index, and how it is searched."""

    faiss: str
    """Factory string."""
    probes: int
    """Number of inverted lists that a search visits."""
    refine: int
    """Number of best rows that are compared exactly; 0 takes the distances of the index."""


def default_kind(num_rows: int) -> IndexKind:
    """Return the kind of an index of so many rows: exact, or lists of one bit a dimension for many."""
    if num_rows < _MAX_EXACT:
        return IndexKind("Flat", probes=1, refine=0)
    num_lists = 2 ** round(np.log2(2 * num_rows**0.5))
    return IndexKind(f"IVF{num_lists},RaBitQ", probes=max(16, num_lists // 32), refine=_REFINE)


def default_refine(index: faiss.Index) -> int:
    """Return the number of rows to compare exactly in an index: 0 if it stores them as they are."""
    return 0 if _store(index).sa_code_size() >= 4 * index.d else _REFINE


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
    size = min(len(database), _MAX_TRAINING, _MAX_TRAINING_VALUES // database.width)
    sample = np.unique(np.linspace(0, len(database) - 1, size).astype(np.int64))
    try:
        if _CRASHES.search(kind):
            raise RuntimeError("a number in it is too small")
        index: Any = faiss.index_factory(database.width, kind)
        if getattr(faiss.try_extract_index_ivf(index), "nlist", 1) < 1:
            raise RuntimeError("it would have no list")
        index.train(database.take(sample).astype(np.float32))
    except RuntimeError as error:  # faiss raises nothing else
        raise ValueError(
            f"There is no index {kind!r} of {len(database)} descriptors of {database.width} dimensions: "
            f"{faiss_reason(error)}. Use for example IVF{max(1, int(len(database) ** 0.5))},Flat."
        ) from None
    return index


def faiss_reason(error: Exception) -> str:
    """Return the message of a faiss error without its code location and final period."""
    return _CODE_LOCATION.sub("", str(error).strip().splitlines()[-1]).rpartition("failed: ")[2].rstrip(".")
