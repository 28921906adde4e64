"""Restrict a search to what lies near a known position, or looks in a known direction."""

import math
from dataclasses import dataclass

import numpy as np

from progeo.places.distances import EARTH_RADIUS_M


@dataclass(frozen=True)
class Near:
    """A circle on the Earth that a photo was taken in."""

    latitude: float
    """Degrees, -90 to 90."""
    longitude: float
    """Degrees, -180 to 180."""
    radius_m: float
    """Meters along a great circle, above 0."""

    def __post_init__(self) -> None:
        is_place = abs(self.latitude) <= 90 and abs(self.longitude) <= 180
        if not (is_place and 0 < self.radius_m < math.inf):
            raise ValueError(
                f"`near` must be a latitude from -90 to 90, a longitude from -180 to 180 and a radius in meters above "
                f"0, got {self}. Use for example 37.78,-122.41,500."
            )

    def __str__(self) -> str:
        """The numbers as `parse_near` reads them."""
        return f"{self.latitude!r},{self.longitude!r},{self.radius_m:g}"


@dataclass(frozen=True)
class HeadingRange:
    """The directions that a photo may have been taken in."""

    heading_deg: float
    """Degrees clockwise from north."""
    tolerance_deg: float
    """Maximum difference in degrees, above 0 and at most 180."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.heading_deg) and 0 < self.tolerance_deg <= 180):
            raise ValueError(
                f"`heading` must be degrees clockwise from north and a tolerance above 0 and at most 180, got {self}. "
                f"Use for example 90,30."
            )

    def __str__(self) -> str:
        """The numbers as `parse_heading` reads them."""
        return f"{self.heading_deg:g},{self.tolerance_deg:g}"


def parse_near(text: str) -> Near:
    """Parse `LAT,LON,RADIUS_M`.

    Raises:
        ValueError: it is no such text, or a number is out of range.
    """
    return Near(*_numbers(text, 3, "`near` must be LAT,LON,RADIUS_M", "37.78,-122.41,500"))


def parse_heading(text: str) -> HeadingRange:
    """Parse `DEG,TOLERANCE`.

    Raises:
        ValueError: it is no such text, or a number is out of range.
    """
    return HeadingRange(*_numbers(text, 2, "`heading` must be DEG,TOLERANCE", "90,30"))


def haversine_m(latitude: np.ndarray, longitude: np.ndarray, to_latitude: float, to_longitude: float) -> np.ndarray:
    """Compute the great-circle distances in meters from N positions in degrees to another, (N,), by the haversine.

    The Earth is a sphere of its mean radius. NaN where a position is unknown.
    """
    north, to_north = np.radians(latitude), math.radians(to_latitude)
    haversine = np.sin((north - to_north) / 2) ** 2
    haversine += np.cos(north) * math.cos(to_north) * np.sin(np.radians(longitude - to_longitude) / 2) ** 2
    return 2 * EARTH_RADIUS_M * np.arcsin(np.sqrt(np.minimum(haversine, 1)))


def angle_of(distance_m: float) -> float:
    """Convert a distance along a great circle to degrees."""
    return math.degrees(distance_m / EARTH_RADIUS_M)


def looks_toward(headings: np.ndarray, allowed: HeadingRange) -> np.ndarray:
    """Return which headings, degrees (N,), lie in a range, inclusive, bool (N,); unknown ones (NaN) may."""
    turned = (headings - allowed.heading_deg + 180) % 360 - 180
    return ~(np.abs(turned) > allowed.tolerance_deg)


def _numbers(text: str, count: int, what: str, example: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"{what}, got {text!r}. Use for example {example}.")
    return numbers
