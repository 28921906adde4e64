"""Geographic extent of a set of images, and the images that lie outside of it."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from progeo.places.catalogue import Catalogue
from progeo.places.coordinates import map_link, middle_of, offsets_m, outliers, slices
from progeo.places.geographic import degrees_of

_ZERO_DEG = 1e-6
_AT_ZERO = "it is at 0, 0, as if its position were unknown"
_LOCAL_M = 100_000
"""Distance from the origin in meters within which positions without a zone are local map coordinates."""


@dataclass(frozen=True)
class Extent:
    """The area that the images of a set cover."""

    center: tuple[float, float] | None
    """Median latitude and longitude in degrees; None if only meters are known."""
    size_m: tuple[float, float]
    """Extent from west to east and from south to north, in meters."""
    elsewhere: Mapping[int, str]
    """Images excluded from center and size, and the reason, by row: at 0, 0, or far from all others."""

    @property
    def text(self) -> str:
        """The center and the size in words."""
        width, height = (f"{side:.0f} m" if side < 1000 else f"{side / 1e3:,.1f} km" for side in self.size_m)
        center = "unknown" if self.center is None else f"{self.center[0]:.5f}, {self.center[1]:.5f}"
        return f"center {center}; {width} from west to east, {height} from south to north"

    @property
    def map_link(self) -> str:
        """URL of a map of the center; empty if it is unknown."""
        return "" if self.center is None else map_link(*self.center, zoom=12)


def extent_of(catalogue: Catalogue) -> Extent | None:
    """Compute the extent of a catalogue; None if no position is known, or only meters in several zones."""
    degrees = degrees_of(catalogue)
    with_degrees = np.isfinite(degrees[0]) & np.isfinite(degrees[1])
    with_meters = np.isfinite(catalogue.east) & np.isfinite(catalogue.north)
    in_degrees = with_degrees.sum() > with_meters.sum() / 2
    known = with_degrees if in_degrees else with_meters
    if not known.any() or (not in_degrees and len(np.unique(catalogue.zone[catalogue.zone > 0])) > 1):
        return None
    at_zero = (np.abs(degrees[0]) < _ZERO_DEG) & (np.abs(degrees[1]) < _ZERO_DEG) | _at_zero_m(catalogue)
    rest = known & ~at_zero if (known & ~at_zero).any() else known
    center = middle_of(*degrees[:, rest]) if in_degrees else None
    if center is None:
        meters = np.stack([catalogue.east, catalogue.north])
        offsets = meters.T - np.median(meters[:, rest], axis=1)
    else:
        offsets = np.empty((len(catalogue), 2))
        for rows in slices(len(catalogue)):
            offsets[rows] = offsets_m(degrees[:, rows], center)
    distances = np.linalg.norm(offsets, axis=1)
    far = np.zeros(len(catalogue), bool)
    far[rest] = outliers(distances[rest])
    elsewhere = {
        row: f"it is {distances[row] / 1e3:,.0f} km from the middle of the others" if far[row] else _AT_ZERO
        for row in np.flatnonzero(at_zero | far).tolist()
    }
    width, height = np.ptp(offsets[rest & ~far], axis=0).tolist()
    return Extent(center, (width, height), elsewhere)


def _at_zero_m(catalogue: Catalogue) -> np.ndarray:
    """Find the images at 0, 0 in meters, bool (N,); none without a zone in a set with local map coordinates."""
    is_local = np.hypot(np.nanmedian(catalogue.east), np.nanmedian(catalogue.north)) < _LOCAL_M
    return (catalogue.east == 0) & (catalogue.north == 0) & ((catalogue.zone > 0) | (not is_local))
