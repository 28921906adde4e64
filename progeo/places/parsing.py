"""Positions, zones and headings of images, parsed from their names in parallel."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from progeo.places.filename import Unparsed, parse_columns, says_position, warn_of_unparsed
from progeo.progress import Progress
from progeo.remote_files import RemotePath

Positions = Literal["required", "optional", "ignored"]
"""Whether image names hold positions: "required" in every name, "optional" in those that start with @, or "ignored"."""
COLUMNS = ("east", "north", "zone", "heading")
"""Columns of a catalogue that names hold."""
_PARSERS = min(8, os.cpu_count() or 1)


def parsed_in_turn(
    folder: Path | RemotePath, batches: Iterator[pa.Array], positions: Positions = "required"
) -> Iterator[pa.RecordBatch]:
    """Parse batches of names in parallel, a few batches ahead of the consumer, and yield them in order."""
    pending: deque[Future[pa.RecordBatch]] = deque()
    unparsed: list[Unparsed] = []
    bar = Progress(f"reading the names of {folder}")
    with ThreadPoolExecutor(_PARSERS) as pool, bar:  # Arrow releases the GIL
        for batch in batches:
            pending.append(pool.submit(_parsed, batch, unparsed, positions))
            bar.update(len(batch))
            if len(pending) > _PARSERS:
                yield _result(pending.popleft(), folder)
        yield from (_result(future, folder) for future in pending)
    warn_of_unparsed(unparsed, folder)
    pa.default_memory_pool().release_unused()  # free the memory of parsing before anything else is allocated


def _result(future: Future[pa.RecordBatch], folder: Path | RemotePath) -> pa.RecordBatch:
    try:
        return future.result()
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None


def _parsed(paths: pa.Array, unparsed: list[Unparsed], positions: Positions) -> pa.RecordBatch:
    if positions == "ignored":
        return _parsed_in_part(paths, np.array([], np.int64), unparsed)
    try:
        return pa.RecordBatch.from_pydict({"path": paths, **parse_columns(paths, COLUMNS, unparsed)})
    except ValueError:
        named = says_position(paths)
        if positions == "required" or named.all():
            raise
        return _parsed_in_part(paths, np.flatnonzero(named), unparsed)


def _parsed_in_part(paths: pa.Array, named: np.ndarray, unparsed: list[Unparsed]) -> pa.RecordBatch:
    """Parse the names of the rows `named` only; all other rows have no position, zone or heading."""
    columns = {name: np.full(len(paths), np.nan) for name in COLUMNS} | {"zone": np.zeros(len(paths), np.int8)}
    for name, values in parse_columns(paths.take(pa.array(named)), COLUMNS, unparsed).items():
        columns[name][named] = values
    return pa.RecordBatch.from_pydict({"path": paths, **columns})
