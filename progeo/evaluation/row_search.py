"""Search an index among some of its rows only: all of them, exactly by what the index stores."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from progeo.evaluation.search import Neighbors, nearest_among, squared_distances


@dataclass(frozen=True)
class RowSearch:
    """Searches among chosen rows of an index, which may be memory-mapped: only these are read."""

    index: faiss.Index

    def neighbors_among(self, rows: np.ndarray, queries: np.ndarray, count: int) -> Neighbors:
        """Search by the Euclidean distance that the index itself would compute; ties are ordered by row.

        All the rows are compared: also those in lists, or out of reach in a graph, that a search of the index would
        not visit.

        Args:
            rows: sorted, int64 (n,).
            queries: descriptors, float32 (Q, D).
            count: neighbors per query, K; the row is -1 and the distance infinite where there are fewer.

        Raises:
            ValueError: an index of this kind has no Euclidean distances, or cannot be searched among chosen rows.
        """
        kind = f"An index of the kind {type(self.index).__name__} cannot be searched in parts"
        advice = "build it with another `faiss`, such as Flat or IVF1024,Flat"
        index, queries = _innermost(self.index, np.ascontiguousarray(queries, np.float32))
        found = np.full((len(queries), count), -1, np.int64)
        distances = np.full((len(queries), count), np.inf, np.float32)
        if num_found := min(count, len(rows)):
            search = self._among_lists if isinstance(index, faiss.IndexIVF) else _among_vectors
            if reason := next((reason for refused, reason in _REFUSED if isinstance(index, refused)), ""):
                raise ValueError(f"{kind}, as {reason}: {advice}.")
            try:
                nearest = search(index, rows, queries, num_found)
            except RuntimeError:  # faiss raises nothing else
                raise ValueError(f"{kind}: {advice}.") from None
            found[:, :num_found], distances[:, :num_found] = nearest.rows, nearest.distances
        return Neighbors(found, distances)

    @cached_property
    def _list_of_rows(self) -> np.ndarray:
        """Inverted list of each row, int32 (N,)."""
        index, _ = _innermost(self.index, np.zeros((1, self.index.d), np.float32))
        lists = np.empty(index.ntotal, np.int32)
        for number in range(index.nlist):
            if size := index.invlists.list_size(number):
                lists[faiss.rev_swig_ptr(index.invlists.get_ids(number), size)] = number
        return lists

    def _among_lists(self, index: Any, rows: np.ndarray, queries: np.ndarray, count: int) -> Neighbors:
        """Search the lists that hold the rows, whose vectors may be stored relative to the center of their list."""
        lists = np.unique(self._list_of_rows[rows]).astype(np.int64)
        centers = squared_distances(queries, index.quantizer.reconstruct_batch(lists))
        lists = np.tile(lists, (len(queries), 1))
        squared, found = np.empty((len(queries), count), np.float32), np.empty((len(queries), count), np.int64)
        given = [faiss.swig_ptr(each) for each in (queries, lists, np.ascontiguousarray(centers), squared, found)]
        bitmap: Any = faiss.IDSelectorBitmap  # which takes an array
        selector = bitmap(_bits(rows, index.ntotal))
        parameters = faiss.SearchParametersIVF()
        parameters.sel, parameters.nprobe = selector, lists.shape[1]
        index.search_preassigned_c(len(queries), given[0], count, *given[1:], False, parameters)
        order = np.lexsort((found, squared), axis=1)
        squared = np.maximum(np.take_along_axis(squared, order, axis=1), 0)
        return Neighbors(np.take_along_axis(found, order, axis=1), np.sqrt(squared))


def _innermost(index: Any, queries: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the index that holds the vectors compared last, and the queries as it gets them."""
    while True:
        if isinstance(index, faiss.IndexPreTransform):
            chain: Any = index.chain
            for number in range(chain.size()):
                queries = faiss.downcast_VectorTransform(chain.at(number)).apply(queries)
            index = faiss.downcast_index(index.index)
        elif inner := next((name for kind, name in _STORES if isinstance(index, kind)), ""):
            index = faiss.downcast_index(getattr(index, inner))
        else:
            return index, queries


_REFUSED = (
    (faiss.IndexLSH, "its distances are of bits"),
    ((faiss.IndexRaBitQ, faiss.IndexRaBitQFastScan), "its distances are not those to the vectors that it restores"),
    (faiss.IndexIVFFlatDedup, "equal vectors are found together"),  # type: ignore[attr-defined]
)
"""Kinds of indexes whose rows cannot be searched in parts, besides those for which faiss says so, and why."""
_STORES = ((faiss.IndexRefine, "refine_index"), (faiss.IndexHNSW, "storage"), (faiss.IndexNSG, "storage"))


def _among_vectors(index: Any, rows: np.ndarray, queries: np.ndarray, count: int) -> Neighbors:
    """Compare the vectors of rows; those of a compressed index as it restores them."""
    take = index.reconstruct_batch
    if isinstance(index, faiss.IndexFlat):
        take = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(-1, index.d).__getitem__
    return nearest_among(rows, queries, count, take=take)


def _bits(rows: np.ndarray, total: int) -> np.ndarray:
    """Set the bits of rows among `total`, uint8 (total / 8 + 1,)."""
    bits = np.zeros(total // 8 + 1, np.uint8)
    np.bitwise_or.at(bits, rows >> 3, (1 << (rows & 7)).astype(np.uint8))
    return bits
