"""Find the nearest descriptors exactly: products of matrices exclude most pairs, the others are compared directly."""

import ctypes
from collections.abc import Iterable, Iterator

import faiss
import numpy as np
import torch

_ROWS_AT_ONCE = 2**13
_QUERIES_AT_ONCE = 2**9
_FIRST_ROWS, _FIRST_PAIRS = 2**6, 2**15
"""Rows of the first block, at least, and pairs in it; each next one is as large as all before it, so that few of its
pairs are compared again."""
_VALUES_PER_THREAD = 2**22
"""Values of pairs that are worth a thread more."""
_VALUES_CONVERTED = 2**15
"""Values that torch converts at once, so few that it uses no thread: those of faiss may still hold the other cores."""
_MIN_QUERIES = 16
"""Minimum number of queries for which products pay, also on several cores."""
_MIN_SPREAD = 64
"""Minimum squared distance of queries from their mean, in maximum errors of a product, without which it is subtracted.
"""
_UNIT = float(np.finfo(np.float32).eps) / 2
_SMALLEST = float(np.finfo(np.float32).tiny)


class Nearest:
    """The nearest of the descriptors compared so far with Q queries, ties ordered by row.

    A distance is the sum of squared differences, which is exact for equal descriptors, as rounded in float32.

    Args:
        queries: descriptors, float32 (Q, D).
        count: neighbors per query, K.
    """

    def __init__(self, queries: np.ndarray, count: int) -> None:
        self.queries = queries
        self.squared = np.full((len(queries), count), np.inf, np.float32)
        """Squared distances, ascending, (Q, K); infinite where there is none."""
        self.rows = np.full((len(queries), count), -1, np.int64)
        """Their rows, (Q, K)."""
        self._center = self._common_center()
        self._centered = queries if self._center is None else queries - self._center
        self._norms = _squared_norms(self._centered)
        self._products = np.empty(min(len(queries), _QUERIES_AT_ONCE) * _ROWS_AT_ONCE, np.float32)

    @np.errstate(over="ignore", invalid="ignore")  # of huge values, which are compared directly
    def compare(self, block: np.ndarray, start: int) -> None:
        """Compare the next rows of the database, float32 (n, D), the first of which is `start`."""
        if len(self.queries) < _MIN_QUERIES:
            of = np.repeat(np.arange(len(self.queries)), len(block))
            rows = np.tile(np.arange(len(block)), len(self.queries))
            self._compare_pairs(self.queries, block, of, rows, first=0, start=start)
            return
        centered = block if self._center is None else block - self._center
        halves = np.einsum("nd,nd->n", centered, centered) * np.float32((1 - 3 * self._rounding) / 2)
        for first in range(0, len(self.queries), _QUERIES_AT_ONCE):
            here = slice(first, first + _QUERIES_AT_ONCE)
            of, rows = self._close_pairs(here, centered, halves)
            self._compare_pairs(self.queries[here], block, of, rows, first=first, start=start)

    def add(self, squared: np.ndarray, rows: np.ndarray, *, start: int, of: np.ndarray | slice = slice(None)) -> None:
        """Add neighbors of all queries, or those `of` some, (Q, k), rows counted from `start`, of equal ones ascending.

        A row of -1 is none.
        """
        squared = np.concatenate([self.squared[of], np.where(rows < 0, np.float32(np.inf), squared)], axis=1)
        rows = np.concatenate([self.rows[of], np.where(rows < 0, -1, start + rows)], axis=1)
        order = np.argsort(squared, axis=1, kind="stable")[:, : self.rows.shape[1]]
        self.squared[of], self.rows[of] = (np.take_along_axis(each, order, axis=1) for each in (squared, rows))

    @property
    def _rounding(self) -> float:
        """Maximum error of a product of D values, relative to the product of the norms, in any order of summation."""
        return (self.queries.shape[1] + 16) * _UNIT

    @np.errstate(over="ignore", invalid="ignore")
    def _common_center(self) -> np.ndarray | None:
        """Return the mean of queries that are so close to it, as of a collapsed encoder, that products tell too little.

        The differences between descriptors and their rounding stay the same to a few units, see `_close_pairs`.
        """
        if not len(self.queries):
            return None
        center = self.queries.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread, norms = (_squared_norms(each).sum() for each in (self.queries - center, self.queries))
        return center if spread < _MIN_SPREAD * self._rounding * norms else None

    def _close_pairs(self, here: slice, block: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of queries and rows that may be nearer than what is known, int64 (P,) each.

        With the rounding r, computed norms a = |x|^2 and b = |y|^2 and product p of a query x and a row y, the squared
        distance is at least (1 - 3 r) (a + b) - 2 p, also where a center was subtracted from both. A row is excluded
        if this is above the K-th distance known, with the rounding of that and of its own, or if that is 0. What
        overflows to NaN is not excluded.
        """
        rounding, known = self._rounding, self.squared[here, -1].astype(np.float64)
        underflow = self.queries.shape[1] * _SMALLEST
        limits = ((1 - 3 * rounding) * self._norms[here] - (1 + 3 * rounding) * known - underflow) / 2
        limits = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        limits[known == 0] = np.inf
        products = self._products[: len(limits) * len(block)].reshape(len(limits), len(block))
        multiply(self._centered[here], block, products)
        products -= np.where(np.isfinite(halves), halves, np.float32(np.nan))
        close = products <= limits[:, None]
        np.logical_not(close, out=close)
        queries, rows = np.divmod(np.flatnonzero(close), len(block))
        return queries, rows

    def _compare_pairs(
        self, queries: np.ndarray, block: np.ndarray, of: np.ndarray, rows: np.ndarray, *, first: int, start: int
    ) -> None:
        """Compare pairs directly, sorted by query and row, and keep those that are nearer than what is known."""
        squared = squared_of_pairs(queries, block, of, rows)
        nearer = squared < self.squared[first + of, -1]
        squared, of, rows = squared[nearer], of[nearer], rows[nearer]
        if not len(of):
            return
        changed, starts, counts = np.unique(of, return_index=True, return_counts=True)
        line = np.repeat(np.arange(len(changed)), counts)
        column = np.arange(len(of)) - np.repeat(starts, counts)
        found = np.full((len(changed), counts.max()), -1, np.int64)
        distances = np.full(found.shape, np.inf, np.float32)
        found[line, column], distances[line, column] = rows, squared
        self.add(distances, found, start=start, of=first + changed)


def blocks(parts: Iterable[np.ndarray], *, num_queries: int | None) -> Iterator[np.ndarray]:
    """Yield the rows of parts (n, D), float16 or float32, in blocks as float32; a block is valid until the next one.

    Args:
        num_queries: number of queries if the first blocks are to be small for them.
    """
    smallest = _ROWS_AT_ONCE if num_queries is None else max(_FIRST_ROWS, _FIRST_PAIRS // max(1, num_queries))
    floats, start = np.empty((0, 0), np.float32), 0
    for part in parts:
        first = 0
        while first < len(part):
            size = min(_ROWS_AT_ONCE, max(smallest, start))
            block = np.ascontiguousarray(part[first : first + size])
            first, start = first + len(block), start + len(block)
            if block.dtype == np.float16:
                if len(floats) < len(block):
                    floats = np.empty(block.shape, np.float32)
                block = _converted(block, floats[: len(block)])
            yield block.astype(np.float32, copy=False)


def _converted(block: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Convert float16 to float32 by torch, in a third of the time of numpy."""
    step = max(1, _VALUES_CONVERTED // block.shape[1])
    given, floats = _tensor(block), torch.from_numpy(out)
    for first in range(0, len(block), step):
        floats[first : first + step].copy_(given[first : first + step])
    return out


def multiply(queries: np.ndarray, block: np.ndarray, out: np.ndarray) -> None:
    """Multiply queries (Q, D) by rows (n, D), (Q, n), by torch, whose threads do not wait as those of numpy do.

    They would hold the cores that those of faiss need. Where torch may round factors, numpy multiplies.
    """
    if torch.backends.mkldnn.matmul.fp32_precision in ("none", "ieee"):  # type: ignore[attr-defined]
        torch.mm(_tensor(queries), _tensor(block).T, out=torch.from_numpy(out))
    else:
        np.matmul(queries, block.T, out=out)


def _tensor(values: np.ndarray) -> torch.Tensor:
    """View contiguous values as a tensor, for reading; `torch.from_numpy` warns of those of a mapped file."""
    memory = (ctypes.c_uint8 * values.nbytes).from_address(values.ctypes.data)
    kind = torch.float16 if values.dtype == np.float16 else torch.float32
    return torch.frombuffer(memory, dtype=kind).view(values.shape)


def _squared_norms(descriptors: np.ndarray) -> np.ndarray:
    """Compute squared norms (N,) in float64."""
    return np.einsum("nd,nd->n", descriptors, descriptors, dtype=np.float64)


def squared_of_pairs(queries: np.ndarray, block: np.ndarray, of: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute the squared distances of P pairs of descriptors, float32 (P,)."""
    squared, width = np.empty(len(of), np.float32), queries.shape[1]
    given = [faiss.swig_ptr(each) for each in (queries, of, block, rows, squared)]
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(min(threads, 1 + len(of) * width // _VALUES_PER_THREAD))  # of this thread alone
    try:
        faiss.pairwise_indexed_L2sqr(width, len(of), *given)  # type: ignore[attr-defined]
    finally:
        faiss.omp_set_num_threads(threads)
    return squared
