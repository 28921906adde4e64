"""Latitude and longitude of images whose catalogue may know them in UTM only."""

import numpy as np
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import degrees_of_utm
from progeo.places.filename import parse_columns

_SOUTHERN = tuple("CDEFGHJKLM")
"""UTM's letters of latitude bands south of the equator."""


def degrees_of(catalogue: Catalogue) -> np.ndarray:
    """Latitude and longitude in degrees, (2, N): as read, as in the names, else from UTM; NaN without a zone.

    Where neither degrees nor the letter of a latitude band are known, a place is taken to be north of the equator.
    """
    if catalogue.degrees is not None:
        return catalogue.degrees
    paths = catalogue.table["path"]
    southern, degrees = np.zeros(len(catalogue), bool), np.full((2, len(catalogue)), np.nan)
    if pc.all(pc.match_substring_regex(paths, "(^|/)@[^/]*$")).as_py():  # names of the convention
        named = parse_columns(paths, ("letter", "latitude", "longitude"))
        southern = np.isin(named["letter"], _SOUTHERN)
        degrees = np.stack([named["latitude"], named["longitude"]])
    from_utm = degrees_of_utm(catalogue.east, catalogue.north, catalogue.zone, southern)
    return np.where(np.isfinite(degrees).all(axis=0), degrees, from_utm)
