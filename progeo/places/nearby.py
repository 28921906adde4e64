"""Restrict a search to what lies near a known position, or looks in a known direction."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TypeVar

import numpy as np

from progeo.places.distances import EARTH_RADIUS_M

_Prior = TypeVar("_Prior")
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
        return f"{self.latitude!r},{self.longitude!r},{self.radius_m!r}"


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
        return f"{self.heading_deg!r},{self.tolerance_deg!r}"


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
        error = (
            f", displaced by a Gaussian error of {self.error_m:.10g} m to the east and north" if self.error_m else ""
        )
        return f"within {self.radius_m:.10g} m of the position of each query{error}"

    def of(self, query: str, latitude: float, longitude: float) -> Near:
        """Return the circle around the displaced position, in degrees, of the query of this name."""
        east, north = (angle_of(self.error_m * each) for each in _normal_pair(query))
        moved = max(-90.0, min(90.0, latitude + north))
        turned = longitude + east / max(math.cos(math.radians(latitude)), 1e-9)
        return Near(moved, (turned + 180) % 360 - 180, self.radius_m)


def near_of(given: Near | Sequence[float]) -> Near:
    """Return a circle, given as one or by its three numbers.

    Raises:
        ValueError: they are not three, or one is out of range.
    """
    what = "`near` must be a latitude, a longitude and a radius in meters"
    return given if isinstance(given, Near) else Near(*_counted(given, 3, what, "(37.78, -122.41, 500)"))


def heading_of(given: HeadingRange | Sequence[float]) -> HeadingRange:
    """Return a range of directions, given as one or by its two numbers.

    Raises:
        ValueError: they are not two, or one is out of range.
    """
    what = "`heading` must be degrees clockwise from north and a tolerance"
    return given if isinstance(given, HeadingRange) else HeadingRange(*_counted(given, 2, what, "(90, 30)"))


def of_each(given: object, count: int, one: Callable[..., _Prior], *, name: str) -> _Prior | list[_Prior] | None:
    """Return what is known of `count` photos: one thing for all of them, or a list with one for each; None for nothing.

    Args:
        given: one thing as `one` takes it, or a sequence of them, which has no numbers or texts in it.
        name: name of the argument.

    Raises:
        ValueError: it is no such thing, or a sequence of another length.
    """
    if given is None:
        return None
    if not isinstance(given, Sequence | np.ndarray) or any(isinstance(each, Real | str) for each in given):
        return one(given)
    if len(given) != count:
        raise ValueError(
            f"`{name}` must be one for all photos or one for each, got {len(given)} for {count} photos. Leave out the "
            f"photos that it is unknown of."
        )
    return [one(each) for each in given]


def check_known(values: np.ndarray, what: str, folder: object, *, name: str) -> None:
    """Check that something is known of the images of a folder.

    Args:
        values: that of each image, NaN where it is unknown.
        what: what it is.
        name: name of the argument that needs it.

    Raises:
        ValueError: it is unknown of all images.
    """
    if np.isnan(values).all():
        raise ValueError(f"`{name}` cannot be used: no {what} is known in {folder}. Leave it out.")


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
    return _counted(numbers, count, what, example, text)


def _counted(given: Sequence[float], count: int, what: str, example: str, shown: object = None) -> list[float]:
    try:
        numbers = [] if isinstance(given, str | bytes) else [float(each) for each in given]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count:
        raise ValueError(f"{what}, got {given if shown is None else shown!r}. Use for example {example}.")
    return numbers


def _normal_pair(name: str) -> tuple[float, float]:
    """Draw two independent standard normal numbers that depend on a name only (Box-Muller)."""
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).digest()
    first, second = (int.from_bytes(part, "big") / 2**64 for part in (digest[:8], digest[8:16]))
    length, angle = math.sqrt(-2 * math.log1p(-min(first, 1 - 2**-53))), 2 * math.pi * second
    return length * math.cos(angle), length * math.sin(angle)
