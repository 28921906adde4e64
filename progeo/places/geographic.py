"""Latitude and longitude of images whose catalogue may know them in UTM only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from progeo.places.coordinates import degrees_of_utm, hemispheres
from progeo.places.filename import parse_columns

if TYPE_CHECKING:
    from progeo.places.catalogue import Catalogue


def degrees_of(catalogue: Catalogue) -> np.ndarray:
    """Latitude and longitude in degrees, (2, N): as read, else from UTM, else as the names say, NaN where unknown.

    Where nothing tells the hemisphere of a place in UTM, its latitude is unknown.
    """
    if "latitude" in catalogue.table.column_names:
        return np.stack([catalogue.table[name].to_numpy() for name in ("latitude", "longitude")])
    letters, named = _named(catalogue)
    hemisphere = hemispheres(catalogue.north, letters=[letters], latitude=named[0])
    from_utm = degrees_of_utm(catalogue.east, catalogue.north, catalogue.zone, hemisphere)
    return np.where(np.isfinite(from_utm), from_utm, named)


def hemispheres_of(catalogue: Catalogue) -> np.ndarray:
    """Which hemisphere's origin the northing of each image is counted from, values of `Hemisphere`, int8 (N,)."""
    if "latitude" in catalogue.table.column_names:
        return hemispheres(catalogue.north, latitude=catalogue.table["latitude"].to_numpy())
    letters, named = _named(catalogue)
    return hemispheres(catalogue.north, letters=[letters], latitude=named[0])


def _named(catalogue: Catalogue) -> tuple[np.ndarray, np.ndarray]:
    """The letters, (N,), and latitude and longitude, (2, N), in names of the convention; "" and NaN in others."""
    paths = catalogue.table["path"]
    if not pc.all(pc.match_substring_regex(paths, "(^|/)@[^/]*$")).as_py():
        return np.full(len(paths), ""), np.full((2, len(paths)), np.nan)
    fields = parse_columns(paths, ("letter", "latitude", "longitude"))
    return fields["letter"], np.stack([fields["latitude"], fields["longitude"]])
