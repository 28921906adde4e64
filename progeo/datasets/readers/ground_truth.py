"""Functions shared by the ground truth readers: build a catalogue from names, positions and positives."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.places.catalogue import Catalogue
from progeo.places.paths import portable_names


def build_side(images: Path, names: list[str], utm_m: np.ndarray | None = None, **columns: pa.Array) -> Catalogue:
    """Build the catalogue of the database or the queries, without zones and headings.

    Args:
        images: folder that the names are relative to.
        names: N file names.
        utm_m: east and north in meters, (N, 2); None if positions are unknown.
        columns: additional columns of N values.
    """
    count = len(names)
    places = np.full((count, 2), np.nan) if utm_m is None else utm_m
    known = {
        "path": portable_names(pa.array(names, pa.large_string()), images),
        "east": places[:, 0],
        "north": places[:, 1],
        "zone": np.zeros(count, np.int8),
        "heading": np.full(count, np.nan),
    }
    return Catalogue(images, pa.table({**known, **columns}))


def positives_column(positives: list[np.ndarray]) -> pa.Array:
    """Build the column of each query's positives: unique database rows in ascending order."""
    return pa.array([np.unique(rows) for rows in positives], pa.list_(pa.int64()))
