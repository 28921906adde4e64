"""From latitude and longitude to metres, in one UTM zone for a whole set of images."""

from dataclasses import dataclass

import numpy as np
import utm


@dataclass(frozen=True)
class Positions:
    """Places of N images in one zone."""

    east: np.ndarray
    """Metres, float64 (N,)."""
    north: np.ndarray
    """Metres, float64 (N,)."""
    zone: int
    """The zone of the median image, 1 to 60; all others are measured in it too."""
    zones_crossed: tuple[int, ...]
    """All zones that images lie in."""


def project(latitude: np.ndarray, longitude: np.ndarray) -> Positions:
    """Project WGS 84 degrees to UTM, all in the zone of the median position, also across a border or the equator.

    Args:
        latitude: degrees north, -80 to 84, (N,).
        longitude: degrees east, -180 to 180, (N,).

    Raises:
        ValueError: degrees that are absent or out of range; the sentence gives the first and its place, from 1.
    """
    for name, values, low, high in (("latitude", latitude, -80, 84), ("longitude", longitude, -180, 180)):
        wrong = ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"Image {row + 1}: its {name} must be from {low} to {high} degrees, got {values[row]}. Are latitude "
                f"and longitude the right way round?"
            )
    middle = np.median(latitude), np.median(longitude)
    zone = utm.latlon_to_zone_number(*middle)
    east, north, _, _ = utm.from_latlon(latitude, longitude, force_zone_number=zone, force_northern=middle[0] >= 0)
    crossed = np.unique(np.minimum((longitude + 180) // 6 + 1, 60).astype(int))
    return Positions(east, north, zone, tuple(crossed.tolist()))
