"""Local features of many images in one file, memory-mapped: any row is read and checked alone."""

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from progeo.atomic import replacing
from progeo.verification.local_features import LocalFeatures

_SCHEMA = pa.schema([("features", pa.large_binary()), ("checksum", pa.uint32())], {"features": "rootsift 1"})
"""Its metadata change with what the features are, so that others are not matched with them."""
_ROWS_AT_ONCE = 256


class StoredFeatures(NamedTuple):
    """The features of an image as a file holds them."""

    values: bytes | None
    """What `LocalFeatures.to_bytes` returns; None for an image without any."""
    checksum: int


def to_store(values: bytes | None) -> StoredFeatures:
    """Add the checksum to features, as `LocalFeatures.to_bytes` returns them."""
    return StoredFeatures(values, 0 if values is None else zlib.crc32(values))


def write_feature_file(path: Path, rows: Iterable[StoredFeatures]) -> None:
    """Write the features of images.

    Those of another file keep their checksums, so that what is corrupt there is found here, too. Only some rows are in
    memory at a time.
    """
    rows = iter(rows)
    with replacing(path) as temporary, pa.ipc.new_file(str(temporary), _SCHEMA) as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            values, checksums = zip(*some, strict=True)
            columns = [pa.array(values, pa.large_binary()), np.array(checksums, np.uint32)]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))


@dataclass(frozen=True)
class FeatureFile:
    """The features of N images, see `open_feature_file`."""

    path: Path
    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the checksums of all rows; the rows themselves are not read."""
        checksums = np.ascontiguousarray(self.table["checksum"].to_numpy())
        return hashlib.sha256(checksums.astype("<u4").tobytes()).hexdigest()

    def stored(self, rows: Iterable[int] | None = None) -> Iterator[StoredFeatures]:
        """Yield the features of all images, or of those at some rows, in turn, as stored and unchecked."""
        features, checksums = self.table["features"], self.table["checksum"]
        for row in range(len(self)) if rows is None else rows:
            yield StoredFeatures(features[row].as_py(), checksums[row].as_py())

    def features(self, row: int) -> LocalFeatures | None:
        """Return the features of an image; None if it has none.

        Raises:
            ValueError: they are corrupt; the message names the file.
        """
        stored = self.table["features"][row].as_buffer()
        if stored is None:
            return None
        values = memoryview(stored)
        try:
            if zlib.crc32(values) != self.table["checksum"][row].as_py():
                raise ValueError("its checksum is another")
            return LocalFeatures.from_bytes(values)
        except ValueError as error:
            raise ValueError(f"{self.path} is corrupt at row {row} ({error}): build the index anew.") from None


@dataclass(frozen=True)
class JoinedFeatures:
    """The features of the images of several files, counted one file after another."""

    files: Sequence[FeatureFile]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0, *map(len, self.files)])

    def stored(self, rows: Iterable[int] | None = None) -> Iterator[StoredFeatures]:
        """Yield features as `FeatureFile.stored` does."""
        for row in range(len(self)) if rows is None else rows:
            file, row_there = self._at(row)
            yield from file.stored([row_there])

    def features(self, row: int) -> LocalFeatures | None:
        """Return the features of an image, see `FeatureFile.features`."""
        file, row_there = self._at(row)
        return file.features(row_there)

    def _at(self, row: int) -> tuple[FeatureFile, int]:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.files[number], row - int(self._starts[number])


def open_feature_file(path: Path) -> FeatureFile:
    """Memory-map a file of `write_feature_file`.

    Raises:
        ValueError: the file is corrupt, or another; the message names it.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if not table.schema.equals(_SCHEMA, check_metadata=True):
            raise ValueError("it is of another version")
        table.validate(full=True)
        if table["checksum"].null_count:
            raise ValueError("checksums are missing")
        return FeatureFile(path, table)
    except (pa.ArrowException, OSError, ValueError, MemoryError, SystemError) as error:
        raise ValueError(
            f"{path} is no file of local features: {str(error).rstrip('.')}. Build the index anew."
        ) from None
