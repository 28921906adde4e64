"""Tables larger than memory: made batch by batch in a temporary file, which is mapped into memory."""

import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from mmap import ACCESS_READ, mmap

import numpy as np
import pyarrow as pa

ROWS_AT_ONCE = 2**18
_ROWS_IN_MEMORY = 2**21
"""Number of rows below which a table is kept in memory."""


def pieces_of(table: pa.Table) -> Iterator[pa.Table]:
    """Yield slices of a table, at least one."""
    for start in range(0, max(1, len(table)), ROWS_AT_ONCE):
        yield table.slice(start, ROWS_AT_ONCE)


def joined(pieces: Iterable[pa.Table]) -> pa.Table:
    """Join tables of the same columns, at least one; if they have many rows, in a temporary file that is mapped.

    The file lies where temporary files do, which the environment variable TMPDIR changes, and has no name from the
    beginning, so that none is left of a process that is killed: the system keeps what is mapped.
    """
    pieces = iter(pieces)
    held, num_rows = [], 0
    for piece in pieces:
        held.append(piece)
        num_rows += len(piece)
        if num_rows > _ROWS_IN_MEMORY:
            return _mapped(chain(held, pieces), piece.schema)
    return pa.concat_tables(held)


def filtered(table: pa.Table, keep: np.ndarray) -> pa.Table:
    """Return the rows of a table that has some where `keep`, bool (N,), is true, held as by `joined`."""
    if keep.all():
        return table
    starts = range(0, len(table), ROWS_AT_ONCE)
    pieces = zip(starts, pieces_of(table), strict=True)
    return joined(piece.filter(pa.array(keep[start : start + len(piece)])) for start, piece in pieces)


def _mapped(pieces: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    with tempfile.TemporaryFile(prefix="progeo_") as file:
        with pa.ipc.new_file(file, schema) as writer:
            for piece in pieces:
                writer.write_table(piece.combine_chunks())
        file.flush()
        content = mmap(file.fileno(), 0, access=ACCESS_READ)
    return pa.ipc.open_file(pa.py_buffer(content)).read_all()
