"""Restrict a search to what lies near a known position, or looks in a known direction."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from progeo.places.distances import EARTH_RADIUS_M

_EXAMPLES = "Use for example 500 or 500,50 or 37.78,-122.41,500"


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


@dataclass(frozen=True)
class OwnPosition:
    """The position of each query itself, displaced."""

    radius_m: float
    error_m: float = 0.0
    """Standard deviation of the displacement to the east and to the north."""

    def __post_init__(self) -> None:
        if not (0 < self.radius_m < math.inf and 0 <= self.error_m < math.inf):
            raise ValueError(
                f"`near` RADIUS_M,ERROR_M must be a radius in meters above 0 and an error of at least 0, got "
                f"{self.radius_m:g},{self.error_m:g}. {_EXAMPLES}."
            )

    def __str__(self) -> str:
        """What the position is, in words."""
        error = f", displaced by a Gaussian error of {self.error_m:g} m to the east and north" if self.error_m else ""
        return f"within {self.radius_m:g} m of the position of each query{error}"

    def of(self, query: str, latitude: float, longitude: float) -> Near:
        """Return the circle around the displaced position, in degrees, of the query of this name."""
        east, north = (angle_of(self.error_m * each) for each in _normal_pair(query))
        moved = max(-90.0, min(90.0, latitude + north))
        turned = longitude + east / max(math.cos(math.radians(latitude)), 1e-9)
        return Near(moved, (turned + 180) % 360 - 180, self.radius_m)


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


def parse_prior(text: str | None) -> Near | OwnPosition | None:
    """Parse `LAT,LON,RADIUS_M`, one position for all queries, or `RADIUS_M` or `RADIUS_M,ERROR_M`, one of each query.

    Raises:
        ValueError: it is no such text, or a number is out of range.
    """
    if text is None:
        return None
    if text.count(",") == 2:
        return parse_near(text)
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"`near` must be RADIUS_M, RADIUS_M,ERROR_M or LAT,LON,RADIUS_M, got {text!r}. {_EXAMPLES}.")
    return OwnPosition(*numbers)


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


def _normal_pair(name: str) -> tuple[float, float]:
    """Draw two independent standard normal numbers that depend on a name only (Box-Muller)."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    first, second = (int.from_bytes(part, "big") / 2**64 for part in (digest[:8], digest[8:16]))
    length, angle = math.sqrt(-2 * math.log1p(-min(first, 1 - 2**-53))), 2 * math.pi * second
    return length * math.cos(angle), length * math.sin(angle)
