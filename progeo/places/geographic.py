"""Latitude and longitude of images whose catalogue may know them in UTM only."""

import numpy as np
import pyarrow.compute as pc

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import degrees_of_utm
from progeo.places.filename import parse_columns

_SOUTHERN = tuple("CDEFGHJKLM")
"""UTM's letters of latitude bands south of the equator."""


def degrees_of(catalogue: Catalogue) -> np.ndarray:
    """Latitude and longitude in degrees, (2, N): as read, else from UTM, without a zone as the names say, else NaN.

    Where neither the latitude nor the letter of its band is known, a place is taken to be north of the equator.
    """
    if catalogue.degrees is not None:
        return catalogue.degrees
    paths = catalogue.table["path"]
    southern, named = np.zeros(len(catalogue), bool), np.full((2, len(catalogue)), np.nan)
    if pc.all(pc.match_substring_regex(paths, "(^|/)@[^/]*$")).as_py():  # names of the convention
        fields = parse_columns(paths, ("letter", "latitude", "longitude"))
        named = np.stack([fields["latitude"], fields["longitude"]])
        southern = np.isin(fields["letter"], _SOUTHERN) | (named[0] < 0)
    from_utm = degrees_of_utm(catalogue.east, catalogue.north, catalogue.zone, southern)
    return np.where(np.isfinite(from_utm), from_utm, named)
