"""From latitude and longitude to metres, in one UTM zone for a whole set of images."""

from dataclasses import dataclass

import numpy as np
import utm

_WIDEST_DEG = 6


@dataclass(frozen=True)
class Positions:
    """Places of N images in one zone."""

    east: np.ndarray
    """Metres, float64 (N,)."""
    north: np.ndarray
    """Metres, float64 (N,)."""
    zone: int
    """The zone of the middle of the set, 1 to 60; all are measured in it."""


def project(latitude: np.ndarray, longitude: np.ndarray) -> Positions:
    """Project WGS 84 degrees to UTM, all in the zone of the median position, also across a border or the equator.

    Args:
        latitude: degrees north, -80 to 84, (N,).
        longitude: degrees east, -180 to 180, (N,).

    Raises:
        ValueError: degrees that are absent or out of range, with the first and its place, from 1; or images so far
            apart that no zone fits all.
    """
    for name, values, low, high in (("latitude", latitude, -80, 84), ("longitude", longitude, -180, 180)):
        wrong = ~((values >= low) & (values <= high))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"Image {row + 1}: its {name} must be from {low} to {high} degrees, got {values[row]}. Are latitude "
                f"and longitude the right way round?"
            )
    middle_latitude, middle_longitude = float(np.median(latitude)), _middle(longitude)
    far = _is_far(longitude)
    if far.any():
        row = int(far.argmax())
        raise ValueError(
            f"Image {row + 1} is at longitude {longitude[row]}, the middle of all at {middle_longitude:.5f}: more than "
            f"{_WIDEST_DEG} degrees apart, no UTM zone fits both. Make one set of each city."
        )
    zone = utm.latlon_to_zone_number(middle_latitude, middle_longitude)
    northern = middle_latitude >= 0
    east, north, _, _ = utm.from_latlon(latitude, longitude, force_zone_number=zone, force_northern=northern)
    return Positions(east, north, zone)


def fits_one_zone(longitude: np.ndarray) -> bool:
    """Whether `project` can measure all places in one zone."""
    return not _is_far(longitude).any()


def degrees_of_utm(east: np.ndarray, north: np.ndarray, zone: np.ndarray, southern: np.ndarray) -> np.ndarray:
    """Latitude and longitude (2, N) of places in UTM, NaN where the zone is not known.

    Args:
        east, north: metres, (N,).
        zone: 1 to 60, 0 where it is not known, (N,).
        southern: whether each lies south of the equator, bool (N,).
    """
    degrees = np.full((2, len(east)), np.nan)
    for number, is_south in {*zip(zone[zone > 0].tolist(), southern[zone > 0].tolist(), strict=True)}:
        here = (zone == number) & (southern == is_south)
        degrees[:, here] = utm.to_latlon(east[here], north[here], number, northern=not is_south, strict=False)
    return degrees


def _middle(longitude: np.ndarray) -> float:
    around = longitude[0] + _turned(longitude - longitude[0])  # without a jump at 180 degrees
    return float(_turned(np.median(around)))


def _is_far(longitude: np.ndarray) -> np.ndarray:
    return np.abs(_turned(longitude - _middle(longitude))) > _WIDEST_DEG


def _turned(degrees: np.ndarray) -> np.ndarray:
    """The same direction from -180 to 180."""
    return (degrees + 180) % 360 - 180
