"""Find the nearest descriptors exactly: products of matrices exclude most pairs, the others are compared directly."""

from collections.abc import Iterable, Iterator

import faiss
import numpy as np
import torch

_ROWS_AT_ONCE = 2**13
_QUERIES_AT_ONCE = 2**10
_FIRST_ROWS = 2**6
"""Rows of the first block; each one is as large as all before it, so that few pairs of a block are compared again."""
_ROWS_CONVERTED = 2**10
_MIN_QUERIES = 20
"""Minimum number of queries for which products surely pay, whatever other programs do with the cores."""
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
        self._norms = np.einsum("qd,qd->q", queries, queries, dtype=np.float64)
        self._products = np.empty(min(len(queries), _QUERIES_AT_ONCE) * _ROWS_AT_ONCE, np.float32)

    @property
    def few(self) -> bool:
        """Whether so few queries are best compared with all rows directly."""
        return len(self.queries) < _MIN_QUERIES

    def compare(self, block: np.ndarray, start: int) -> None:
        """Compare the next rows of the database, float32 (n, D), the first of which is `start`."""
        if self.few:
            self.add(*faiss.knn(self.queries, block, min(self.rows.shape[1], len(block))), start=start)
            return
        halves = np.einsum("nd,nd->n", block, block) * np.float32((1 - 3 * self._rounding) / 2)
        for first in range(0, len(self.queries), _QUERIES_AT_ONCE):
            here = slice(first, first + _QUERIES_AT_ONCE)
            pairs = self._close_pairs(here, block, halves)
            if len(pairs[0]):
                self._compare_pairs(self.queries[here], block, *pairs, first=first, start=start)

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

    @np.errstate(over="ignore", invalid="ignore")  # of huge values, which are compared directly
    def _close_pairs(self, here: slice, block: np.ndarray, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of queries and rows that may be nearer than what is known, int64 (P,) each.

        With the rounding r, computed norms a = |x|^2 and b = |y|^2 and product p of a query x and a row y, the squared
        distance is at least (1 - 3 r) (a + b) - 2 p. A row is excluded if this is above the K-th distance known, with
        the rounding of that and of its own. What overflows to NaN is not excluded.
        """
        rounding, known = self._rounding, self.squared[here, -1].astype(np.float64)
        underflow = self.queries.shape[1] * _SMALLEST
        limits = ((1 - 3 * rounding) * self._norms[here] - (1 + 3 * rounding) * known - underflow) / 2
        limits = np.nextafter(limits.astype(np.float32), np.float32(-np.inf))
        products = self._products[: len(limits) * len(block)].reshape(len(limits), len(block))
        np.matmul(self.queries[here], block.T, out=products)
        products -= np.where(np.isfinite(halves), halves, np.float32(np.nan))
        close = products <= limits[:, None]
        np.logical_not(close, out=close)
        queries, rows = np.divmod(np.flatnonzero(close), len(block))
        return queries, rows

    def _compare_pairs(
        self, queries: np.ndarray, block: np.ndarray, of: np.ndarray, rows: np.ndarray, *, first: int, start: int
    ) -> None:
        """Compare pairs directly, sorted by query and row, and keep those that are nearer than what is known."""
        squared = _squared_of_pairs(queries, block, of, rows)
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


def blocks(parts: Iterable[np.ndarray], *, growing: bool) -> Iterator[np.ndarray]:
    """Yield the rows of parts (n, D), float16 or float32, in blocks as float32; a block is valid until the next one.

    Args:
        growing: whether the first blocks are small.
    """
    converter, start = _Converter(), 0
    for part in parts:
        first = 0
        while first < len(part):
            size = min(_ROWS_AT_ONCE, max(_FIRST_ROWS, start)) if growing else _ROWS_AT_ONCE
            block = part[first : first + size]
            first, start = first + len(block), start + len(block)
            yield converter.float32(block) if block.dtype == np.float16 else np.ascontiguousarray(block, np.float32)


class _Converter:
    """Converts float16 by torch, in half the time of numpy, into memory that is used again."""

    def __init__(self) -> None:
        self._halves = torch.empty(0, 0, dtype=torch.float16)
        self._floats = torch.empty(0, 0)

    def float32(self, block: np.ndarray) -> np.ndarray:
        """Return a block (n, D) as float32, valid until the next one."""
        if len(self._floats) < len(block):
            self._halves = torch.empty(_ROWS_CONVERTED, block.shape[1], dtype=torch.float16)
            self._floats = torch.empty(block.shape)
        for first in range(0, len(block), _ROWS_CONVERTED):
            rows = block[first : first + _ROWS_CONVERTED]
            self._halves.numpy()[: len(rows)] = rows  # torch warns of memory that is only read, as of mapped files
            self._floats[first : first + len(rows)].copy_(self._halves[: len(rows)])
        return self._floats.numpy()[: len(block)]


def _squared_of_pairs(queries: np.ndarray, block: np.ndarray, of: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Compute the squared distances of P pairs of descriptors, float32 (P,)."""
    squared, width = np.empty(len(of), np.float32), queries.shape[1]
    given = [faiss.swig_ptr(each) for each in (queries, of, block, rows, squared)]
    faiss.pairwise_indexed_L2sqr(width, len(of), *given)  # type: ignore[attr-defined]
    return squared
