"""A large array of rows on disk, in files that are each written atomically, so that filling it can be resumed."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Literal, Protocol
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa

from progeo.atomic import replacing

_NUMPY_ERRORS = (
    *(ValueError, TypeError, EOFError, SyntaxError, TokenError, BadZipFile, OSError),
    *(OverflowError, MemoryError, RecursionError),
)
"""Errors of numpy for a corrupt file, whose header is a Python literal."""
_ROWS_AT_ONCE = 2**12
_VALUES_AT_ONCE = 2**26
"""Maximum number of values in memory when rows are read in another order."""


def can_be_compared(features: np.ndarray) -> np.ndarray:
    """Return which features (N, D) are finite and so small that distances between them are finite too, bool (N,)."""
    doubled = 2 * features.astype(np.float32, copy=False)  # a distance is at most twice the longest
    return np.isfinite(np.einsum("nd,nd->n", doubled, doubled))


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Load a .npy file, or memory-map it.

    Raises:
        ValueError: the file is corrupt; the message names it.
    """
    try:
        values = np.load(path, mmap_mode="r")  # a header that claims more than the file holds takes no memory
        if not isinstance(values, np.memmap):
            raise ValueError("it is an archive, not an array")
        return _without_descriptor(path, values) if mapped else np.array(values)
    except _NUMPY_ERRORS as error:
        raise ValueError(f"{path} is corrupt ({error})") from None


def _without_descriptor(path: Path, values: np.memmap) -> np.ndarray:
    """Map a file anew as Arrow does, which holds no file descriptor, of which a process has few, unlike numpy."""
    order: Literal["F", "C"] = "C" if values.flags.c_contiguous else "F"
    buffer = pa.memory_map(str(path)).read_buffer()
    return np.frombuffer(buffer, values.dtype, values.size, values.offset).reshape(values.shape, order=order)


class Rows(Protocol):
    """N rows of D numbers, float16 or float32, which are stored or made when they are read."""

    def __len__(self) -> int:
        """N."""

    @property
    def width(self) -> int:
        """D."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read rows int64 (n,) in the given order, (n, D)."""

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows, some (n, D) at a time."""


class ShardedRows:
    """Rows (N, D) in the files `rows_00000.npy`, ... of a folder, memory-mapped when read.

    Args:
        num_rows, width: N and D.
        shard_size: rows per file; the last file may have fewer.
        dtype: float16 or float32.
        file_name: format of the file names; with another name and a single file, any array of rows can be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_rows: int,
        width: int,
        shard_size: int,
        dtype: str = "float16",
        file_name: str = "rows_{:05}.npy",
    ) -> None:
        self.folder = folder
        self.num_rows = num_rows
        self.width = width
        self.shard_size = shard_size
        self.dtype = np.dtype(dtype)
        self.file_name = file_name
        self.missing = np.array([], np.int64)
        self._finite: set[int] = set()

    def __len__(self) -> int:
        return self.num_rows - len(self.missing)

    def without(self, rows: np.ndarray) -> "ShardedRows":
        """Return these rows with some excluded, int64 (n,); `all_rows` maps the remaining positions back."""
        others = copy.copy(self)
        others.missing = np.union1d(self.missing, rows).astype(np.int64)
        return others

    @property
    def complete(self) -> "ShardedRows":
        """The same rows with none excluded."""
        others = copy.copy(self)
        others.missing = np.array([], np.int64)
        return others

    def all_rows(self, rows: np.ndarray) -> np.ndarray:
        """Map `rows`, int64 of any shape, to positions that also count the excluded rows; -1 stays -1."""
        shifts = np.searchsorted(self.missing - np.arange(len(self.missing)), rows, side="right")
        return np.where(rows < 0, rows, rows + shifts)

    @property
    def num_bytes(self) -> int:
        """Size in bytes of all rows that are not excluded."""
        return len(self) * self.width * self.dtype.itemsize

    @property
    def written_ns(self) -> int:
        """Modification time of the most recently written file, in nanoseconds."""
        return max(self.path(shard).stat().st_mtime_ns for shard in self.shards)

    @property
    def shards(self) -> range:
        """Numbers of all files."""
        return range(-(-self.num_rows // self.shard_size))

    def shard_rows(self, shard: int) -> range:
        """Return the range of rows that a shard holds."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.num_rows))

    def missing_shards(self) -> list[int]:
        """Return the shards that are not written yet."""
        return [shard for shard in self.shards if not self.path(shard).is_file()]

    def write_shard(self, shard: int, values: np.ndarray) -> None:
        """Write the rows of a shard, (rows, D)."""
        with replacing(self.path(shard)) as temporary:
            np.save(temporary, values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read rows int64 (n,) in the given order, (n, D).

        Raises:
            ValueError: a file is not what was written; the message names it.
        """
        values, rows = np.empty((len(rows), self.width), self.dtype), self.all_rows(rows)
        shards = rows // self.shard_size
        by_shard = np.argsort(shards, kind="stable")
        for here in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            if len(here):
                shard = int(shards[here[0]])
                values[here] = self._map(shard)[rows[here] - shard * self.shard_size]
        return values

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows that are not excluded, one file (n, D) at a time."""
        for shard in self.shards:
            rows = self.shard_rows(shard)
            missing = self.missing[slice(*np.searchsorted(self.missing, (rows.start, rows.stop)))]
            values = self._map(shard)
            yield np.delete(values, missing - rows.start, axis=0) if len(missing) else values

    def _map(self, shard: int) -> np.ndarray:
        """Map a file briefly: a persistent mapping would count all that was ever read as this process's memory."""
        path, shape = self.path(shard), (len(self.shard_rows(shard)), self.width)
        try:
            values = load_array(path, mapped=True)
        except ValueError as error:
            raise ValueError(f"{error}: remove it, and it is made again.") from None
        if (values.shape, values.dtype) != (shape, self.dtype):
            held = f"{values.dtype} {values.shape}, not {self.dtype} {shape}"
            raise ValueError(f"{path} holds {held}: remove it, and it is made again.")
        if shard not in self._finite:  # once, as it takes as long as reading the rows again
            starts = range(0, len(values), _ROWS_AT_ONCE)
            if not all(np.isfinite(values[start : start + _ROWS_AT_ONCE]).all() for start in starts):
                raise ValueError(f"{path} holds numbers that are not finite: remove it, and it is made again.")
            self._finite.add(shard)
        return values

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / self.file_name.format(shard)


@dataclass(frozen=True)
class Ones:
    """Rows of ones, in place of features that were not extracted."""

    count: int
    width: int
    """D."""

    def __len__(self) -> int:
        return self.count

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return ones for rows int64 (n,), (n, D)."""
        return np.ones((len(rows), self.width), np.float32)

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows, (N, D)."""
        yield self.take(np.arange(self.count))


@dataclass(frozen=True)
class ReorderedRows:
    """Rows in another order, or some of them."""

    rows: Rows
    order: np.ndarray
    """Positions in `rows`, int64 (N,)."""

    def __len__(self) -> int:
        return len(self.order)

    @property
    def width(self) -> int:
        """D."""
        return self.rows.width

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Read rows int64 (n,) in the given order, (n, D)."""
        return self.rows.take(self.order[rows])

    def parts(self) -> Iterator[np.ndarray]:
        """Yield all rows, (n, D) at a time, many since they may come from all files."""
        step = max(1, _VALUES_AT_ONCE // max(1, self.width))
        for start in range(0, len(self.order), step):
            yield self.rows.take(self.order[start : start + step])
