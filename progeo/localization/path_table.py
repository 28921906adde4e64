"""A sorted table of the hashes of paths: known paths are found by binary search, without reading the others."""

from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.atomic import replacing
from progeo.features.store import load_array

_ROWS_AT_ONCE = 2**16


def write_path_table(path: Path, paths: pa.ChunkedArray) -> None:
    """Write the hashes of paths, sorted, and the row of each: uint64 (2, n)."""
    hashes = hashes_of(paths)
    order = np.argsort(hashes, kind="stable")
    with replacing(path) as temporary:
        np.save(temporary, np.stack([hashes[order], order.astype(np.uint64)]))


def open_path_table(path: Path, count: int) -> np.ndarray:
    """Memory-map the table of `count` paths.

    Raises:
        ValueError: the file is corrupt, or of another number of paths; the message names it.
    """
    table = load_array(path, mapped=True)
    if table.shape != (2, count) or table.dtype != np.uint64:
        raise ValueError(f"{path} holds {table.dtype} {table.shape}, not uint64 (2, {count}): build the index anew.")
    return table


def rows_of_hashes(table: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows whose paths have some hashes.

    Args:
        table: a table of `open_path_table`.
        hashes: uint64 (m,), see `hashes_of`.

    Returns:
        Pairs of a position in `hashes` and a row, int64 (p,) each; texts of equal hashes may still differ.
    """
    first = np.searchsorted(table[0], hashes)
    counts = np.searchsorted(table[0], hashes, side="right") - first
    wanted = np.repeat(np.arange(len(hashes)), counts)
    before = np.cumsum(counts) - counts
    places = np.repeat(first - before, counts) + np.arange(counts.sum())
    return wanted, np.asarray(table[1][places], np.int64)


def hashes_of(paths: pa.ChunkedArray) -> np.ndarray:
    """Hash texts, uint64 (n,)."""
    hashes = [np.empty(0, np.uint64)]
    for start in range(0, len(paths), _ROWS_AT_ONCE):
        texts = paths.slice(start, _ROWS_AT_ONCE).cast(pa.large_binary()).to_pylist()
        hashes.append(np.frombuffer(b"".join(blake2b(text, digest_size=8).digest() for text in texts), "<u8"))
    return np.concatenate(hashes)
