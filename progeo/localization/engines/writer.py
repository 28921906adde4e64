"""Store the descriptors of a place index in its engine."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from progeo.engine.log import LOGGER
from progeo.features.store import Rows
from progeo.localization.engines.collection import Collection
from progeo.localization.engines.connecting import EngineMetadata, check_owner, connect
from progeo.localization.engines.filters import filter_of
from progeo.localization.engines.points import batch_size, batches, part_key, point_id
from progeo.localization.index_folder import holds_uncommitted_parts, read_metadata
from progeo.localization.index_metadata import IndexMetadata
from progeo.localization.removed_rows import open_removed
from progeo.localization.restriction import Restriction
from progeo.places.catalogue import Catalogue
from progeo.progress import followed

_POINTS_DELETED_AT_ONCE = 10_000


@dataclass(frozen=True)
class EngineWriter:
    """Stores the descriptors of new parts in an engine; see `DescriptorWriter`."""

    collection: Collection
    engine: EngineMetadata
    encoder: str
    """Fingerprint of the encoder."""

    @property
    def place(self) -> str:
        """Where descriptors are stored, in words."""
        return self.collection.place

    def add(self, part: str, rows: Rows, images: Catalogue) -> None:
        """Store the rows of a part; those that a command stored before it was killed are not sent again.

        Raises:
            ConnectionError: the engine cannot be reached.
            ValueError: the collection is that of another index or of descriptors of other dimensions, or the engine
                refuses the points.
        """
        self.collection.create(rows.width, owner=self.engine.owner, quantization=self.engine.quantization)
        check_owner(self.collection, self.engine, width=rows.width)
        key, step = part_key(part), batch_size(rows.width)
        start = self._num_stored(key) // step * step
        if start:
            LOGGER.info("%s of %s images are in %s already", f"{start:,}", f"{len(rows):,}", self.collection.place)
        for first in (start, 0):  # from the first, if others were deleted than those after `start`
            found = batches(key, rows, images, start=first, encoder=self.encoder)
            sent = followed(found, "storing points", total=-(-(len(rows) - first) // step), unit="batches")
            for points in sent:
                self.collection.upsert(points)
            if (stored := self._num_stored(key)) == len(rows):
                return self.collection.flush()
        raise ValueError(
            f"{stored:,} of {len(rows):,} points that were sent are in {self.place}: look at its log, and run this "
            f"command again."
        )

    def tidy(self, folder: Path) -> None:
        """Delete the points of removed images and of parts that killed commands did not commit, and optimize the rest.

        As long as another command writes parts, those of all uncommitted parts are kept.

        Args:
            folder: folder of the index.
        """
        try:
            # What is held, then what is written, then what is committed: no new part is taken for an abandoned one.
            held, is_written = self.collection.parts(), holds_uncommitted_parts(folder)
            metadata = read_metadata(folder)
            self._delete_removed(metadata, open_removed(folder, metadata), held)
            if not is_written:  # folders of parts are there before their points
                for key in held.keys() - {part_key(part.engine_id) for part in metadata.parts}:
                    self.collection.delete_part(key)
            self.collection.optimize()
        except (OSError, ValueError) as error:  # of the engine; or another command replaced a file and does the same
            LOGGER.warning("%s is changed; its next change cleans up its engine, as this one cannot: %s", folder, error)

    def _delete_removed(self, metadata: IndexMetadata, removed: np.ndarray, held: Mapping[str, int]) -> None:
        bounds = np.cumsum([0, *(part.rows for part in metadata.parts)])
        for part, start, end in zip(metadata.parts, bounds, bounds[1:], strict=False):
            gone = removed[slice(*np.searchsorted(removed, [start, end]))] - start
            key = part_key(part.engine_id)
            if held.get(key, 0) > part.rows - len(gone):
                for first in range(0, len(gone), _POINTS_DELETED_AT_ONCE):
                    chosen = gone[first : first + _POINTS_DELETED_AT_ONCE].tolist()
                    self.collection.delete_points([point_id(key, row) for row in chosen])

    def _num_stored(self, key: str) -> int:
        return self.collection.count(filter_of(self.collection, Restriction(), parts=[key]))


def engine_writer(folder: Path, metadata: IndexMetadata) -> EngineWriter | None:
    """Return a writer to the engine of a place index in a folder; None if it has none."""
    if metadata.engine is None:
        return None
    return EngineWriter(connect(metadata.engine, folder), metadata.engine, fingerprint_of(metadata.encoder))


def fingerprint_of(encoder: Mapping[str, Any]) -> str:
    """Return the fingerprint of the metadata of an encoder, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()[:16]
