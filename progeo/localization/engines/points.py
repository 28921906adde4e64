"""Points of a part of a place index: identifiers, and payload that filters read."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np

from progeo.features.store import Rows
from progeo.localization.engines.collection import Hit, Points
from progeo.places.catalogue import Catalogue

_VALUES_AT_ONCE = 2**19
"""Numbers in one request: as JSON 11 MB at most, and servers take 32 MB."""
_POINTS_AT_ONCE = 1000


def part_key(part: str) -> str:
    """Return the first half of the identifiers of the points of a part, 16 hexadecimal digits."""
    return hashlib.sha256(part.encode()).hexdigest()[:16]


def point_id(key: str, row: int) -> UUID:
    """Return the identifier of a row of a part: the key of the part, and the row."""
    return UUID(f"{key}{row:016x}")


def keys_and_rows(hits: Sequence[Hit]) -> Iterator[tuple[str, int]]:
    """Yield the key of the part and the row in it of each point, see `point_id`."""
    return ((hit.id.hex[:16], hit.id.int & (2**64 - 1)) for hit in hits)


def batch_size(width: int) -> int:
    """Return the number of points of D dimensions that are sent at once."""
    return max(1, min(_POINTS_AT_ONCE, _VALUES_AT_ONCE // width))


def batches(key: str, rows: Rows, images: Catalogue, *, start: int, encoder: str) -> Iterator[Points]:
    """Yield the points of a part, some at a time.

    Args:
        images: the N images of the rows, as `index_images` returns them.
        start: first row.
        encoder: fingerprint of the encoder.
    """
    step = batch_size(rows.width)
    for first in range(start, len(rows), step):
        chosen = np.arange(first, min(first + step, len(rows)))
        descriptors = np.ascontiguousarray(rows.take(chosen), np.float32)
        payloads = [
            {"part": key, "row": row, "encoder": encoder, **payload}
            for row, payload in zip(chosen.tolist(), _payloads(images.take(chosen)), strict=True)
        ]
        yield Points([point_id(key, row) for row in chosen.tolist()], descriptors, payloads)


def _payloads(images: Catalogue) -> Iterator[dict[str, Any]]:
    """Yield path, position and heading of each image, without those that are unknown, which no JSON number is."""
    columns = (images.table[name].to_pylist() for name in ("path", "latitude", "longitude", "heading"))
    for path, latitude, longitude, heading in zip(*columns, strict=True):
        payload: dict[str, Any] = {"path": path}
        if np.isfinite(latitude) and np.isfinite(longitude):
            payload["position"] = {"lat": latitude, "lon": longitude}
        if np.isfinite(heading):
            payload["heading"] = heading % 360 % 360  # -1e-15 % 360 is 360
        yield payload
