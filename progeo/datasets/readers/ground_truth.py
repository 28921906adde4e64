"""Functions shared by the ground truth readers: build catalogues from names, positions and positives."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from progeo.places.catalogue import Catalogue
from progeo.places.paths import portable_names


def build_side(images: Path, names: list[str], utm_m: np.ndarray | None = None, **columns: pa.Array) -> Catalogue:
    """Build the catalogue of the database or the queries, without zones and headings.

    Args:
        images: folder that the N file names are relative to.
        utm_m: east and north in meters, (N, 2); None if positions are unknown.
        columns: additional columns of N values.
    """
    count = len(names)
    east, north = np.full((2, count), np.nan) if utm_m is None else utm_m.T
    known = {
        "path": portable_names(pa.array(names, pa.large_string()), images),
        "east": east,
        "north": north,
        "zone": np.zeros(count, np.int8),
        "heading": np.full(count, np.nan),
    }
    return Catalogue(images, pa.table({**known, **columns}))


def build_sides(
    images: Path,
    names: Mapping[str, list[str]],
    *,
    utm_m: Mapping[str, np.ndarray] | None = None,
    positives: list[np.ndarray] | None = None,
) -> dict[str, Catalogue]:
    """Build the catalogues of `database` and `queries`; arguments as for `build_side`.

    Args:
        positives: correct database rows of each query, stored in a column `positives`, unique and ascending.
    """
    utm_m = utm_m or {}
    sides = {side: build_side(images, names[side], utm_m.get(side)) for side in ("database", "queries")}
    if positives is not None:
        column = pa.array([np.unique(rows) for rows in positives], pa.list_(pa.int64()))
        sides["queries"] = Catalogue(images, sides["queries"].table.append_column("positives", column))
    return sides
